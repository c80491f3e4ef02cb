"""What the templates show of a report: words and numbers, chosen and put in order. No markup is made here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.safetext import Line
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.judge import noise
from pytest_quantbudget.judge.advice import Standing
from pytest_quantbudget.report import advised, table
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.layout import Cells
from pytest_quantbudget.report.page import answers, bars, history, loads, points
from pytest_quantbudget.report.page.answers import Flips, Texts
from pytest_quantbudget.report.page.bars import MemoryOf, Strip
from pytest_quantbudget.report.page.history import Trend
from pytest_quantbudget.report.page.loads import LevelRow
from pytest_quantbudget.report.page.plot import Plot, plot
from pytest_quantbudget.report.page.usage import Usage, usage
from pytest_quantbudget.report.ranked import WORST_FIRST, Ranked, ranked

# What is said of so many limits in one state.
SAID = {
    OVER: ("is over", "are over"),
    FAILED: ("could not be judged", "could not be judged"),
    NOT_RUN: ("was not run", "were not run"),
    UNDECIDED: ("is undecided", "are undecided"),
    SKIPPED: ("was skipped", "were skipped"),
}
BAD = (OVER, FAILED, NOT_RUN)
NOTHING = "nothing judged"
REPLY_CHARACTERS = 2_000


@dataclass(frozen=True)
class Row:
    """A limit with its figures, how much of it is used up, and where it stands in the budget.

    `where` is FILE:LINE, and `at` the numbers of file and line on the page, None where the text is not there.
    """

    each: Ranked
    usage: Usage | None
    where: str
    at: tuple[int, int] | None


@dataclass(frozen=True)
class Verdict:
    """What became of several limits: the worst `state` among them, in words, and how many have which."""

    state: str
    words: str
    counts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Charts:
    """Quality against memory and against speed, as far as two methods have both; `standing` is what is said of each."""

    quality: points.Axis
    plots: Sequence[Plot]


@dataclass(frozen=True)
class SourceLine:
    """A line of a budget's file, with the states of the limits that stand in it, the worst first."""

    number: int
    text: str
    states: Sequence[str]


@dataclass(frozen=True)
class SourceView:
    """A file that a budget was read from."""

    number: int
    file: str
    lines: Sequence[SourceLine]


@dataclass(frozen=True)
class BudgetView:
    """One budget. `number` (from 1) makes names of places on the page; rows are the worst first."""

    number: int
    report: BudgetReport
    model: str
    verdict: Verdict
    wanting: Sequence[Row]
    kept: Sequence[Row]
    table: Sequence[Cells]
    charts: Sequence[Charts]
    axes: tuple[points.Axis, points.Axis]
    standings: dict[str, Standing]
    missing: set[str]
    advice: Sequence[Line]
    memory: Sequence[MemoryOf]
    parts: Sequence[str]
    levels: Sequence[LevelRow]
    strips: Sequence[Strip]
    noise: str
    flips: Sequence[Flips]
    trends: Sequence[Trend]
    replies: Sequence[tuple[str, str]]
    sources: Sequence[SourceView]

    def look(self, method: str) -> str:
        """How the point of a method is drawn: `front`, `dominated`, or `alone` where nothing is said of it."""
        standing = self.standings.get(method)
        return standing.place if standing is not None else "alone"

    @property
    def loaded(self) -> list[MethodReport]:
        """The methods that were loaded."""
        return [method for method in self.report.methods if method.measurement is not None]


@dataclass(frozen=True)
class Page:
    """The whole page. `facts` are terms and what is known of them; `rows` and `texts` are JSON for the browser."""

    title: str
    report: Report
    verdict: Verdict
    budgets: Sequence[BudgetView]
    facts: Sequence[tuple[str, str]]
    libraries: Sequence[tuple[str, str]]
    notes: Sequence[str]
    rows: str
    texts: str
    left_out: int


def page(report: Report) -> Page:
    """What the page of a report shows."""
    texts = Texts()
    rows = answers.data(report.budgets, texts)
    budgets = [_budget(number, budget, report) for number, budget in enumerate(report.budgets, 1)]
    counts: Counter[str] = Counter()
    for each in budgets:
        counts.update(dict(each.verdict.counts))
    verdict = _verdict(counts)
    records = [record for budget in report.budgets for record in budget.measured.values()]
    noted = [report.notes] + [record.notes for record in records] + [b.noise.notes for b in report.budgets if b.noise]
    return Page(
        title=f"{verdict.words}: {', '.join(budget.heading for budget in report.budgets)}",
        report=report,
        verdict=verdict,
        budgets=budgets,
        facts=list(_facts(report)),
        libraries=list(report.machine.libraries.items()),
        notes=list(dict.fromkeys(note for notes in noted for note in notes)),
        rows=answers.as_json(rows),
        texts=answers.as_json(list(texts.numbers)),
        left_out=texts.left_out,
    )


