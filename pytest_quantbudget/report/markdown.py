"""A report as Markdown for a pull request or a CI job's summary: what to act on first, and no longer than allowed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import DUMMY
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.report import advised, gfm, table
from pytest_quantbudget.report.document import BudgetReport, Report
from pytest_quantbudget.report.layout import Cells
from pytest_quantbudget.report.page.history import Trend, trends
from pytest_quantbudget.report.ranked import WORST_FIRST, Ranked, ranked

# GitHub takes as much: of a comment in characters, and of the summary of one step in bytes.
COMMENT, STEP = 65_536, 2**20
MOST_ROWS = 100
MOST_REASONS = 20
LONGEST_NAME = 120
BUILTIN = BUILTIN_DIR.name
HEAD = ("method", "limit", "allowed", "measured", "margin", "observed", "verdict")
NUMBERS = (2, 3, 4, 5)
PASSED_OPEN = "undecided, passed"
WORSE = "worse"
# Blocks go in this order where there is too little room: the last first.
VERDICT, TO_ACT_ON, REASONS, CHANGES, TRADE_OFF, ADVICE, LIMITS_WITHIN, REMARKS, MACHINE = range(9)


@dataclass(frozen=True)
class _Block:
    """A piece of the text that is there whole or not at all; `stays` says how long (see VERDICT), and `what` it is."""

    text: str
    stays: int
    what: str = ""


def text(report: Report, room: int = COMMENT) -> str:
    """The Markdown of a report, at most `room` bytes long; empty where not even the verdict has room.

    What is left out for want of room is named at the end.
    """
    blocks = [*_blocks(report)]
    gone: list[_Block] = []
    while len((found := _joined(blocks, gone, room)).encode()) > room:
        going = max(blocks, key=lambda block: (block.stays, blocks.index(block)))
        if going.stays == VERDICT:
            return ""
        blocks.remove(going)
        gone.insert(0, going)
    return found


def headline(report: Report) -> str:
    """The verdict in a line: `2 of 28 limits over, 1 failed`; plain text."""
    limits = [each for budget in report.budgets for each in ranked(budget)]
    states = Counter(each.state for each in limits)
    total = len(limits)
    wrong = [state for state in (OVER, FAILED, NOT_RUN) if states[state]]
    if wrong:
        first, *others = wrong
        more = "".join(f", {states[state]:,} {state}" for state in others)
        return f"{states[first]:,} of {_limits(total)} {first}{more}"
    if not states[WITHIN] + states[UNDECIDED]:
        return f"nothing was judged: {_limits(total)} skipped"
    told = [f"{states[state]:,} {state}" for state in WORST_FIRST if states[state] and state != WITHIN]
    gains = sum(each.limit.verdict.anomalous for each in limits)
    told += [f"{gains:,} anomalous"] if gains else []
    return ", ".join([f"{states[WITHIN]:,} of {_limits(total)} within", *told])


def _limits(count: int) -> str:
    return f"{count:,} limit{'' if count == 1 else 's'}"


def _joined(blocks: Iterable[_Block], gone: Sequence[_Block], room: int) -> str:
    whole = [block.text for block in blocks]
    if gone:
        what = ", ".join(dict.fromkeys(block.what for block in gone))
        whole.append(f"Left out, because there is room for {format_size(room)}: {what}.")
    return "\n\n".join(whole) + "\n"


def _blocks(report: Report) -> Iterator[_Block]:
    limits = [each for budget in report.budgets for each in ranked(budget)]
    states = {each.state for each in limits}
    doubt = UNDECIDED in states or any(each.limit.verdict.anomalous for each in limits)
    mark = "\N{WARNING SIGN}" if doubt else "\N{WHITE HEAVY CHECK MARK}"
    if states & {OVER, FAILED, NOT_RUN}:
        mark = "\N{CROSS MARK}"
    elif not states - {SKIPPED}:
        mark = "\N{WHITE CIRCLE}"
    yield _Block(f"## {mark} Quantization budget: {headline(report)}", VERDICT)
    for budget in report.budgets:
        yield from _of_budget(budget, report)
    yield _Block(gfm.folded("Machine and versions", gfm.bullets(_machine(report))), MACHINE, "machine and versions")


def _of_budget(budget: BudgetReport, report: Report) -> Iterator[_Block]:
    limits = ranked(budget)
    where = f" on {gfm.inline(budget.machine, LONGEST_NAME)}" if budget.machine else ""
    file = f"{gfm.code(budget.file, LONGEST_NAME)}{where}"
    yield _Block(f"### {file}\n\n{_counts(limits)}", TO_ACT_ON, f"{file}")
    within = [each for each in limits if _calm(each)]
    to_act_on = [each for each in limits if each.state != SKIPPED and not _calm(each)]
    if to_act_on:
        yield _Block(_table(to_act_on), TO_ACT_ON, f"limits of {file} that are not within")
        yield from _reasons(to_act_on, f"why limits of {file} are not within")
    skipped = [each for each in limits if each.state == SKIPPED]
    yield from _reasons(skipped, f"limits of {file} that were skipped")
    columns = table.columns(budget, report.cpu_of)
    if budget.methods:
        yield _Block(_trade_off(columns), TRADE_OFF, f"the trade-off table of {file}")
    if budget.changes:
        yield _Block(_changes(budget), CHANGES, f"what changed in {file}")
    advice = [gfm.inline(line.text.removeprefix("advice: "), 2 * gfm.LONGEST) for line in advised.lines(budget)]
    if advice:
        yield _Block(f"**Advice**\n\n{gfm.bullets(advice)}", ADVICE, f"advice on {file}")
    if within:
        said = f"{_limits(len(within))} within"
        yield _Block(gfm.folded(said, _table(within)), LIMITS_WITHIN, f"limits of {file} that are within")
    remarks = [gfm.inline(line.text) for line in table.remarks(budget, columns)]
    if remarks:
        listed = gfm.bullets(_few(remarks, MOST_REASONS, "remarks"))
        yield _Block(gfm.folded("How it was measured", listed), REMARKS, f"how {file} was measured")


def _calm(each: Ranked) -> bool:
    return each.state == WITHIN and not each.limit.verdict.anomalous


def _counts(limits: Sequence[Ranked]) -> str:
    """`28 limits: 2 over, 1 undecided, 24 within, 1 skipped`; states of which there are none are left out."""
    states = Counter(each.state for each in limits)
    told = [f"{states[state]} {state}" for state in WORST_FIRST if states[state]]
    return f"{_limits(len(limits))}: {', '.join(told)}"


def _table(limits: Sequence[Ranked]) -> str:
    shown = gfm.table(HEAD, map(_row, limits[:MOST_ROWS]), NUMBERS)
    more = len(limits) - MOST_ROWS
    return f"{shown}\n\nand {_limits(more)} more" if more > 0 else shown


def _row(each: Ranked) -> list[str]:
    bounds = f" ({each.bounds})" if each.bounds else ""
    decision = each.limit.verdict.decision
    verdict = PASSED_OPEN if each.state == UNDECIDED else each.state
    verdict += ", anomalous" if each.limit.verdict.anomalous else ""
    verdict += " (undecided)" if decision == UNDECIDED and each.state != UNDECIDED else ""
    return [
        gfm.code(each.method, LONGEST_NAME),
        gfm.code(each.limit.name, LONGEST_NAME),
        *(gfm.inline(text, LONGEST_NAME) for text in (each.allowed, f"{each.measured}{bounds}")),
        each.margin_text,
        gfm.inline(each.observations, LONGEST_NAME),
        f"**{verdict}**" if each.state in (OVER, FAILED, NOT_RUN) else verdict,
    ]


def _reasons(limits: Sequence[Ranked], what: str) -> Iterator[_Block]:
    """Why limits are what they are: those with one reason together."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for each in limits:
        names = found.setdefault((each.state, each.why.removeprefix("not measured: ")), {})
        names.setdefault(each.method, []).append(each.limit.name)
    lines = []
    for (state, why), methods in itertools.islice(found.items(), MOST_REASONS):
        named = "; ".join(_few([_named(method, names) for method, names in methods.items()], MOST_REASONS))
        lines.append(f"{'skipped: ' * (state == SKIPPED)}{named}: {gfm.inline(why)}")
    if len(found) > MOST_REASONS:
        lines.append(f"and {len(found) - MOST_REASONS:,} more reasons")
    if lines:
        yield _Block(gfm.bullets(lines), REASONS, what)


