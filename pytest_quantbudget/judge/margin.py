"""What a limit that reads `auto` would be: the measured value plus a margin for noise. Knows no pytest, no torch.

The margin is that of a prediction: a run of the same thing (a repeat run) differs from this one by the noise of both.
It is so wide that no more than a stated share of repeat runs (the rate) fails.
"""

from __future__ import annotations

import decimal
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import yaml

from pytest_quantbudget.core import limits, units
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.judge import distributions
from pytest_quantbudget.judge.metrics import figure, metric_of, task_limits
from pytest_quantbudget.judge.metrics.base import COUNTED, FACTOR, ONCE, RANGE, Figure
from pytest_quantbudget.judge.needs import RUNS

RATE = 0.01  # of repeat runs that may fail
FEWEST = 4  # repeats or runs, from which a spread is taken
WIDEST = math.log(10)  # a wider margin of a time or a rate says that nothing is known, and bounds nothing
SUREST = 1 - 1e-12  # confidence up to which bounds can be computed
MAX_DIGITS = 12  # more of a limit than of a limit for people


class NoMargin(Exception):
    """No limit can be made of what was measured; the message says why."""


@dataclass(frozen=True)
class Calibrated:
    """A limit that a measured value asks for: in base units, as a budget says it, and how it came about in words."""

    value: float
    text: str
    words: str


def calibrated(
    budget: Budget,
    method: str,
    limit: Limit,
    unit: str,
    measured: Mapping[str, Measurement],
    rate: float = RATE,
    runs: Mapping[str, Sequence[float]] | None = None,
) -> Calibrated:
    """The limit for a method's figure, written in `unit` (any where that is empty).

    `runs` has, by metric, the value of each of several repeat runs of the baseline, where there are any. Raises
    metrics.base.Unmeasured where there is no figure, and NoMargin.
    """
    found = figure(budget.basis_of(method), method, limit, measured)
    sides = [method, *([budget.baseline] if limit.kind.relation and budget.baseline is not None else [])]
    _check_decidable(limit, found)
    metric = metric_of(limit.kind)
    if metric.margin == ONCE:
        raise NoMargin("it happened once, and by how much another time would differ is not known: write a number")
    if metric.margin == COUNTED:
        value, source = found.value, "counted, not sampled"
    elif metric.margin == RANGE:
        value, source = _memory(budget, limit, found, [measured[side] for side in sides])
    elif metric.margin == FACTOR:
        values = (runs or {}).get(metric.name, ())
        spread, source = _factor(budget, limit, [measured[side] for side in sides], rate, values)
        value = found.value * math.exp(spread if limit.kind.bound == "max" else -spread)
    else:
        value, source = _sampled(budget, method, limit, found, measured, rate)
    if limit.kind.relation == "drop":
        value = max(0.0, value)  # a method that is better has none
    return _written(limit, found.value, value, unit, source)


def _check_decidable(limit: Limit, found: Figure) -> None:
    """Under `undecided: fail`, a figure whose bounds are infinite fails at any limit."""
    if limit.judging.undecided == limits.FAIL and found.more_of:
        raise NoMargin(f"it takes {found.more_of} to bound it, and `undecided: fail` fails at any limit without")
    if limit.judging.undecided != limits.FAIL or found.bounds is None:
        return
    if not math.isfinite(found.bounds.high if limit.kind.bound == "max" else found.bounds.low):
        level = _percent(limit.judging.confidence)
        raise NoMargin(f"{found.n} {found.of} give no bound at {level}, and `undecided: fail` fails at any limit then")


def _sampled(
    budget: Budget, method: str, limit: Limit, found: Figure, measured: Mapping[str, Measurement], rate: float
) -> tuple[float, str]:
    """For what is taken on a sample of questions, answers or windows: a bound of the figure itself.

    Two equal samples differ with the square root of 2 of one's standard error, so the bound is as many standard errors
    away as that asks for. Bounds of these figures do not collapse where nothing differed, so neither does the margin.
    `undecided: fail` judges a run by its own bound, which is farther out by as much as its confidence asks for.
    `undecided: pass` lets more through than the estimate does, and gets the same limit.
    """
    if found.bounds is None:
        raise NoMargin("its single answers or windows were not recorded: --quant-refresh measures it anew")
    reach = math.sqrt(2) * distributions.normal_quantile(1 - rate)
    if limit.judging.undecided == limits.FAIL:
        reach += distributions.normal_quantile(found.confidence)
    level = min(statistics.NormalDist().cdf(reach), SUREST)
    value, bound = _bound(budget, method, limit, measured, level)
    if not math.isfinite(value):
        raise NoMargin(f"{found.n} {found.of} give no bound at {_percent(level)}")
    if limit.kind.relation == "drop" and limit.judging.undecided != limits.FAIL:
        # A drop is at most the flips, so what bounds these bounds it too, and where nothing flipped by less.
        flips = next(kind for kind in task_limits(limit.kind.task) if kind.relation == "flips")
        value = min(value, _bound(budget, method, replace(limit, kind=flips), measured, level)[0])
    return value, f"the {_percent(bound.confidence)} bound of {found.n:,} {found.of}"


def _percent(confidence: float) -> str:
    """`95 %`, `99.95 %`: with two digits of what is left to 100."""
    return f"{100 * confidence:.{max(0, math.floor(-math.log10(1 - confidence)) - 1)}f} %"


def _bound(
    budget: Budget, method: str, limit: Limit, measured: Mapping[str, Measurement], level: float
) -> tuple[float, Figure]:
    """The bound on a limit's side, at another confidence than the limit is judged with."""
    wider = replace(limit, judging=replace(limit.judging, confidence=level))
    wide = figure(budget.basis_of(method), method, wider, measured)
    assert wide.bounds is not None
    return (wide.bounds.high if limit.kind.bound == "max" else wide.bounds.low), wide


