"""Memory by phase beside the estimate, and repeats as dots: places from 0 to 100 of a row's width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.gpu_usage import PhaseMemory
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.core.units import format_time, format_value, size_unit
from pytest_quantbudget.report.document import BudgetReport, MethodReport

WEIGHTS, WORKING, RESERVED, OUTSIDE = "weights", "cache and activations", "reserved, not in use", "outside of torch"
PARTS = (WEIGHTS, WORKING, RESERVED, OUTSIDE)
ESTIMATE = "estimate"


@dataclass(frozen=True)
class Segment:
    """A part of a bar: which of PARTS, its size in words, where it begins and how wide it is."""

    part: str
    size: str
    start: float
    width: float


@dataclass(frozen=True)
class Bar:
    """Memory of one phase, or of the estimate; `words` say the sum."""

    phase: str
    words: str
    segments: Sequence[Segment]


@dataclass(frozen=True)
class MemoryOf:
    """The bars of one method."""

    method: str
    bars: Sequence[Bar]


def memory(budget: BudgetReport) -> tuple[list[MemoryOf], list[str]]:
    """Each method's bars, all on one scale, and the parts that occur in them.

    Where there is no GPU, what was measured and what was predicted are the weights alone.
    """
    found = {method.name: list(_sizes(method, budget)) for method in budget.methods}
    rows = {name: bars for name, bars in found.items() if bars}
    most = max((sum(parts.values()) for bars in rows.values() for _, parts, _ in bars), default=0)
    if not most:
        return [], []
    unit = size_unit(most)
    told = [MemoryOf(name, [_bar(*each, most, unit) for each in bars]) for name, bars in rows.items()]
    used = {segment.part for row in told for bar in row.bars for segment in bar.segments}
    return told, [part for part in PARTS if part in used]


def _sizes(method: MethodReport, budget: BudgetReport) -> Iterator[tuple[str, dict[str, float], str]]:
    """Phases, their parts in bytes, and what stands in front of the sum."""
    record, estimate = method.measurement, method.estimate
    speed = record.speed(budget.workload) if record is not None else None
    phases = [*([record.load_memory] if record and record.load_memory else []), *(speed.memory if speed else ())]
    on_gpu = bool(phases) or (speed is not None and speed.peak_allocated is not None)
    if record is not None:
        for phase in phases:
            yield phase.phase, _of_phase(phase, record), ""
        if not phases and speed is not None and speed.peak_allocated is not None:
            yield "workload", _split(speed.peak_allocated, speed.peak_reserved, None, record), ""
        if not on_gpu and record.weights:
            yield "loaded", {WEIGHTS: record.weights}, ""
    if estimate is not None and record is not None:
        least = "at least " if estimate.at_least else ""
        if on_gpu:
            rest = max(0, estimate.peak - estimate.weights)
            outside = max(0, estimate.process - estimate.peak)
            yield ESTIMATE, {WEIGHTS: estimate.weights, WORKING: rest, OUTSIDE: outside}, least
        else:
            yield ESTIMATE, {WEIGHTS: estimate.weights}, least


def _of_phase(phase: PhaseMemory, record: Measurement) -> dict[str, float]:
    total = phase.total
    outside = max(0, total.process - total.reserved) if total.process is not None else total.overhead
    return _split(total.allocated, total.reserved, outside, record)


def _split(allocated: int, reserved: int | None, outside: int | None, record: Measurement) -> dict[str, float]:
    weights = min(record.weights or 0, allocated)
    unused = max(0, (reserved or 0) - allocated)
    return {WEIGHTS: weights, WORKING: allocated - weights, RESERVED: unused, OUTSIDE: max(0, outside or 0)}


def _bar(phase: str, parts: dict[str, float], least: str, most: float, unit: str) -> Bar:
    segments, start = [], 0.0
    for part, size in parts.items():
        if size > 0:
            width = 100 * size / most
            segments.append(Segment(part, format_value(size, unit), round(start, 2), round(width, 2)))
            start += width
    return Bar(phase, f"{least}{format_value(sum(parts.values()), unit)}", segments)


@dataclass(frozen=True)
class Dots:
    """The repeats of one method: places, that of the median, and in words the median and the range."""

    method: str
    at: Sequence[float]
    median: float
    words: str
    range: str


@dataclass(frozen=True)
class Strip:
    """One timing of all methods on one scale, whose ends are in words."""

    name: str
    start: str
    end: str
    rows: Sequence[Dots]


def strips(budget: BudgetReport) -> list[Strip]:
    """Tokens/s and time to first token of every repeat."""
    speeds = {name: record.speed(budget.workload) for name, record in budget.measured.items()}
    timed = {name: speed for name, speed in speeds.items() if speed is not None}
    if not timed:
        return []
    return [
        _strip("Tokens/s", timed, lambda speed: speed.tokens_per_s, lambda s: s.median_tokens_per_s, _rate),
        _strip("Time to first token", timed, lambda speed: speed.ttft_s, lambda s: s.median_ttft_s, format_time),
    ]


def _rate(value: float) -> str:
    return format_value(value, "")


def _strip(
    name: str,
    speeds: dict[str, Speed],
    repeats: Callable[[Speed], Sequence[float]],
    median: Callable[[Speed], float],
    told: Callable[[float], str],
) -> Strip:
    every = [value for speed in speeds.values() for value in repeats(speed)]
    low, high = min(every), max(every)

    def at(value: float) -> float:
        # A little room at both ends, so that no dot is cut.
        return round(2 + 96 * ((value - low) / (high - low) if high > low else 0.5), 2)

    rows = [
        Dots(
            method,
            [at(value) for value in repeats(speed)],
            at(median(speed)),
            told(median(speed)),
            f"{told(min(repeats(speed)))} to {told(max(repeats(speed)))}",
        )
        for method, speed in speeds.items()
    ]
    return Strip(name, told(low), told(high), rows)
