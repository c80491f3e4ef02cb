"""The limits of a budget in the order in which they are read: what is over first, and what is within with room last."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_quantbudget.core.units import digits_apart, format_value
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, happened
from pytest_quantbudget.report.document import BudgetReport

# What a limit counts as: the outcome of its test, or `undecided` where the data leave it open, whatever its test did.
WORST_FIRST = (OVER, FAILED, NOT_RUN, UNDECIDED, WITHIN, SKIPPED)


@dataclass(frozen=True)
class Ranked:
    """One limit, and its figures as texts in the unit of the limit; empty where there are none.

    `margin` is what is left until the limit, as a share of it: negative where the limit is over; None where there is
    no number, or the limit is 0. `why` is the verdict's message without the names that stand beside it.
    """

    method: str
    limit: LimitReport
    state: str
    margin: float | None
    measured: str
    allowed: str
    bounds: str
    why: str

    @property
    def passed(self) -> bool:
        """Whether its test passed."""
        return self.limit.verdict.outcome == WITHIN

    @property
    def margin_text(self) -> str:
        """`12 %`; `-3.4 %` where the limit is over."""
        return "" if self.margin is None else format_value(100 * self.margin, "%")

    @property
    def observations(self) -> str:
        """On how much the bounds rest: `450 questions`."""
        n, of = self.limit.verdict.n, self.limit.verdict.of
        return f"{n:,} {of}" if n is not None else ""


def ranked(budget: BudgetReport) -> list[Ranked]:
    """All limits of a budget, and what its methods are wanted for, the worst first."""
    found = [*_all(budget)]
    return sorted(found, key=lambda each: (WORST_FIRST.index(each.state), _left(each), each.limit.id))


def _left(each: Ranked) -> float:
    return math.inf if each.margin is None else each.margin


def _all(budget: BudgetReport) -> Iterator[Ranked]:
    for limit in (*budget.uses, *(limit for method in budget.methods for limit in method.limits)):
        verdict = limit.verdict
        # A test that failed says so, whatever the data leave open.
        open_ = verdict.decision == UNDECIDED and verdict.outcome == WITHIN
        yield Ranked(
            method=limit.method,
            limit=limit,
            # What a report calls otherwise is no outcome of a test.
            state=UNDECIDED if open_ else verdict.outcome if verdict.outcome in WORST_FIRST else FAILED,
            margin=_margin(limit),
            why=happened(limit.method, limit.name, verdict.message),
            **_texts(limit),
        )


def _margin(limit: LimitReport) -> float | None:
    measured, allowed = limit.verdict.measured, limit.verdict.limit
    if measured is None or not allowed:
        return None
    left = allowed - measured if limit.name.startswith("max_") else measured - allowed
    return left / abs(allowed)


def _texts(limit: LimitReport) -> dict[str, str]:
    """The figures with as many digits as it takes to see on which side of the limit each is."""
    verdict, texts = limit.verdict, dict.fromkeys(("measured", "allowed", "bounds"), "")
    if verdict.measured is None:
        return {**texts, "allowed": verdict.limit_text}
    digits = 3
    if verdict.limit is not None:
        digits = digits_apart(verdict.limit, [verdict.measured], verdict.unit)
        texts["allowed"] = format_value(verdict.limit, verdict.unit, digits)
    else:
        texts["allowed"] = verdict.limit_text
    ends = ["" if end is None else format_value(end, verdict.unit, digits, show_unit=False) for end in _ends(limit)]
    if any(ends):
        low, high = ends
        texts["bounds"] = f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
    texts["measured"] = format_value(verdict.measured, verdict.unit, digits)
    return texts


def _ends(limit: LimitReport) -> tuple[float | None, float | None]:
    return limit.verdict.low, limit.verdict.high
