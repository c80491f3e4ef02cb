"""What changed against the last comparable run, with the figures of all such runs as a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.units import digits_apart, format_value
from pytest_quantbudget.judge.trend import Moved
from pytest_quantbudget.report.document import BudgetReport

WIDE, HIGH = 120, 22  # of a line


@dataclass(frozen=True)
class Trend:
    """One figure: `change` in words, whether it is `marked` as more than runs differ by, and its line as SVG points."""

    moved: Moved
    before: str
    now: str
    change: str
    said: str
    marked: bool
    line: str
    end: tuple[float, float] | None


def trends(budget: BudgetReport) -> list[Trend]:
    """What got worse beyond noise first, then what got better, then the rest."""
    found = sorted(budget.changes, key=lambda each: (not each.beyond_noise, not each.worse))
    return [_trend(each) for each in found]


def _trend(moved: Moved) -> Trend:
    digits = digits_apart(moved.now, [moved.before], moved.unit)
    line = _line([value for value in moved.trend if math.isfinite(value)])
    return Trend(
        moved=moved,
        before=format_value(moved.before, moved.unit, digits),
        now=format_value(moved.now, moved.unit, digits),
        change="-" if moved.change is None else f"{moved.change:+.3g} {moved.of}",
        said=_said(moved),
        marked=bool(moved.beyond_noise),
        line=" ".join(f"{x},{y}" for x, y in line),
        end=line[-1] if line else None,
    )


def _said(moved: Moved) -> str:
    if moved.now == moved.before:
        return "the same"
    way = "worse" if moved.worse else "better"
    if moved.beyond_noise is None:
        return f"{way}; too few runs to tell noise"
    return f"{way}, more than runs differ by" if moved.beyond_noise else f"{way}, within what runs differ by"


def _line(values: Sequence[float]) -> list[tuple[float, float]]:
    if len(values) < 2:
        return []
    low, high = min(values), max(values)
    step = (WIDE - 8) / (len(values) - 1)

    def at(value: float) -> float:
        return round(HIGH - 4 - (HIGH - 8) * ((value - low) / (high - low) if high > low else 0.5), 1)

    return [(round(4 + step * number, 1), at(value)) for number, value in enumerate(values)]
