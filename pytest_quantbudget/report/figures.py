"""All figures of a report in base units, for other programs: those that a limit would be judged on, limited or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_quantbudget.core.fields import SIZE, TIME
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.units import SIZES, TIMES
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.judge.metrics.base import Case, Figure, Unmeasured, check_cpu, check_devices, tidy
from pytest_quantbudget.report.document import BudgetReport, MethodReport
from pytest_quantbudget.report.table import CpuOf

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Taken:
    """A figure of a method; `name` is that of the limit on it without its `min_` or `max_`, in base units `unit`."""

    method: str
    name: str
    unit: str
    figure: Figure
    kind: LimitKind

    @property
    def low(self) -> float | None:
        """The lower bound; None where there is none."""
        return _finite(self.figure.bounds.low) if self.figure.bounds is not None else None

    @property
    def high(self) -> float | None:
        """The upper bound; None where there is none."""
        return _finite(self.figure.bounds.high) if self.figure.bounds is not None else None


def figures(budget: BudgetReport, cpu_of: CpuOf, only: str | None = None) -> Iterator[Taken]:
    """The figures that are numbers, of a budget's methods or of one of that name.

    `cpu_of` gives the CPU that a method was measured on.
    """
    for method in budget.methods:
        if method.measurement is not None and only in (None, method.name):
            seen = set()
            for kind in _kinds(budget, method):
                name = kind.name.partition("_")[2]
                figure = _figure(budget, method, kind, cpu_of(method)) if name not in seen else None
                if figure is not None:
                    seen.add(name)
                    yield Taken(method.name, name, base_unit(kind), figure, kind)


def base_unit(kind: LimitKind) -> str:
    """The unit of a figure's value: bytes and seconds for sizes and times."""
    return "B" if kind.kind is SIZE else "s" if kind.kind is TIME else kind.unit


def base_of(unit: str) -> str:
    """The base unit of a unit that a user wrote."""
    return "B" if unit in SIZES else "s" if unit in TIMES else unit


def _kinds(budget: BudgetReport, method: MethodReport) -> Iterator[LimitKind]:
    yield from metrics.limit_kinds(task.name for task in budget.tasks).values()
    yield from (limit.kind for limit in method.judged)


def _figure(budget: BudgetReport, method: MethodReport, kind: LimitKind, cpu: str) -> Figure | None:
    metric, basis, measured = metrics.metric_of(kind), budget.basis_of(method), budget.measured_beside(method)
    compared = method.name != budget.baseline and budget.baseline in measured
    if not metric.numeric or metric.lacking(basis) is not None or (kind.relation and not compared):
        return None
    case = Case(basis, kind, method.name, measured, CONFIDENCE)
    try:
        if kind.relation:
            check_devices(case, metric)
        if budget.stored is not None:
            check_cpu(case, metric, cpu, budget.stored.cpu)
        found = tidy(metric.figure(case), CONFIDENCE)
    except Unmeasured:
        return None
    return found if math.isfinite(found.value) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
