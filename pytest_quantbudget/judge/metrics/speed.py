"""Speed: decode throughput, time to first token, and load time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import TIME, number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import LOAD, LoadTime, Part
from pytest_quantbudget.core.units import format_time, format_value, time_unit
from pytest_quantbudget.judge import intervals, sample_size
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.base import FACTOR, Case, Column, Extremes, Figure, Metric, column

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement, Speed


def doubts(speed: Speed) -> tuple[str, ...]:
    """Why timings may not be the method's own, in words: a drift over the repeats, a machine that was slowed down."""
    reasons = []
    drifts = {"time to first token": intervals.drift(speed.ttft_s), "decode time": intervals.drift(speed.decode_s)}
    changes = {name: change for name, change in drifts.items() if change is not None}
    if changes:
        moved = (f"{name} {'rose' if by > 0 else 'fell'} by {100 * abs(by):.0f} %" for name, by in changes.items())
        machine = "slowing down" if max(changes.values()) > 0 else "still warming up"
        reasons.append(f"{' and '.join(moved)} over the {len(speed.ttft_s)} repeats: is the machine {machine}?")
    if speed.throttled:
        reasons.append(f"throttled while it was timed: {', '.join(speed.throttled)}")
    return tuple(reasons)


class Timed(Metric):
    """A figure of the workload's repeats: their median, with bounds from order statistics."""

    coarse = True
    margin = FACTOR

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The workload."""
        return (basis.workload,)

    def repeats(self, speed: Speed) -> Sequence[float]:
        """The figure of each repeat."""
        raise NotImplementedError

    def median(self, speed: Speed) -> float:
        """The median of the repeats."""
        raise NotImplementedError

    def absolute(self, case: Case) -> Figure:
        """The median of the repeats."""
        case.check_packed()
        speed = case.need(case.record.speed(case.basis.workload), case.basis.workload.phase)
        repeats = self.repeats(speed)
        bounds = intervals.median_interval(repeats, case.confidence)
        remark = "; ".join(filter(None, [*doubts(speed), speed.shared, case.record.offloaded]))
        n, ends = len(repeats), (min(repeats), max(repeats))
        return Figure(self.median(speed), f"in {n} repeats", bounds, n=n, of="repeats", range=ends, remark=remark)

    def bounded(self, case: Case, ratio: Figure, own: Figure, other: Figure) -> Figure:
        """Rank-sum bounds of the factor between the repeats of both sides."""
        speeds = [record.speed(case.basis.workload) for record in (case.record, case.measured[case.baseline])]
        ours, theirs = (self.repeats(speed) for speed in speeds if speed is not None)
        bounds = intervals.ratio_interval(ours, theirs, case.confidence)
        remark = "; ".join(filter(None, [ratio.remark, _apart([speed for speed in speeds if speed is not None])]))
        return replace(ratio, bounds=bounds, n=min(len(ours), len(theirs)), of="repeats", remark=remark)

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """Infinite bounds, where there are too few repeats for others."""
        n, enough = basis.workload.repeats, sample_size.fewest_repeats(1 - confidence, paired=bool(kind.relation))
        nothing = Interval(-math.inf, math.inf)
        return Extremes(nothing, nothing, n, "repeats", enough) if n < enough else None

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The median of a run."""
        speed = record.speed(basis.workload)
        return self.median(speed) if speed else None


def _apart(speeds: Sequence[Speed]) -> str:
    """A warning where one side was timed in an earlier run: timings of two runs differ by more than those of one."""
    reused = [speed.origin.at for speed in speeds if speed.origin and speed.origin.reused]
    when = "" if len(reused) == len(speeds) else "".join(reused)
    return f"one side was timed in an earlier run, {when}: runs differ by more than repeats" if when else ""


class TokensPerS(Timed):
    """Decode throughput over the whole batch, the first token of each sequence left out; tokens/s."""

    name = "tokens_per_s"
    noise_name = "tokens/s"
    limits = (
        LimitKind("min_tokens_per_s", "min", "tokens_per_s", "", "tokens/s", number(0), "Decode throughput."),
        LimitKind("min_speedup", "min", "tokens_per_s", "speedup", "x", number(0), "Throughput over the baseline's."),
    )

    def repeats(self, speed: Speed) -> Sequence[float]:
        """Throughput of each repeat."""
        return speed.tokens_per_s

    def median(self, speed: Speed) -> float:
        """The median throughput."""
        return speed.median_tokens_per_s

    def timings(self, speed: Speed) -> Sequence[float]:
        """The decode times."""
        return speed.decode_s

    def unit(self, *values: float) -> str:
        """`tokens/s`."""
        return "tokens/s"

    def columns(self, basis: Basis) -> Sequence[Column]:
        """Throughput, the share of the memory bandwidth that decoding reaches, and the speed-up."""
        return (
            column(self, "tokens/s", "min_tokens_per_s", lambda value: format_value(value, ""), stays=8),
            Column("roofline", _roofline, self.limits[0], optional=True, stays=1),
            column(self, "speed-up", "min_speedup", lambda value: f"{value:.2f}x", stays=7),
        )


def _roofline(case: Case) -> str:
    phase = case.basis.workload.phase
    case.check_packed()
    speed = case.need(case.record.speed(case.basis.workload), phase)
    return f"{format_value(100 * case.need(speed.roofline, phase).fraction, '', 2)} %"


class Ttft(Timed):
    """Time to first token: the prefill of the workload's prompt; seconds."""

    name = "ttft"
    noise_name = "first token"
    limits = (
        LimitKind("max_ttft", "max", "ttft", "", "", TIME, "Time to first token: prefill of the workload's prompt."),
        LimitKind("max_ttft_ratio", "max", "ttft", "ratio", "", number(0), "Time to first token over the baseline's."),
    )

    def repeats(self, speed: Speed) -> Sequence[float]:
        """The time of each repeat."""
        return speed.ttft_s

    def median(self, speed: Speed) -> float:
        """The median time."""
        return speed.median_ttft_s

    def timings(self, speed: Speed) -> Sequence[float]:
        """The times."""
        return speed.ttft_s

    def unit(self, *values: float) -> str:
        """That of the longer."""
        return time_unit(*values)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The median time."""
        return (column(self, "first token", "max_ttft", format_time, stays=5),)


class LoadSeconds(Metric):
    """How long it takes to load the subject; seconds."""

    name = "load_time"
    noise_name = "load time"
    coarse = True
    margin = FACTOR
    limits = (
        LimitKind(
            "max_load_time", "max", "load_time", "", "", TIME, "From local files to a model ready on its device."
        ),
    )

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The load time."""
        return (LoadTime(),)

    def absolute(self, case: Case) -> Figure:
        """The time."""
        case.check_packed()
        case.check_told(self.name, LOAD)
        return Figure(case.need(case.record.load_time_s, LOAD))

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The time of a run."""
        return record.load_time_s