def _memory(budget: Budget, limit: Limit, found: Figure, records: Sequence[Measurement]) -> tuple[float, str]:
    """Peaks are counted, and differ by what the allocator did: the range of the repeats' is added."""
    metric = metric_of(limit.kind)
    peaks = [metric.of_run(budget.basis, record) or 0 for record in records]
    ranges = [_range(metric.peaks(speed)) for speed in _speeds(budget, records)]
    sides = list(zip(peaks, ranges, strict=True))
    own, other = sides[0], sides[1] if len(sides) > 1 else (1, 0)
    widest = max(spread for _, spread in sides)
    agree = f"peaks of the repeats that differ by {units.format_size(widest)}" if widest else "equal peaks"
    if other[1] >= other[0]:
        raise NoMargin("the repeats' peaks differ by more than they are")
    return max(found.value, (own[0] + own[1]) / (other[0] - other[1])), agree


def _range(peaks: Sequence[int]) -> int:
    return max(peaks) - min(peaks) if peaks else 0


def _factor(
    budget: Budget, limit: Limit, records: Sequence[Measurement], rate: float, runs: Sequence[float]
) -> tuple[float, str]:
    """The margin of a time, a rate or a ratio of them, as the logarithm of a factor, and which noise it is for.

    Repeat runs of the baseline show how much runs differ; two of them by the square root of 2 of that: a prediction
    interval of the normal distribution (Hahn and Meeker 1991, "Statistical Intervals", chapter 4). Sides of a ratio
    vary on their own, and their variances add. The repeats of one run know nothing of that, and give no margin.

    `undecided: fail` judges a run by one of its repeats, at worst the slowest; of a ratio, by the slowest over the
    fastest. Each of them gets a part of the rate.
    """
    metric = metric_of(limit.kind)
    repeats = [times for speed in _speeds(budget, records) if (times := metric.timings(speed))]
    strict = limit.judging.undecided == limits.FAIL and bool(repeats)
    if len(runs) < FEWEST:
        why = f"{len(runs)} runs of the baseline do not show how much runs differ"
        raise NoMargin(f"{why}: measure with a `baseline` and --quant-noise {RUNS}")
    share = rate / 2 if strict else rate
    spread = distributions.t_quantile(1 - share, len(runs) - 1) * math.sqrt(2 * len(records)) * _deviation(runs)
    told = [f"the spread of {len(runs)} runs of {budget.repeated.name if budget.repeated is not None else ''}"]
    if strict:
        fewest = min(map(len, repeats))
        if fewest < FEWEST:
            raise NoMargin(f"{fewest} repeats show no spread, {FEWEST} do (`repeats` of the workload)")
        share /= math.prod(map(len, repeats))
        variance = sum(_deviation(times) ** 2 * (1 + 1 / len(times)) for times in repeats)
        spread += distributions.t_quantile(1 - share, fewest - 1) * math.sqrt(variance)
        told.append(f"the spread of {fewest} repeats of this run")
    if not 0 < spread <= WIDEST:
        why = f"a factor of {math.exp(min(spread, 700.0)):,.3g}" if spread else "none at all"
        raise NoMargin(f"{' and '.join(told)} asks for {why} as a margin, which says nothing")
    return spread, " and ".join(told)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(map(math.log, values))


def _speeds(budget: Budget, records: Sequence[Measurement]) -> Iterator[Speed]:
    yield from (speed for record in records if (speed := record.speed(budget.workload)) is not None)


def _written(limit: Limit, measured: float, value: float, unit: str, source: str) -> Calibrated:
    """The limit as text, rounded away from the measured value.

    To 3 digits, or 1 decimal of points and percent; to more where that would widen the margin of a sampled figure by
    more than its half, or give what the budget's grammar refuses (a score of 0).
    """
    unit = unit or limit.kind.unit_of(value)
    scale = Decimal(units.factor(unit))
    exact, margin = Decimal(value) / scale, Decimal(abs(value - measured)) / scale
    first = 1 if unit in ("points", "%") else 2 - (exact.adjusted() if exact else 0)
    why = ""
    for decimals in range(first, first + MAX_DIGITS):
        way = decimal.ROUND_CEILING if limit.kind.bound == "max" else decimal.ROUND_FLOOR
        rounded = exact.quantize(Decimal(1).scaleb(-decimals), rounding=way)
        text = _plain(rounded, 1 if unit in ("points", "%") else 0)
        if unit != limit.kind.unit:  # of a size or a time
            text += f" {unit}"
        try:
            read = float(limit.kind.kind.read(yaml.safe_load(text)))
        except ValueError as error:
            why = str(error)
            continue
        if metric_of(limit.kind).coarse or not margin or abs(rounded - exact) <= margin / 2:
            words = f"measured {units.format_value(measured, unit)}, margin {_margin(limit, measured, read)} ({source})"
            return Calibrated(read, text, words)
    raise NoMargin(f"no limit is wide enough: it {why}")


def _plain(number: Decimal, decimals: int) -> str:
    """`1230`, `0.51`, `3.0`: without an exponent, which YAML would take for text, or zeros at the end."""
    text = f"{number:f}"
    whole, _, rest = text.partition(".")
    rest = rest.rstrip("0").ljust(decimals, "0")
    return f"{whole}.{rest}" if rest else whole


def _margin(limit: Limit, measured: float, value: float) -> str:
    """How far the limit is from the measured value: in points or nats, else as a share, where it is one of anything."""
    unit = {"%": "points"}.get(limit.kind.unit, limit.kind.unit)
    if unit in ("points", "nats") or not measured:
        return units.format_value(abs(value - measured), unit)
    return f"{units.format_value(100 * abs(value / measured - 1), '')} %"