def _named(method: str, limits: Sequence[str]) -> str:
    """`nf4` `max_vram`, `max_weights`."""
    names = ", ".join(_few([gfm.code(limit, LONGEST_NAME) for limit in limits], MOST_REASONS))
    return f"{gfm.code(method, LONGEST_NAME)} {names}"


def _few(texts: Sequence[str], most: int, what: str = "") -> list[str]:
    more = len(texts) - most
    return [*texts[:most], f"and {more:,} more {what}".rstrip()] if more > 0 else [*texts]


def _trade_off(columns: Sequence[Cells]) -> str:
    names, *figures = columns
    rows = zip(*(column.cells for column in figures), strict=True)
    cells = [
        [gfm.code(name, LONGEST_NAME), *(gfm.inline(cell, LONGEST_NAME) for cell in row)]
        for name, row in zip(names.cells, rows, strict=True)
    ]
    head = [gfm.inline(column.head, LONGEST_NAME) for column in columns]
    return gfm.table(head, cells, range(1, len(columns) - 1))


def _changes(budget: BudgetReport) -> str:
    """The figures that differ by more than runs do; folded, those of which too few runs tell that; how many others."""
    found = trends(budget)
    marked = [each for each in found if each.marked]
    untold = [each for each in found if each.moved.beyond_noise is None and each.before != each.now]
    times = sorted(each.moved.at for each in found)
    when = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
    said = f"**Changed** against the last comparable run ({gfm.inline(when)})"
    rest = len(found) - len(marked) - len(untold)
    calm = [f"{_figures(rest)} no more than runs do"] if rest else []
    blocks = [said, _moved(marked)] if marked else [said if untold else f"{said}: nothing by more than runs do"]
    if untold:
        blocks.append(gfm.folded(f"{_figures(len(untold))}, and too few runs tell how much runs do", _moved(untold)))
    return "\n\n".join([*blocks, *calm])


