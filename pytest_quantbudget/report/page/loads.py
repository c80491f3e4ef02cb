"""Requests under load, level by level: what limits judge at the worst or the best level, for each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.load import Level
from pytest_quantbudget.core.units import format_time, format_value
from pytest_quantbudget.judge.intervals import quantile
from pytest_quantbudget.judge.metrics.base import Case, Unmeasured
from pytest_quantbudget.judge.metrics.latency import Latency, TpotUnderLoad, TtftUnderLoad, failed
from pytest_quantbudget.judge.metrics.load import Goodput
from pytest_quantbudget.report.document import BudgetReport, MethodReport
from pytest_quantbudget.report.figures import CONFIDENCE

UNKNOWN, LATE = "—", "failed"
SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class LevelRow:
    """One level in words; `ttft` and `tpot` are percentiles 50, 95 and 99, of which failed requests are the latest."""

    method: str
    level: str
    throughput: str
    goodput: str
    ttft: Sequence[str]
    tpot: Sequence[str]
    errors: str


def levels(budget: BudgetReport) -> list[LevelRow]:
    """The levels of each method that was measured under load, in the order of the budget."""
    return [row for method in budget.methods for row in _of(budget, method)]


def _of(budget: BudgetReport, method: MethodReport) -> Iterator[LevelRow]:
    if method.measurement is None or method.load is None:
        return
    result = method.measurement.load(method.load)
    case = Case(budget.basis_of(method), Goodput.limits[0], method.name, budget.measured, CONFIDENCE)
    for level in result.levels if result is not None else ():
        yield LevelRow(
            method=method.name,
            level=level.name,
            throughput=f"{format_value(level.throughput, '')} tokens/s" if level.whole else UNKNOWN,
            goodput=_goodput(case, level),
            ttft=_percentiles(TtftUnderLoad(), case, level),
            tpot=_percentiles(TpotUnderLoad(), case, level),
            errors=failed(level) or f"0 of {len(level.served):,}",
        )


def _goodput(case: Case, level: Level) -> str:
    """The share of requests that meet the method's latency limits, where there are such."""
    try:
        hit = Goodput().hits(case)
    except Unmeasured:
        return UNKNOWN
    return format_value(sum(map(hit, level.served)) / len(level.served), "")


def _percentiles(metric: Latency, case: Case, level: Level) -> Sequence[str]:
    try:
        metric.check_waits(case)
    except Unmeasured:
        return (UNKNOWN,) * len(SHARES)
    found = [quantile(metric.values(level), share) for share in SHARES]
    return [format_time(value) if math.isfinite(value) else LATE for value in found]
