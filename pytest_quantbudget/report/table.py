"""The trade-off table: one row a method."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_quantbudget.core.answers import Origin
from pytest_quantbudget.core.request import DUMMY
from pytest_quantbudget.core.safetext import Line, printable
from pytest_quantbudget.core.units import format_value, sizes_apart
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, happened
from pytest_quantbudget.judge import noise
from pytest_quantbudget.judge.metrics import known, metric_of
from pytest_quantbudget.judge.metrics.base import Case, Column, Unmeasured, check_cpu, check_devices
from pytest_quantbudget.judge.metrics.memory import Vram, Weights
from pytest_quantbudget.report import advised, layout
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.layout import Cells

REPLY_CHARACTERS = 100
REASON_CHARACTERS = 200
UNFORESEEN = 0.05  # share by which weights may differ from their estimate without a word
NONE = "-"
OUTCOMES = (WITHIN, OVER, FAILED, NOT_RUN, SKIPPED)
NOW = Origin("")
FORMAT_STAYS = 6
KEPT = 5  # names of modules in a line
TEXT_PERPLEXITY = "ppl ratio"
# Of bounds, which no cell shows.
CONFIDENCE = 0.95
CpuOf = Callable[[MethodReport], str]


def lines(report: Report, *, replies: bool = False, room: float = math.inf) -> Iterator[Line]:
    """The table of every budget, and with `replies` each method's layers and the beginning of its answer to the prompt.

    Then what went wrong and cost no figure. The table leaves out what does not fit in `room` columns of a terminal. The
    report may come from anywhere, and in any case holds what a model said: each line is made printable as a whole.
    """
    for line in _lines(report, replies, room):
        yield replace(line, text=printable(line.text))


def _lines(report: Report, replies: bool, room: float) -> Iterator[Line]:
    for budget in report.budgets:
        weights = " (dummy weights)" if budget.load_format == DUMMY else ""
        yield Line(f"quantization budget {budget.heading}{weights}", title=True)
        yield from _table(budget, room, report.cpu_of)
        if replies:
            yield from _receipts(budget)
            yield from _replies(budget)
    measured = [method.measurement for budget in report.budgets for method in budget.methods if method.measurement]
    notes = [record.notes for record in measured] + [budget.noise.notes for budget in report.budgets if budget.noise]
    for note in dict.fromkeys(itertools.chain(report.notes, *notes)):
        yield Line(f"note: {note}", markup={"yellow": True})
    if report.merged_from:
        told = ", ".join(f"{each.file} ({each.measured})" for each in report.merged_from)
        yield Line(f"judged from {len(report.merged_from)} reports, measured: {told}")
    elif report.judged_from is not None:
        yield Line(f"judged from {report.judged_from.file}, measured {report.judged_from.measured}")


def _table(budget: BudgetReport, room: float, cpu_of: CpuOf = lambda _: "") -> Iterator[Line]:
    found = columns(budget, cpu_of)
    shown, left_out = layout.fit(found, room)
    head, *rows = layout.rows(shown)
    yield Line(head)
    for row, method in zip(rows, budget.methods, strict=True):
        yield Line(row, markup=_markup(method))
    if left_out:
        needed = layout.total(found)
        yield Line(f"without {', '.join(column.head for column in left_out)}: {needed} columns show all")
    yield from _named(budget)
    yield from _below(budget, found)
    yield from _undecided(budget)
    yield from _anomalous(budget)
    yield from _at_the_end(budget)
    yield from advised.lines(budget)


def columns(budget: BudgetReport, cpu_of: CpuOf = lambda _: "") -> list[Cells]:
    """All columns of a budget's table, of which the first names the methods and the last counts their limits.

    `cpu_of` gives the CPU that a method was measured on: timings on another one are compared with none of a stored
    baseline's.
    """
    names = Cells("method", [printable(method.name) for method in budget.methods])
    verdicts = Cells("verdict", [_counts(method) for method in budget.methods])
    return [names, *_formats(budget), *_figures(budget, cpu_of), verdicts]


def remarks(budget: BudgetReport, shown: Sequence[Cells]) -> Iterator[Line]:
    """What is said below a table of these columns of what was measured, and not of single limits."""
    for line in (*_below(budget, shown), *_at_the_end(budget)):
        yield replace(line, text=printable(line.text))


def _below(budget: BudgetReport, shown: Sequence[Cells]) -> Iterator[Line]:
    yield from _measured_on(budget, {column.head for column in shown})
    yield from _unforeseen(budget)
    yield from _shared(budget)
    yield from _cut_off(budget)
    yield from _grown(budget)


def _at_the_end(budget: BudgetReport) -> Iterator[Line]:
    yield from _together(budget)
    yield from _reused(budget)
    yield from _noise(budget)


def _measured_on(budget: BudgetReport, heads: set[str]) -> Iterator[Line]:
    """On which device, and what relations are taken against."""
    own = [record for name, record in budget.measured.items() if budget.stored is None or name != budget.baseline]
    device = next((record.device for record in own if record.device), None)
    if device is not None:
        # Of a server on another machine they are not known.
        threads = f", {device.threads} thread{'s' if device.threads != 1 else ''}" if device.threads else ""
        compiled = "decoding compiled" if budget.workload.compile else ""
        when = f", measured {budget.stored.measured}" if budget.stored else ""
        relation = f"ratio, speed-up and drop against {budget.baseline}{when}" if budget.baseline else ""
        text = f"perplexity of {Path(budget.text.file).name}" if budget.text and TEXT_PERPLEXITY in heads else ""
        yield Line("; ".join(filter(None, (f"on {device.name}{threads}", compiled, relation, text))))


def _formats(budget: BudgetReport) -> Iterator[Cells]:
    """What ready checkpoints say they are, where some method has one."""
    packings = [method.measurement.packing if method.measurement else None for method in budget.methods]
    if any(packings):
        yield Cells("checkpoint", [printable(each.label) if each else NONE for each in packings], FORMAT_STAYS)


def _figures(budget: BudgetReport, cpu_of: CpuOf) -> Iterator[Cells]:
    """The columns of figures; optional ones only where some method has one."""
    for column in _columns(budget):
        cells = [printable(_cell(column, method, budget, cpu_of(method))) for method in budget.methods]
        if not column.optional or set(cells) != {NONE}:
            yield Cells(column.head, cells, column.stays)


def _columns(budget: BudgetReport) -> Iterator[Column]:
    """The metrics' columns: of the two sizes, the peak of GPU memory where there is one, else the weights."""
    peaks = (record.speed(budget.workload) for record in budget.measured.values())
    on_gpu = any(speed is not None and speed.peak_allocated for speed in peaks)
    for metric in known():
        other_size = isinstance(metric, Weights if on_gpu else Vram)
        possible = any(metric.lacking(budget.basis_of(method)) is None for method in budget.methods)
        if not other_size and possible:
            yield from (column for column in metric.columns(budget.basis) if _wanted(column, budget))


