"""What a metric is: an object that knows its limits, what it needs measured, its figure, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.request import LOAD, Part
from pytest_quantbudget.core.units import format_apart
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval, Paired

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Failure, Measurement, Speed

T = TypeVar("T")

# How the margin of a limit that reads `auto` is found: none is needed for what is counted, the range of the repeats'
# peaks, the spread of timings as a factor, or a bound of the figure itself.
# What is made once, and kept, has no margin that is known.
COUNTED, RANGE, FACTOR, SAMPLED, ONCE = "counted", "range", "factor", "sampled", "once"


@dataclass(frozen=True)
class Figure:
    """A measured value in base units, with what it is made of in words (repeats, counts, the two sides of a ratio).

    Each of the `bounds` holds with `confidence`; None where there is one observation, or where the figure varies with
    nothing that was observed. They rest on `n` observations of the kind `of`. `remark` says what else is worth knowing.
    The figure cannot exceed `most`, whatever the method loses. `more` gives the bounds of so many times as many
    observations of the same values, where that can be computed. So many as are `enough` bound it on both sides. With a
    `range`, the least and the greatest of what was observed, `detail` says of what it is. Where the true figure may be
    any larger one, because not all of it could be observed, `more_of` names what would tell.
    """

    value: float
    detail: str = ""
    bounds: Interval | None = None
    confidence: float = 0.0
    n: int = 0
    of: str = ""
    paired: Paired | None = None
    remark: str = ""
    most: float = math.inf
    range: tuple[float, float] | None = None
    more: Callable[[float], Interval] | None = None
    enough: int = 0
    more_of: str = ""


@dataclass(frozen=True)
class Extremes:
    """The bounds of the best and the worst outcome of `n` observations of the kind `of`.

    The best is that of a method that changes nothing, or gets everything right. Where they are infinite, `enough`
    observations would bound something.
    """

    best: Interval
    worst: Interval
    n: int
    of: str
    enough: int = 0


class Unmeasured(Exception):
    """A figure is missing; carries the failure that explains it."""

    def __init__(self, failure: Failure, method: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.method = method


@dataclass(frozen=True)
class Case:
    """What a figure is computed from: a method's record and, for a relation, the baseline's, by method name."""

    basis: Basis
    kind: LimitKind
    method: str
    measured: Mapping[str, Measurement]
    confidence: float

    @property
    def record(self) -> Measurement:
        """The method's record."""
        return self.measured[self.method]

    @property
    def baseline(self) -> str:
        """The baseline's name."""
        return self.basis.baseline or ""

    def of_baseline(self) -> Case:
        """The baseline in the method's place."""
        return replace(self, method=self.baseline)

    def need(self, value: T | None, phase: str) -> T:
        """A figure of a phase, or why there is none. Raises Unmeasured."""
        if value is None:
            failure = self.record.failure(phase)
            raise Unmeasured(failure, self.method) if failure else self.unmeasured(phase, f"{phase} gave no figure")
        return value

    def check_told(self, name: str, phase: str) -> None:
        """Raise Unmeasured, in the engine's words, where it cannot tell a figure of this name."""
        why = (self.record.untold or {}).get(name)
        if why is not None:
            raise self.unmeasured(phase, why, "not offered")

    def check_packed(self) -> None:
        """Raise Unmeasured where the engine runs a checkpoint decompressed, unless the method allows that.

        What is measured then are the memory and the speed of something else than what ships.
        """
        why = self.record.decompressed
        if why and self.method not in self.basis.decompressed:
            raise self.unmeasured(LOAD, f"{why}; `decompressed: allow` judges what runs here")

    def unmeasured(self, phase: str, why: str, kind: str = "error") -> Unmeasured:
        """The exception for a figure of a phase that is missing for this reason."""
        from pytest_quantbudget.core.measurement import Failure

        return Unmeasured(Failure(phase, kind, why), self.method)


@dataclass(frozen=True)
class Column:
    """A column of the trade-off table. An `optional` one is left out where no method has a figure for it.

    A `limited` one is shown where the budget has a limit of that kind.

    `cell` gives a method's text, or raises Unmeasured. Where the baseline is not `shown` against itself, its cell is
    empty. Where the table is wider than the terminal, the column goes first that `stays` the shortest.
    """

    head: str
    cell: Callable[[Case], str]
    kind: LimitKind
    optional: bool = False
    shown: bool = True
    limited: bool = False
    stays: int = 0


