"""What methods are compared by when one is chosen: memory, speed and quality, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_quantbudget.core.answers import counterparts
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.units import format_size, format_value
from pytest_quantbudget.judge import intervals, sequential
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.accuracy import Accuracy, answers
from pytest_quantbudget.judge.metrics.base import Case, Unmeasured, exponential_mean
from pytest_quantbudget.judge.metrics.memory import Vram, Weights
from pytest_quantbudget.judge.metrics.speed import TokensPerS

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import TaskResult
    from pytest_quantbudget.core.measurement import Measurement
    from pytest_quantbudget.judge.noise import Noise

CONFIDENCE = 0.95  # of each bound that tells two methods apart


@dataclass(frozen=True)
class Axis:
    """One thing that methods are compared by.

    `of` is the figure, `better` and `best` what is said of a method. `values` are the figures by method, greater ones
    better, and `missing` says why others have none.
    """

    of: str
    better: str
    best: str
    values: Mapping[str, float]
    missing: Mapping[str, str]
    _apart: dict[tuple[str, str], frozenset[int]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def apart(self, one: str, other: str) -> frozenset[int]:
        """1 where `one` is better than `other` beyond what is not known, -1 where it is worse; both where each is."""
        if (one, other) not in self._apart:
            sides = self.compare(one, other)
            self._apart[one, other] = frozenset(sides)
            self._apart[other, one] = frozenset(-side for side in sides)
        return self._apart[one, other]

    def compare(self, one: str, other: str) -> set[int]:
        """What `apart` says, computed once for each pair."""
        raise NotImplementedError

    def told(self, name: str) -> str:
        """A method's figure in words."""
        raise NotImplementedError


@dataclass(frozen=True)
class Memory(Axis):
    """Bytes, which are counted: values are negative."""

    def compare(self, one: str, other: str) -> set[int]:
        """Any difference counts."""
        gap = self.values[one] - self.values[other]
        return {int(math.copysign(1, gap))} if gap else set()

    def told(self, name: str) -> str:
        """The size."""
        return format_size(-self.values[name])


@dataclass(frozen=True)
class Speed(Axis):
    """Tokens/s. `repeats` are those of each method, and `noise` the factor by which repeat runs differ."""

    repeats: Mapping[str, Sequence[float]]
    noise: float

    def compare(self, one: str, other: str) -> set[int]:
        """What the rank-sum bounds of their factor say, and repeat runs do not explain."""
        bounds = intervals.ratio_interval(self.repeats[one], self.repeats[other], CONFIDENCE)
        return _sides(bounds.low > self.noise, bounds.high < 1 / self.noise)

    def told(self, name: str) -> str:
        """The median."""
        return f"{format_value(self.values[name], '')} tokens/s"


@dataclass(frozen=True)
class Quality(Axis):
    """Answers to tasks, and the perplexity of a text: each compared on what both methods were given."""

    budget: Budget
    records: Mapping[str, Measurement]

    def compare(self, one: str, other: str) -> set[int]:
        """What each task and the text say."""
        own, their = self.records[one], self.records[other]
        found = _of_text(self.budget, own, their)
        for task in self.budget.tasks.values():
            ours, theirs = own.task(task), their.task(task)
            if ours is not None and theirs is not None:
                found |= _of_task(ours, theirs)
        return found

    def told(self, name: str) -> str:
        """The score on each task, and the perplexity."""
        record = self.records[name]
        scores = [(task.name, record.task(task)) for task in self.budget.tasks.values()]
        told = [f"{task} {format_value(result.accuracy, '%')}" for task, result in scores if result is not None]
        text = record.perplexity(self.budget.text) if self.budget.text else None
        return ", ".join([*told, *([f"perplexity {text.value:.3f}"] if text is not None else [])])


def _of_task(ours: TaskResult, theirs: TaskResult) -> set[int]:
    """1 where the first answered better, -1 where it answered worse, neither where that is not told apart.

    Both where they were asked unlike questions: then neither can be said to be as good as the other.
    """
    if len(ours.answers) > len(theirs.answers):
        return {-side for side in _of_task(theirs, ours)}
    pairs = [answer for answer in counterparts(theirs, ours) if answer is not None]
    if len(pairs) < len(ours.answers) or ours.metric != theirs.metric:
        return {1, -1}
    level, clusters = sequential.confidence(ours, CONFIDENCE), sequential.clusters_of(ours)
    drop = sequential.bounds("drop", ours.right(pairs), ours.correct, level, clusters)
    return _sides(drop.high < 0, drop.low > 0)


def _sides(better: bool, worse: bool) -> set[int]:
    return {side for side, holds in ((1, better), (-1, worse)) if holds}


