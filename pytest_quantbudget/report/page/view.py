"""What the templates show of a report: words and numbers, chosen and put in order. No markup is made here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.report import table
from pytest_quantbudget.report.document import BudgetReport, Report
from pytest_quantbudget.report.layout import Cells
from pytest_quantbudget.report.page.usage import Usage, usage
from pytest_quantbudget.report.ranked import WORST_FIRST, Ranked, ranked

# What is said of so many limits in one state.
SAID = {
    OVER: ("over", "over"),
    FAILED: ("could not be judged", "could not be judged"),
    NOT_RUN: ("was not run", "were not run"),
    UNDECIDED: ("undecided", "undecided"),
    WITHIN: ("within", "within"),
    SKIPPED: ("skipped", "skipped"),
}
BAD = (OVER, FAILED, NOT_RUN)
NOTHING = "nothing judged"


@dataclass(frozen=True)
class Row:
    """A limit with its figures, and how much of it is used up; `where` is its line in the budget, as FILE:LINE."""

    each: Ranked
    usage: Usage | None
    where: str


@dataclass(frozen=True)
class Verdict:
    """What became of several limits: the worst `state` among them, in words, and how many have which."""

    state: str
    words: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class BudgetView:
    """One budget. `number` (from 1) makes names of places on the page; rows are the worst first."""

    number: int
    report: BudgetReport
    verdict: Verdict
    wanting: Sequence[Row]
    kept: Sequence[Row]
    table: Sequence[Cells]


@dataclass(frozen=True)
class Page:
    """The whole page. `facts` are terms and what is known of them: machine, commit, times."""

    title: str
    report: Report
    verdict: Verdict
    budgets: Sequence[BudgetView]
    facts: Sequence[tuple[str, str]]


def page(report: Report) -> Page:
    """What the page of a report shows."""
    budgets = [_budget(number, budget, report) for number, budget in enumerate(report.budgets, 1)]
    counts: Counter[str] = Counter()
    for each in budgets:
        counts.update(dict(each.verdict.counts))
    verdict = _verdict(counts)
    names = ", ".join(budget.file for budget in report.budgets)
    return Page(f"{verdict.words}: {names}", report, verdict, budgets, list(_facts(report)))


def _budget(number: int, budget: BudgetReport, report: Report) -> BudgetView:
    limits = ranked(budget)
    rows = [Row(each, usage(each), f"{budget.file}:{each.limit.line}") for each in limits]
    return BudgetView(
        number=number,
        report=budget,
        verdict=_verdict(Counter(each.state for each in limits)),
        wanting=[row for row in rows if row.each.state not in (WITHIN, SKIPPED)],
        kept=[row for row in rows if row.each.state in (WITHIN, SKIPPED)],
        table=table.columns(budget, report.machine.cpu),
    )


def _verdict(counts: Counter[str]) -> Verdict:
    total = counts.total()
    worst = next((state for state in WORST_FIRST if counts[state]), SKIPPED)
    if worst == WITHIN:
        judged = total - counts[SKIPPED]
        words = f"All {judged} limits are within" if judged > 1 else "The limit is within"
        words += f", {counts[SKIPPED]} skipped" if counts[SKIPPED] else ""
    elif worst in BAD:
        told = [f"{counts[s]} {SAID[s][counts[s] > 1]}" for s in BAD if counts[s]]
        words = f"{', '.join(told)} of {total} limit{'s' if total > 1 else ''}"
    else:
        words = f"{counts[worst]} of {total} limits {SAID[worst][1]}" if total else NOTHING
    return Verdict(worst, words, tuple((state, counts[state]) for state in WORST_FIRST if counts[state]))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    machine, commit = report.machine, report.commit
    yield "Written", report.created
    if report.judged_from is not None:
        yield "Judged from", f"{report.judged_from.file}, measured {report.judged_from.measured}"
    if commit is not None:
        yield "Commit", f"{commit.sha}{', with changes that are not committed' if commit.dirty else ''}"
    yield "Platform", machine.platform
    memory = f", {format_size(machine.ram)} of memory" if machine.ram else ""
    yield "CPU", f"{machine.cpu}, {machine.cores} cores{memory}"
    for gpu in machine.gpus:
        yield f"GPU {gpu.index}", f"{gpu.name}, {format_size(gpu.total)}, driver {gpu.driver}"
    yield "Python", machine.python
    yield from machine.libraries.items()
