"""When the answers to a growing task are enough: every limit that waits for them is decided, or none can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantbudget.core.answers import counterparts
from pytest_quantbudget.core.gpus import matches
from pytest_quantbudget.core.request import Request, Rule
from pytest_quantbudget.core.verdict import UNDECIDED
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval, Paired

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import TaskResult

CERTAIN = 0.99  # that too many answers are cut off, before the rest is given up


def bounds(
    relation: str,
    before: Sequence[bool],
    after: Sequence[bool],
    confidence: float,
    clusters: Sequence[str] = (),
    times: float = 1.0,
) -> Interval:
    """Bounds of a task's figure (percent or points) from outcomes question by question, the baseline's `before`.

    `clusters` names the cluster of each question, where they are declared. The bounds are those of `times` as many
    questions with the same outcomes.
    """
    if not relation:
        design = _design(after, clusters, confidence) / times
        return intervals.proportion_interval(sum(after) / design, len(after) / design, confidence)
    paired = paired_of(relation, before, after, confidence, clusters)
    paired = replace(paired, design=paired.design / times)
    return paired.drop_interval(confidence) if relation == "drop" else paired.flips_interval(confidence)


def paired_of(
    relation: str, before: Sequence[bool], after: Sequence[bool], confidence: float, clusters: Sequence[str] = ()
) -> Paired:
    """The counts behind the bounds of a drop or of flips."""
    lost = [x - y for x, y in zip(before, after, strict=True)]
    values = lost if relation == "drop" else [abs(each) for each in lost]
    return replace(intervals.pair(before, after), design=_design(values, clusters, confidence))


def _design(values: Sequence[float], clusters: Sequence[str], confidence: float) -> float:
    return intervals.design_effect(values, clusters, confidence) if any(clusters) else 1.0


def clusters_of(result: TaskResult) -> tuple[str, ...]:
    """The cluster of each question; empty texts where the task declares none."""
    return tuple(answer.cluster for answer in result.answers)


def confidence(result: TaskResult, asked: float) -> float:
    """The confidence of bounds on what there is of a task, so that all looks at it together have the one `asked`."""
    return confidence_at(len(result.answers), result.task.start, result.total, asked)


def stopped(request: Request, device: str, result: TaskResult, baseline: TaskResult | None) -> str:
    """Why no more questions of a task need to be asked; nothing where more of them may decide something.

    Where no rule of the request holds on this device, all questions are asked, and so they are for a limit without a
    number (`auto`).
    """
    task, n = result.task, len(result.answers)
    mine = [(rule, value) for rule in request.rules if rule.task == task.name for value in _values(rule, device)]
    if task.start is None or task.name in request.whole or not mine:
        return ""
    if intervals.proportion_interval(result.cut_off, n, CERTAIN).low > task.max_truncated:
        return f"too many of the first {n:,} answers were truncated"
    pairs = counterparts(baseline, result) if baseline is not None else []
    before = result.right(pair for pair in pairs if pair is not None)
    for rule, value in mine:
        if value is None or (rule.relation and len(before) < n):
            return ""
        level, clusters = confidence(result, rule.confidence), clusters_of(result)
        found = bounds(rule.relation, before, result.correct, level, clusters)
        if found.side(rule.bound, value) == UNDECIDED:
            return ""
    return "its limit was decided" if len(mine) == 1 else "all its limits were decided"


def _values(rule: Rule, device: str) -> list[float | None]:
    """The value that holds for a device, if any."""
    pairs = zip(rule.patterns, rule.values, strict=True)
    return [value for pattern, value in pairs if matches(device, pattern)][:1]


EARLY = 0.025  # that may go wrong before the last look, however low the confidence that is asked for
SMALLEST_STEP = 1.25  # a last look that adds less than that is not worth its share


def looks(start: int | None, total: int) -> tuple[int, ...]:
    """After how many questions the answers are looked at: `start`, doubled, up to all of them."""
    found: list[int] = []
    step = start or total
    while step * SMALLEST_STEP <= total:
        found.append(step)
        step *= 2
    return (*found, total)


def confidence_at(questions: int, start: int | None, total: int, confidence: float) -> float:
    """The confidence of the bounds after so many questions, so that all looks together err no more than one would.

    Half of what may go wrong is kept for the last look, the rest is shared evenly by those before it: alpha spending
    (Lan and DeMets 1983, Biometrika 70, 659-663) by Bonferroni's inequality, so that it holds however the looks depend
    on each other. The bounds are repeated confidence intervals (Jennison and Turnbull 1989, JRSS B 51, 305-361): they
    hold for every limit at once and whatever made the questions end.
    """
    times = looks(start, total)
    if len(times) == 1:
        return confidence
    alpha = (1 - confidence) / 2
    return 1 - (alpha if questions >= total else min(alpha, EARLY) / (len(times) - 1))
