"""The noise floor: how much repeat runs of a baseline differ, and which limits ask for less than that. Pure functions.

A repeat run (`--quant-noise`) is the baseline measured once more, as a method would be. Whatever it seems to lose
against the first run is lost through nothing but this machine and this way of measuring.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.core.units import format_value
from pytest_quantbudget.judge.metrics import figure, known, limit_kinds, limits, metric_of
from pytest_quantbudget.judge.metrics.accuracy import Accuracy
from pytest_quantbudget.judge.metrics.base import Figure, Unmeasured

EXACT = 1e-9  # counts become percentages and differ in the last digit


@dataclass(frozen=True)
class TaskNoise:
    """How the outcomes of each repeat run differ from the first run's on the same `n` questions.

    `b` counts those that went from right to wrong, `c` those from wrong to right.
    """

    task: str
    n: int
    b: tuple[int, ...]
    c: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse, with ValueError, counts that are none."""
        fit = all(b >= 0 and c >= 0 and b + c <= self.n for b, c in zip(self.b, self.c, strict=False))
        if not 0 < len(self.b) == len(self.c) or self.n < 1 or not fit:
            raise ValueError("flips must be counts, one for each run, and no larger than the number of questions")

    @property
    def flips(self) -> int:
        """The most questions on which a repeat run differs from the first."""
        return max(b + c for b, c in zip(self.b, self.c, strict=True))

    @property
    def drop(self) -> float:
        """The largest difference of accuracy between any two of the runs, in points."""
        lost = [0, *(b - c for b, c in zip(self.b, self.c, strict=True))]
        return 100 * (max(lost) - min(lost)) / self.n


