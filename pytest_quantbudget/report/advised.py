"""The advice of a run as lines below its table."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_quantbudget.core.safetext import Line
from pytest_quantbudget.core.verdict import OVER, SKIPPED, WITHIN
from pytest_quantbudget.judge.advice import DOMINATED, FRONT, MEETS, MISSES, UNKNOWN, Advice, Standing, unknown
from pytest_quantbudget.report import layout
from pytest_quantbudget.report.document import BudgetReport

REASON_CHARACTERS = 120
GROUPS = ((MEETS, "meet all limits"), (MISSES, "miss some"), (UNKNOWN, "unknown"))


def lines(budget: BudgetReport) -> Iterator[Line]:
    """Who meets every limit, who is dominated, what fits which use, and what became of the uses that were asked for."""
    advice = budget.advice
    if advice is not None:
        told = [(words, [s for s in advice.methods if s.limits == state]) for state, words in GROUPS]
        groups = [f"{words}: {', '.join(map(_with_limits, found))}" for words, found in told if found]
        yield Line(f"advice: {'; '.join(groups)}")
        yield from (Line(f"advice: {text}") for text in _places(advice))
        for fit in advice.fits:
            yield Line(f"advice: {fit.use}: {f'{fit.method}, {fit.why}' if fit.method else fit.why}")
    for use in budget.uses:
        outcome = use.verdict.outcome
        if outcome != WITHIN:
            markup = "yellow" if outcome == SKIPPED else "red"
            yield Line(f"{'not met' if outcome == OVER else outcome}: {use.verdict.message}", markup={markup: True})


def _with_limits(standing: Standing) -> str:
    return f"{standing.method} ({layout.clipped(standing.why, REASON_CHARACTERS)})" if standing.why else standing.method


def _places(advice: Advice) -> Iterator[str]:
    """The methods that none is better than, the others with what is better, and those of which not enough is known."""
    front = [standing.method for standing in advice.methods if standing.place == FRONT]
    without = f" (without {_listed(advice.without)})" if advice.without else ""
    if front:
        yield f"by {_listed(advice.axes)}{without}, none is better than {_listed(front, 'or')}"
    reasons: dict[str, list[str]] = {}
    for standing in advice.methods:
        because = layout.clipped(standing.because, REASON_CHARACTERS)
        if standing.place == DOMINATED:
            yield f"{standing.by} is better than {standing.method}: {because}"
        if standing.place == UNKNOWN:
            reasons.setdefault(because, []).append(standing.method)
    yield from (f"{told}: {why}" for why, names in reasons.items() for told in unknown(names))


def _listed(names: tuple[str, ...] | list[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