def _wanted(column: Column, budget: BudgetReport) -> bool:
    limits = (limit.name for method in budget.methods for limit in method.limits)
    return not column.limited or column.kind.name in limits


def _cell(column: Column, method: MethodReport, budget: BudgetReport, cpu: str) -> str:
    """What a column shows of a method: the figure that a limit on it is judged on, where there is one."""
    measured, is_baseline = budget.measured_beside(method), method.name == budget.baseline
    if method.name not in measured or (is_baseline and not column.shown):
        return NONE
    if column.kind.relation and budget.baseline not in measured:
        return NONE
    case = Case(budget.basis_of(method), column.kind, method.name, measured, CONFIDENCE)
    try:
        if column.kind.relation:
            check_devices(case, metric_of(column.kind))
            if budget.stored is not None:
                check_cpu(case, metric_of(column.kind), cpu, budget.stored.cpu)
        return column.cell(case)
    except Unmeasured:
        return NONE


def _noise(budget: BudgetReport) -> Iterator[Line]:
    """How much repeat runs differ, and which limits that may decide."""
    if budget.noise and budget.noise.runs:
        yield Line(noise.line(budget.noise))
    for method in budget.methods:
        for limit in method.limits:
            if limit.verdict.inside_noise:
                said = f"{method.name}: {limit.name} is inside the noise: {limit.verdict.noise}"
                yield Line(said, markup={"yellow": True})