def _figures(count: int) -> str:
    return f"{count:,} figure{' differs' if count == 1 else 's differ'}"


def _moved(found: Sequence[Trend]) -> str:
    rows = [
        [
            gfm.code(each.moved.method, LONGEST_NAME),
            gfm.code(each.moved.figure, LONGEST_NAME),
            *(gfm.inline(text, LONGEST_NAME) for text in (each.before, each.now, each.change)),
            f"**{WORSE}**" if each.marked and each.moved.worse else WORSE if each.moved.worse else "better",
        ]
        for each in found[:MOST_ROWS]
    ]
    more = [f"and {len(found) - len(rows):,} more"] if len(found) > len(rows) else []
    return "\n\n".join([gfm.table(("method", "figure", "before", "now", "change", ""), rows, (2, 3, 4)), *more])


def _machine(report: Report) -> Iterator[str]:
    machine, commit = report.machine, report.commit
    ram = f", {format_size(machine.ram)} of memory" if machine.ram else ""
    cores = f"{machine.cores} core{'s' if machine.cores != 1 else ''}"
    yield gfm.inline(f"{machine.cpu}, {cores}{ram}")
    for gpu, count in Counter(replace(gpu, index=0, uuid="", free=0) for gpu in machine.gpus).items():
        several = f"{count} x " if count > 1 else ""
        yield gfm.inline(f"{several}{gpu.name}, {format_size(gpu.total)}, driver {gpu.driver}")
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(machine.libraries.items()))
    yield gfm.inline(", ".join(filter(None, (f"Python {machine.python}", libraries, machine.platform))), 2000)
    for budget in report.budgets:
        at = f" at {gfm.code(budget.revision, LONGEST_NAME)}" if budget.revision else ""
        dummy = ", dummy weights" if budget.load_format == DUMMY else ""
        yield f"{gfm.code(budget.file, LONGEST_NAME)}: model {gfm.code(_model(budget.model), LONGEST_NAME)}{at}{dummy}"
    if commit is not None:
        yield f"commit {gfm.code(commit.sha, LONGEST_NAME)}{', with changes' if commit.dirty else ''}"
    for each in report.merged_from[:MOST_REASONS]:
        gpus = ", ".join(dict.fromkeys(gpu.name for gpu in each.machine.gpus))
        where = ", ".join(filter(None, (each.machine.cpu, gpus)))
        file = gfm.code(each.file, LONGEST_NAME)
        yield f"judged from {file}, measured {gfm.inline(each.measured)} on {gfm.inline(where)}"
    yield from (gfm.inline(note) for note in report.notes[:MOST_REASONS])
    if report.judged_from is not None and not report.merged_from:
        file, measured = report.judged_from.file, report.judged_from.measured
        yield f"judged from {gfm.code(file, LONGEST_NAME)}, measured {gfm.inline(measured)}"
    yield f"written {gfm.inline(report.created)}"


def _model(name: str) -> str:
    """A model's name as budgets write it: where the package lies is nobody's business."""
    return BUILTIN if Path(name).parts[-2:] == (BUILTIN_DIR.parent.name, BUILTIN) else name