def _of_text(budget: Budget, own: Measurement, their: Measurement) -> set[int]:
    """The same by the perplexity of the text, window by window."""
    ours, theirs = (record.perplexity(budget.text) if budget.text else None for record in (own, their))
    if ours is None or theirs is None:
        return set()
    if not ours.each_tokens or ours.each_tokens != theirs.each_tokens:
        return {1, -1}
    lost = [x - y for x, y in zip(ours.each_nll, theirs.each_nll, strict=True)]
    ratio = exponential_mean(lost, ours.each_tokens, CONFIDENCE)
    return _sides(ratio.high < 1, ratio.low > 1)


def axes(
    budget: Budget, measured: Mapping[str, Measurement], noise: Noise | None = None
) -> tuple[list[Axis], list[Axis]]:
    """What the methods of a budget are compared by, and what they are not, because most of them have no figure for it.

    `measured` are their measurements by name. Sizes and times of another device than the first method's are missing.
    """
    names = [method.name for method in budget.methods if method.name in measured]
    found = [
        _memory(budget, names, measured),
        _speed(budget, names, measured, noise),
        _quality(budget, names, measured),
    ]
    enough = [axis for axis in found if len(axis.values) >= max(2, len(names) / 2) or len(axis.values) == len(names)]
    return enough, [axis for axis in found if axis not in enough and axis.values]


def _memory(budget: Budget, names: Sequence[str], measured: Mapping[str, Measurement]) -> Axis:
    """The peak on the GPU, or the weights where those of more methods are known."""
    both = {"GPU memory": Vram.limits[0], "weights": Weights.limits[0]}
    found = {of: _figures(budget, names, measured, kind, of) for of, kind in both.items()}
    of = max(found, key=lambda of: len(found[of][0]))
    values, missing = found[of]
    return Memory(of, "less memory", "the least memory", {n: -value for n, value in values.items()}, missing)


def _speed(budget: Budget, names: Sequence[str], measured: Mapping[str, Measurement], noise: Noise | None) -> Axis:
    values, missing = _figures(budget, names, measured, TokensPerS.limits[0], "tokens/s")
    speeds = {name: measured[name].speed(budget.workload) for name in values}
    repeats = {name: speed.tokens_per_s for name, speed in speeds.items() if speed is not None}
    spread = noise.spread(TokensPerS.name) if noise is not None else 1.0
    return Speed("tokens/s", "faster", "the fastest", values, missing, repeats, spread)


def _quality(budget: Budget, names: Sequence[str], measured: Mapping[str, Measurement]) -> Axis:
    """The mean score of the tasks, and less of perplexity: only where all that any method was given was answered."""
    given = [task for task in budget.tasks.values() if any(measured[name].task(task) for name in names)]
    text = budget.text if budget.text and any(measured[name].perplexity(budget.text) for name in names) else None
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in names:
        why = next(filter(None, (_unanswered(budget, name, measured, task) for task in given)), "")
        read = measured[name].perplexity(text) if text else None
        if why or (text is not None and read is None):
            missing[name] = why or "no perplexity was measured"
        elif given or read is not None:
            scores = [result.accuracy for task in given if (result := measured[name].task(task)) is not None]
            values[name] = math.fsum(scores) / len(scores) if scores else -(read.value if read else 0.0)
    told = ", ".join([*(task.name for task in given), *(["perplexity"] if text else [])])
    return Quality(told, "better answers", "the best answers", values, missing, budget, measured)


def _unanswered(budget: Budget, name: str, measured: Mapping[str, Measurement], task: Task) -> str:
    """Why a method's answers to a task do not count; nothing where they do."""
    score = Accuracy().limits_of(task.name)[0]
    try:
        answers(Case(budget.basis_of(name), score, name, measured, CONFIDENCE), task)
    except Unmeasured as error:
        return _why(error, f"no answers to {task.name}")
    return ""


def _figures(
    budget: Budget, names: Sequence[str], measured: Mapping[str, Measurement], kind: LimitKind, of: str
) -> tuple[dict[str, float], dict[str, str]]:
    """The values of a metric, which are `of` something, and why methods have none."""
    metric = metric_of(kind)
    device = next((record.device.name for name in names if (record := measured[name]).device is not None), "")
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in names:
        own = measured[name].device
        if own is not None and own.name != device:
            missing[name] = f"measured on {own.name}, and the others on {device}"
            continue
        try:
            values[name] = metric.figure(Case(budget.basis_of(name), kind, name, measured, CONFIDENCE)).value
        except Unmeasured as error:
            missing[name] = _why(error, f"no {of} was measured")
    return values, missing


def _why(error: Unmeasured, otherwise: str) -> str:
    """Why there is no figure; that nothing asked for it where that is why."""
    phase = error.failure.phase
    return otherwise if error.failure.message == f"{phase} gave no figure" else error.failure.message