@dataclass(frozen=True)
class Noise:
    """What `runs` repeat runs of a baseline showed.

    `values` has, by metric, a value of each run that has one, in base units: of the first run and the equal ones for
    `tokens_per_s`, `ttft`, `load_time` (medians of the repeats where there are any), `ppl` and the three of memory on a
    GPU; of the equal
    ones against the first for `agreement`, `answer_ppl`, `kl` and `top1`. `notes` say what went wrong.
    """

    method: str
    runs: int
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    tasks: tuple[TaskNoise, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse, with ValueError, metrics without values, and values that no ratio can be taken of."""
        for metric, values in self.values.items():
            if not values or metric not in {**_alone_names(), **_against_values()}:
                raise ValueError(f"{metric[:20]!r} needs the values of repeat runs")
            if metric in _alone_names() and min(values) <= 0:
                raise ValueError(f"{metric[:20]!r} needs the values of repeat runs")

    def task(self, name: str) -> TaskNoise | None:
        """The flips of a task, if any repeat run was asked."""
        return next((task for task in self.tasks if task.task == name), None)

    def spread(self, metric: str) -> float:
        """The largest ratio of two runs; 1 where there is none."""
        values = self.values.get(metric, (1.0,))
        return max(values) / min(values)

    def floor(self, kind: LimitKind) -> float:
        """How much of a limit's figure is noise: 0 for none, or where nothing is known.

        Points or percent for a task, the unit of the figure for what is taken against the baseline's answers, and the
        logarithm of a factor for sizes, times and speeds, of which it takes the same to go up as to come down.
        """
        if kind.task:
            found = self.task(kind.task) if metric_of(kind).name == Accuracy.name else None
            return 0.0 if found is None else 100 * found.flips / found.n if kind.relation == "flips" else found.drop
        same = metric_of(kind).repeat
        if not _shown(kind):
            return 0.0
        if same is not None:
            return max((abs(value - same) for value in self.values.get(kind.metric, ())), default=0.0)
        return math.log(self.spread(kind.metric))

    def inside(self, kind: LimitKind, limit: float, measured: float) -> bool:
        """Whether noise alone decides: it may put the figure on the limit's other side, or a repeat run break it."""
        noise = self.floor(kind)
        if noise <= 0:
            return False
        metric = metric_of(kind)
        if metric.noise_name:
            equal, limit, measured = 0.0, math.log(limit), math.log(measured)
        else:
            equal = metric.repeat or 0.0
        gaps = [abs(limit - measured), *([abs(limit - equal)] if kind.relation else [])]
        return min(gaps) <= noise + EXACT

    def words(self, kind: LimitKind) -> str:
        """What repeat runs show of a limit's figure; nothing where they show nothing."""
        if kind.task:
            found = self.task(kind.task) if metric_of(kind).name == Accuracy.name else None
            if found is None:
                return ""
            if kind.relation == "flips":
                return f"repeat runs flip {_up_to(found.flips)} of {found.n:,} answers"
            return f"repeat runs differ by {format_value(found.drop, 'points')}"
        if not _shown(kind):
            return ""
        if metric_of(kind).repeat is not None and kind.metric in self.values:
            return f"repeat runs have {_range(self.values[kind.metric], kind.unit)}"
        return f"repeat runs differ by {_factor(self.spread(kind.metric))}" if kind.metric in self.values else ""


def _shown(kind: LimitKind) -> bool:
    """Whether repeat runs show a limit's own figure: of a family of percentiles, that of those which are listed."""
    return kind.percentile is None or kind.name in limits()


def subjects(budget: Budget, times: int) -> list[Subject]:
    """What the noise of a budget is measured on: what is repeated, and so many repeat runs of it."""
    if budget.repeated is None:
        return []
    return [replace(budget.repeated.subject, again=number) for number in range(times + 1)]


def of(budget: Budget, runs: Sequence[Measurement]) -> Noise:
    """The noise in `runs`: the measurement of what is repeated, then its repeat runs, as far as there are any."""
    name = budget.repeated.name if budget.repeated is not None else ""
    first, again = (runs[0] if runs else None), [run for run in runs[1:] if run.loaded is not None]
    failed = (f"{run.subject.name}: {failure.message}" for run in runs[1:] for failure in run.failures)
    notes = (*failed, *(note for run in runs[1:] for note in run.notes))
    if first is None or not again:
        return Noise(name, 0, notes=(f"no noise floor: {_why(budget, first)}", *notes))
    values: dict[str, list[float]] = {}
    for run in (first, *again):
        for metric, value in _alone(budget, run):
            values.setdefault(metric, []).append(value)
    flips: dict[str, list[tuple[int, int, int]]] = {}
    for run in again:
        for kind, found in _against(budget, first, run):
            if found.paired is not None:
                flips.setdefault(kind.task, []).append((found.paired.n, found.paired.b, found.paired.c))
            else:
                values.setdefault(kind.metric, []).append(found.value)
    tasks = (
        TaskNoise(task, counts[0][0], tuple(b for _, b, _ in counts), tuple(c for _, _, c in counts))
        for task, counts in flips.items()
    )
    told = {metric: tuple(found) for metric, found in values.items() if metric in _against_values() or len(found) > 1}
    return Noise(name, len(again), told, tuple(tasks), notes)


def _why(budget: Budget, first: Measurement | None) -> str:
    if budget.repeated is None:
        return "the budget names no baseline"
    name = budget.repeated.name if budget.stored is not None else f"the baseline {budget.repeated.name}"
    if first is None:
        return f"{name} was not measured"
    fatal = next((failure.message for failure in first.failures if failure.fatal), None)
    return f"{name}: {fatal}" if fatal else f"no repeat run of {budget.repeated.name} was made"


def _alone_names() -> dict[str, str]:
    """The metrics that a run has without comparison, which differ by a factor, with their names in words."""
    return {metric.name: metric.noise_name for metric in known() if metric.noise_name}


def _against_values() -> dict[str, float]:
    """The metrics of a run against the first, with their value for answers that are the same."""
    return {metric.name: metric.repeat for metric in known() if metric.repeat is not None}


def _alone(budget: Budget, run: Measurement) -> Iterator[tuple[str, float]]:
    """The figures of one run without comparison."""
    basis = budget.basis_of(budget.repeated.name if budget.repeated is not None else "")
    for metric in known():
        value = metric.of_run(basis, run) if metric.noise_name else None
        if value is not None:
            yield metric.name, float(value)


def _against(budget: Budget, first: Measurement, run: Measurement) -> Iterator[tuple[LimitKind, Figure]]:
    """What limits on a method would be judged on, were the method a repeat run of the baseline."""
    name = budget.repeated.name if budget.repeated is not None else ""
    measured: Mapping[str, Measurement] = {run.subject.name: run, name: first}
    basis = replace(budget.basis, baseline=name, stored=False)
    for kind in limit_kinds(budget.tasks).values():
        if kind.relation in ("against", "flips") and metric_of(kind).lacking(basis) is None:
            try:
                limit = Limit(kind, (), budget.path, 0)
                yield kind, figure(basis, run.subject.name, limit, measured)
            except Unmeasured:
                continue


def line(noise: Noise) -> str:
    """The noise floor for people; nothing where no repeat run was made."""
    parts = [f"{name} {_factor(noise.spread(key))}" for key, name in _alone_names().items() if key in noise.values]
    for task in noise.tasks:
        drop = f", {format_value(task.drop, 'points')} apart" if task.drop else ""
        parts.append(f"{task.task} flips {_up_to(task.flips)} of {task.n:,}{drop}")
    for kind in limits().values():
        if kind.metric in _against_values() and kind.metric in noise.values:
            name = kind.name.partition("_")[2].replace("_", " ")
            parts.append(f"{name} {_range(noise.values[kind.metric], kind.unit)}")
    runs = "1 repeat run" if noise.runs == 1 else f"{noise.runs:,} repeat runs"
    return f"noise floor of {noise.method}, {runs}: {', '.join(parts)}" if noise.runs else ""


def _factor(spread: float) -> str:
    """`0.971x to 1.030x`: the ratios of any two runs."""
    return f"{1 / spread:.3f}x to {spread:.3f}x"


def _range(values: Sequence[float], unit: str) -> str:
    low, high = format_value(min(values), unit, 4), format_value(max(values), unit, 4)
    return low if low == high else f"{format_value(min(values), unit, 4, show_unit=False)} to {high}"


def _up_to(count: int) -> str:
    return f"up to {count:,}" if count else "none"