class Metric:
    """One metric. A subclass overrides what differs from the defaults, and is listed in `judge/metrics/__init__.py`.

    `limits` are the names that a budget may use; those of a family have the form `pattern`, and `doc` says what they
    are on. `quality` says that it depends on the answers, about which random weights say nothing. `repeat` is its value
    for a repeat run that answers the same as the baseline; None where repeat runs differ by a factor, or where it is
    judged by flips. `noise_name` is its name in the line about noise, for figures that a run has without comparison.
    `numeric` is false where the limit's value is a text. `coarse` limits are written with at most 3 digits.
    `quantized_only` limits make sense only for methods that quantize.
    """

    name: ClassVar[str]
    limits: Sequence[LimitKind] = ()
    pattern: str = ""
    doc: ClassVar[str] = ""
    margin: ClassVar[str] = SAMPLED
    quality: ClassVar[bool] = False
    repeat: ClassVar[float | None] = None
    noise_name: ClassVar[str] = ""
    numeric: ClassVar[bool] = True
    coarse: ClassVar[bool] = False
    quantized_only: ClassVar[bool] = False

    def named(self, name: str) -> LimitKind | None:
        """The limit of that name, of a family that is too large to be listed."""
        return None

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limits that a declared task adds."""
        return ()

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """What must be measured for a limit, besides loading the subject."""
        return ()

    def lacking(self, basis: Basis) -> str | None:
        """What a budget must declare before it may limit this metric, in words; None where nothing is missing."""
        return None

    def figure(self, case: Case) -> Figure:
        """The figure that a limit is judged on. Raises Unmeasured."""
        if not case.kind.relation:
            return self.absolute(case)
        own, other = self.absolute(case), self.absolute(case.of_baseline())
        ours, theirs = format_apart(own.value, other.value, unit=self.unit(own.value, other.value))
        words = f"{ours} against {case.baseline}'s {theirs}"
        sides = {case.method: own.remark, case.baseline: other.remark}
        remark = "; ".join(f"{name}: {text}" for name, text in sides.items() if text)
        return self.bounded(case, Figure(own.value / other.value, words, remark=remark), own, other)

    def absolute(self, case: Case) -> Figure:
        """The figure of one method without comparison. Raises Unmeasured."""
        raise NotImplementedError

    def bounded(self, case: Case, ratio: Figure, own: Figure, other: Figure) -> Figure:
        """A ratio with its bounds, from the figures of both sides."""
        return ratio

    def unit(self, *values: float) -> str:
        """The unit in which the sides of a ratio are told."""
        raise NotImplementedError

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The value of a run of the baseline without comparison, to show how much repeat runs differ."""
        return None

    def timings(self, speed: Speed) -> Sequence[float]:
        """The repeats whose spread is the margin of a factor; none where a run has only one value."""
        return ()

    def peaks(self, speed: Speed) -> Sequence[int]:
        """The repeats whose range is the margin of a peak, bytes; none where a run has only one value."""
        return ()

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """The bounds that the best and the worst outcome would have; None where every bound is possible.

        `totals` says how many questions of a task are asked at most, where that is known.
        """
        return None

    def verdict(self, limit: Limit, name: str, case: Case) -> Verdict | None:
        """The verdict on a limit whose value is no number; None for all others. Raises Unmeasured."""
        return None

    def columns(self, basis: Basis) -> Sequence[Column]:
        """Its columns in the trade-off table."""
        return ()


def tidy(figure: Figure, confidence: float) -> Figure:
    """A figure whose bounds enclose it: bounds and estimate are not always made of the same statistic."""
    if figure.bounds is None:
        return figure
    bounds = Interval(min(figure.bounds.low, figure.value), max(figure.bounds.high, figure.value))
    return replace(figure, bounds=bounds, confidence=figure.confidence or confidence)


def check_devices(case: Case, metric: Metric) -> None:
    """Raise Unmeasured for figures of unlike devices. Workers of one run may use several GPUs of one name.

    With the answers of a stored baseline, answers are compared wherever it was measured.
    """
    own, other = case.record.device, case.measured[case.baseline].device
    if own is None or other is None:
        return
    # Of a server on another machine answers are compared, whatever it runs on; its speed and memory are not.
    if metric.quality and (case.basis.stored or 0 in (own.threads, other.threads)):
        return
    if own.name != other.name:
        raise case.unmeasured(LOAD, f"measured on {own.name}, and {case.baseline} on {other.name}")


def check_cpu(case: Case, metric: Metric, here: str, there: str) -> None:
    """Raise Unmeasured for timings on unlike CPUs, the method's and a stored baseline's: all are the device `cpu`."""
    devices = [record.device for record in (case.record, case.measured.get(case.baseline)) if record is not None]
    on_cpus = all(device is not None and device.name == "cpu" for device in devices)
    if case.kind.relation and metric.margin == FACTOR and on_cpus and here != there:
        raise case.unmeasured(LOAD, f"timed on {here}, and {case.baseline} on {there}")


def bounded(more: Callable[[float], Interval], sizes: Sequence[int]) -> dict[str, Any]:
    """A figure's bounds, and those of more observations; none where the single clusters were not recorded."""
    return {"bounds": more(1.0), "more": more} if sizes else {}


def exponential_mean(sums: Sequence[float], sizes: Sequence[int], confidence: float, times: float = 1.0) -> Interval:
    """Bounds of the exponential of a mean over clusters; see `intervals.clustered_mean`."""
    bounds = intervals.clustered_mean(sums, sizes, confidence, times)
    return Interval(math.exp(bounds.low), math.exp(min(bounds.high, 700.0)) if bounds.high < math.inf else math.inf)


def column(metric: Metric, head: str, name: str, text: Callable[[float], str], **more: Any) -> Column:
    """The column of one of a metric's limits, whose cell is the figure that the limit is judged on."""
    kind = next(kind for kind in metric.limits if kind.name == name)

    def cell(case: Case) -> str:
        return text(metric.figure(case).value)

    return Column(head, cell, kind, **more)