def _unforeseen(budget: BudgetReport) -> Iterator[Line]:
    """Weights that are not what was predicted."""
    for method in budget.methods:
        measured = method.measurement.weights if method.measurement else None
        predicted = method.estimate.weights if method.estimate else None
        bound = method.estimate is not None and method.estimate.at_least
        apart = predicted - measured if bound and predicted and measured else abs((measured or 0) - (predicted or 0))
        if measured and predicted and apart > UNFORESEEN * predicted:
            expected, found = sizes_apart(predicted, measured)
            least = "at least " if bound else ""
            said = f"{method.name}: {least}{expected} of weights were predicted, and {found} measured"
            yield Line(said, markup={"yellow": True})


def _shared(budget: BudgetReport) -> Iterator[Line]:
    """Who else used the GPUs while a method was timed."""
    for method in budget.methods:
        speed = method.measurement.speed(budget.workload) if method.measurement else None
        if speed is not None and speed.shared:
            yield Line(f"{method.name}: {speed.shared}", markup={"yellow": True})


def _cut_off(budget: BudgetReport) -> Iterator[Line]:
    """How many answers ended only because they were long enough."""
    for task in budget.tasks:
        results = {m.name: m.measurement.task(task) for m in budget.methods if m.measurement}
        told = [f"{name} {r.cut_off:,} of {len(r.answers):,}" for name, r in results.items() if r and r.cut_off]
        if told:
            yield Line(f"{task.name}: answers truncated after {task.max_new_tokens:,} tokens: {', '.join(told)}")


def _grown(budget: BudgetReport) -> Iterator[Line]:
    """How many questions were asked where only as many are asked as decide, and why no more."""
    for method in budget.methods:
        for result in method.measurement.tasks if method.measurement else ():
            if result.task in budget.tasks and len(result.answers) < result.total:
                asked = f"{len(result.answers):,} of {result.total:,} questions"
                yield Line(f"{method.name}: {asked} of {result.task.name} were asked: {result.stopped}")


def _undecided(budget: BudgetReport) -> Iterator[Line]:
    """Limits that the data leave open, whatever became of their tests."""
    for limit in (limit for method in budget.methods for limit in method.limits):
        if limit.verdict.decision == UNDECIDED:
            yield Line(limit.verdict.message, markup={"yellow": True})


def _anomalous(budget: BudgetReport) -> Iterator[Line]:
    """Limits on methods that are better than the baseline beyond noise."""
    for limit in (limit for method in budget.methods for limit in method.limits):
        if limit.verdict.anomalous and limit.verdict.decision != UNDECIDED:
            yield Line(limit.verdict.message, markup={"yellow": True})


def _together(budget: BudgetReport) -> Iterator[Line]:
    """Which of several drops over their limits are so beyond chance, and which may be near misses."""
    over = {
        limit.id: f"{method.name}::{limit.name}"
        for method in budget.methods
        for limit in method.limits
        if limit.verdict.outcome == OVER
    }
    tested = [each for each in budget.together if each.id in over]
    if len(budget.together) < 2 or not tested:
        return
    words = [
        f"{over[e.id]} {'beyond chance' if e.adjusted < 0.05 else 'maybe by chance'} (p {e.adjusted:.2g})"
        for e in tested
    ]
    yield Line(f"{len(budget.together)} drop limits together (Holm), over: {', '.join(words)}")