def _budget(number: int, budget: BudgetReport, report: Report) -> BudgetView:
    limits = ranked(budget)
    rows = [Row(each, usage(each), *_place(each, budget)) for each in limits]
    axes = points.memory(budget), points.speed(budget)
    qualities = list(points.qualities(budget))
    charts = [Charts(quality, [p for axis in axes if (p := plot(axis, quality)) is not None]) for quality in qualities]
    memory, parts = bars.memory(budget)
    advice = budget.advice
    return BudgetView(
        number=number,
        report=budget,
        model=Path(budget.model).name if Path(budget.model).is_absolute() else budget.model,
        verdict=_verdict(Counter(each.state for each in limits)),
        wanting=[row for row in rows if not _is_fine(row.each)],
        kept=[row for row in rows if _is_fine(row.each)],
        table=table.columns(budget, report.cpu_of),
        charts=[chart for chart in charts if chart.plots],
        axes=axes,
        standings={standing.method: standing for standing in advice.methods} if advice is not None else {},
        missing={row.each.method for row in rows if row.each.state in BAD},
        advice=list(advised.lines(budget)),
        memory=memory,
        parts=parts,
        levels=loads.levels(budget),
        strips=bars.strips(budget),
        noise=noise.line(budget.noise) if budget.noise is not None else "",
        flips=answers.flips(budget),
        trends=history.trends(budget),
        replies=list(_replies(budget)),
        sources=_sources(budget, rows),
    )


def _is_fine(each: Ranked) -> bool:
    """Whether there is nothing to do about a limit."""
    return each.state in (WITHIN, SKIPPED) and not each.limit.verdict.anomalous


def _place(each: Ranked, budget: BudgetReport) -> tuple[str, tuple[int, int] | None]:
    """Where a limit stands: in the first of the budget's files whose line of that number has its name."""
    number, name = each.limit.line, re.compile(rf"\b{re.escape(each.limit.name)}\b")
    for file, source in enumerate(budget.sources, 1):
        lines = source.text.splitlines()
        if 0 < number <= len(lines) and name.search(lines[number - 1]):
            return f"{source.file}:{number}", (file, number)
    return f"{budget.file}:{number}", None


def _sources(budget: BudgetReport, rows: Sequence[Row]) -> list[SourceView]:
    states: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        if row.at is not None and row.each.state not in states.setdefault(row.at, []):
            states[row.at].append(row.each.state)
    return [
        SourceView(
            file,
            source.file,
            [SourceLine(n, line, states.get((file, n), ())) for n, line in enumerate(source.text.splitlines(), 1)],
        )
        for file, source in enumerate(budget.sources, 1)
    ]


def _verdict(counts: Counter[str]) -> Verdict:
    total = counts.total()
    worst = next((state for state in WORST_FIRST if counts[state]), SKIPPED)
    if worst == WITHIN:
        judged = total - counts[SKIPPED]
        words = f"All {judged} limits are within" if judged > 1 else "The limit is within"
        words += f", {counts[SKIPPED]} skipped" if counts[SKIPPED] else ""
    elif not total:
        words = NOTHING
    else:
        states = [state for state in BAD if counts[state]] or [worst]
        told = [f"{counts[state]} {SAID[state][counts[state] > 1]}" for state in states]
        of = f"of {total} limits" if total > 1 else "of 1 limit"
        words = f"{told[0].replace(' ', f' {of} ', 1)}" if len(told) == 1 else f"{of.capitalize()} {', '.join(told)}"
    return Verdict(worst, words, tuple((state, counts[state]) for state in WORST_FIRST if counts[state]))


def _replies(budget: BudgetReport) -> Iterator[tuple[str, str]]:
    for name, record in budget.measured.items():
        reply = (record.replies or {}).get(budget.prompt)
        if reply is not None:
            yield name, reply[:REPLY_CHARACTERS].strip()


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    machine, commit = report.machine, report.commit
    yield "Written", report.created
    for each in report.merged_from:
        gpus = ", ".join(dict.fromkeys(gpu.name for gpu in each.machine.gpus))
        sha = each.commit.sha[:12] if each.commit is not None else ""
        told = (f"measured {each.measured}", each.machine.cpu, gpus, sha)
        yield f"Judged from {each.file}", ", ".join(filter(None, told))
    if report.judged_from is not None and not report.merged_from:
        yield "Judged from", f"{report.judged_from.file}, measured {report.judged_from.measured}"
    if commit is not None:
        yield "Commit", f"{commit.sha}{', with changes that are not committed' if commit.dirty else ''}"
    yield "Platform", machine.platform
    memory = f", {format_size(machine.ram)} of memory" if machine.ram else ""
    yield "CPU", f"{machine.cpu}, {machine.cores} cores{memory}"
    for gpu in machine.gpus:
        yield f"GPU {gpu.index}", f"{gpu.name}, {format_size(gpu.total)}, driver {gpu.driver}"
    yield "Python", machine.python