def _reused(budget: BudgetReport) -> Iterator[Line]:
    """Which methods' figures come from earlier runs, and from when."""
    for method in budget.methods:
        if method.measurement is None:
            continue
        old = [origin.at for origin in method.measurement.origins() if origin.reused]
        resumed = sum(result.resumed for result in method.measurement.tasks if not (result.origin or NOW).reused)
        if old:
            new = "all" if len(old) == len(list(method.measurement.origins())) else f"{len(old)} figures"
            when = min(old) if min(old) == max(old) else f"{min(old)} to {max(old)}"
            yield Line(f"{method.name}: {new} reused, measured {when}")
        if resumed:
            yield Line(f"{method.name}: {resumed:,} answers reused from a run that was interrupted")


def _counts(method: MethodReport) -> str:
    """`3 within, 2 OVER`: how many limits had which outcome."""
    outcomes = Counter(limit.verdict.outcome for limit in method.limits)
    unsure = [limit.verdict.outcome for limit in method.limits if limit.verdict.decision == UNDECIDED].count(WITHIN)
    words = {outcome: outcome.upper() for outcome in (OVER, FAILED, NOT_RUN)}
    told = [f"{outcomes[each]} {words.get(each, each)}" for each in OUTCOMES if outcomes[each]]
    odd = sum(limit.verdict.anomalous for limit in method.limits)
    notes = [f"{count} {what}" for count, what in ((unsure, UNDECIDED), (odd, "anomalous")) if count]
    if notes:
        told[0] += f" ({', '.join(notes)})"
    return ", ".join(told) or NONE


def _named(budget: BudgetReport) -> Iterator[Line]:
    """Which limits are not within, and why: those with one reason together."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for method, limit in ((each, limit) for each in budget.methods for limit in each.limits):
        outcome, why = limit.verdict.outcome, ""
        if outcome in (FAILED, SKIPPED):
            why = happened(method.name, limit.name, limit.verdict.message).removeprefix("not measured: ")
            why = f" ({layout.clipped(why, REASON_CHARACTERS)})"
        if outcome in OUTCOMES[1:]:
            found.setdefault((outcome, why), {}).setdefault(method.name, []).append(limit.name)
    for outcome, why in sorted(found, key=lambda key: OUTCOMES.index(key[0])):
        names = "; ".join(f"{name} {', '.join(limits)}" for name, limits in found[outcome, why].items())
        markup = "yellow" if outcome == SKIPPED else "red"
        yield Line(f"{outcome}: {names}{why}", markup={markup: True})


def _markup(method: MethodReport) -> dict[str, bool]:
    outcomes = {limit.verdict.outcome for limit in method.limits}
    if outcomes & {OVER, FAILED, NOT_RUN}:
        return {"red": True}
    return {"yellow": True} if SKIPPED in outcomes else {"green": True} if WITHIN in outcomes else {}


def _receipts(budget: BudgetReport) -> Iterator[Line]:
    """A method's quantized layers and kernels, and what it keeps in more bits; of a checkpoint what that says."""
    for name, record in budget.measured.items():
        receipt, packing = record.receipt, record.packing
        if packing is not None and packing.kept:
            more = f" and {len(packing.kept) - KEPT:,} more" if len(packing.kept) > KEPT else ""
            kept = f"{', '.join(packing.kept[:KEPT])}{more}"
            yield Line(f"{name}: {packing.label}, which leaves unquantized: {layout.clipped(kept, REASON_CHARACTERS)}")
        if receipt is not None:
            share = format_value(100 * receipt.fraction, "%")
            yield Line(f"{name}: {receipt.kernels}; {share} quantized; kept: {receipt.kept}")


def _replies(budget: BudgetReport) -> Iterator[Line]:
    measured = [(m.name, m.measurement.replies or {}) for m in budget.methods if m.measurement]
    replies = [(name, found[budget.prompt]) for name, found in measured if budget.prompt in found]
    if replies:
        yield Line(f"replies to {_one_line(budget.prompt)!r}:")
    for name, reply in replies:
        yield Line(f"  {name}: {_one_line(reply)}")


def _one_line(text: str) -> str:
    return " ".join(text[: 10 * REPLY_CHARACTERS].split())[:REPLY_CHARACTERS]
