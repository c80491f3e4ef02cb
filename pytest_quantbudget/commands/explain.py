"""`explain`: say what a budget measures, loads and downloads, what is missing here, how long, and what limits can tell.

Nothing is loaded, nothing is asked of the hub, and no weights are needed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.budget import lacking
from pytest_quantbudget.commands import reading
from pytest_quantbudget.core import files
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.problems import BudgetError, Problem, display_path
from pytest_quantbudget.core.request import DUMMY, DivergenceOf, LoadTime, Part, Reply, Request, Task, Text, Workload
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.judge import resolution
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.base import FACTOR
from pytest_quantbudget.judge.needs import RUNS, Needs
from pytest_quantbudget.judge.resolution import NONE_KNOWN
from pytest_quantbudget.judge.telling import tells, tells_change
from pytest_quantbudget.judge.verdict import unjudged
from pytest_quantbudget.measure import flip_rates
from pytest_quantbudget.measure.expected import Expected, Expecting
from pytest_quantbudget.measure.hardware import LocalGpus
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.duration import NOTHING, Span, assumed
from pytest_quantbudget.models.sources import HERE, THERE, UNKNOWN, Source, set_is_here, sources
from pytest_quantbudget.report import layout
from pytest_quantbudget.tasks.questions import HUB_SETS

HELP = "say in words what budgets measure, load and download, how long about, and what their limits can tell"
INDENT = "  "
NO_HISTORY = "is judged by a run with --quant-history PLACE"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    reading.add(parser)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where earlier runs kept results (--quant-cache)")


def run(options: argparse.Namespace) -> None:
    """Explain every budget that can be read. Raises BudgetError with the mistakes of the others, at the end."""
    # Read once, when the hub's library is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    room = layout.room(on_terminal=sys.stdout.isatty())
    explained = Explaining(options.cache or files.default_cache())
    problems: list[Problem] = []
    given = list(options.budget)
    for name in given:
        options.budget = [name]
        try:
            for budget in reading.budgets(options):
                for line in explained.lines(budget, room):
                    print(printable(line))
                print()
        except BudgetError as error:
            problems += error.problems
    if problems:
        raise BudgetError(*problems)


@dataclass
class _Here:
    """What a budget comes to: the requests of its methods, the baseline first, and what of it this machine cannot do.

    `measured` are the methods of which anything is measured here; `skipped` are their limits with the reason.
    """

    requests: dict[str, Request] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)


class Explaining:
    """Explains budgets one after the other; what they share is told once."""

    def __init__(self, cache: Path | None) -> None:
        self.gpus = LocalGpus()
        self.needs = Needs()
        self.looks = Runner(self.needs, self.gpus, None)
        store = str(cache / "results") if cache is not None else None
        self.expecting = Expecting(cache, store, self.gpus.usable)
        self.known = flip_rates.remembered(cache) if cache is not None else NONE_KNOWN
        self.told: set[str] = set()

    @property
    def device(self) -> str:
        """The name of the device that is measured on."""
        return self.gpus.usable[0].name if self.gpus.usable else "cpu"

    def lines(self, budget: Budget, room: int) -> Iterator[str]:
        """All that is said of one budget, in lines of so many columns."""
        here = self._here(budget)
        count = sum(len(method.all_limits) for method in budget.methods)
        compared = f", compared with {budget.baseline}" if budget.baseline else ""
        yield from _wrapped(f"{display_path(budget.path)}: {_name(budget.model)}, {len(budget.methods)} methods, "
                            f"{count} limits{compared}", room, "")  # fmt: skip
        sections = (self._measured, self._loaded, self._missing, self._takes)
        for section in sections:
            yield ""
            yield from section(budget, here, room)
        yield ""
        yield from self._limits(budget, room)
        self.told.update(request.subject.key for request in here.requests.values())

    def _here(self, budget: Budget) -> _Here:
        here = _Here()
        for method in budget.methods:
            asked = [(each, each.limit if isinstance(each, ChangeLimit) else each) for each in method.all_limits]
            wanted = [limit for _, limit in asked if unjudged(method.subject, limit.kind) is None]
            if wanted:
                self.needs.add(budget, method, wanted)
            for each, limit in asked:
                why = lacking.unmeasured(self.looks, budget, method, limit)
                if why is None:
                    here.measured.add(method.name)
                    why = NO_HISTORY if isinstance(each, ChangeLimit) else lacking.unjudged_on(limit, self.device)
                if why is not None:
                    here.skipped.append((method.name, each.name, why))
        if budget.base is not None and any(limit.kind.relation for method in budget.methods
                                           if method.name in here.measured for limit in method.limits):  # fmt: skip
            here.measured.add(budget.base.name)
        for method in sorted(budget.methods, key=lambda method: method.name != budget.baseline):
            if method.subject.key in self.needs.requests:
                here.requests[method.name] = self.needs.requests[method.subject.key]
        return here

    def _measured(self, budget: Budget, here: _Here, room: int) -> Iterator[str]:
        yield from _wrapped("Measured, each method once, in a process of its own, the baseline first:", room, "")
        for name, request in here.requests.items():
            if request.subject.key in self.told:
                yield from _wrapped(f"{name}: as above, in {self.needs.files[request.subject.key]}", room)
                continue
            first = "baseline, " if name == budget.baseline and budget.base is not None else ""
            parts = [_of(budget, part) for part in request.parts if not isinstance(part, LoadTime)]
            where = f", in {request.subject.python}" if request.subject.python else ""
            yield from _wrapped(f"{name} ({first}{request.subject.engine}{where}): {', '.join(parts)}", room)
        for method in budget.methods:
            if method.name not in here.requests:
                yield from _wrapped(f"{method.name}: not at all; no limit asks for it", room)
        load = budget.workload
        if any(request.of(Workload) for request in here.requests.values()):
            tokens = f"{load.prompt_tokens:,} prompt tokens, {load.new_tokens:,} new ones"
            repeats = f"{load.repeats:,} repeats{', decoded by compiled steps' * load.compile}"
            yield from _wrapped(f"The workload: {tokens}, batch size {load.batch_size:,}, {repeats}", room)
        if budget.stored is not None:
            yield from _wrapped(f"Of the baseline nothing is measured: it is {budget.stored.name}", room)
        if any(task.start is not None for task in budget.tasks.values()):
            end = "the baseline is asked all questions, the others until their limits are decided"
            yield from _wrapped(f"Of a task that says `start`, {end}", room)

    def _loaded(self, budget: Budget, here: _Here, room: int) -> Iterator[str]:
        yield "Loaded:"
        rows: list[Sequence[str]] = [("method", "weights", "on a GPU", "from")]
        found: dict[tuple[str, str], Source] = {}
        notes: list[str] = []
        for name, request in here.requests.items():
            subject = request.subject
            read = list(sources(subject, budget.workload))
            found.update({(each.name, each.kind): each for each in read})
            nothing = "random weights" if subject.load_format == DUMMY else "a server"
            names = " and ".join(_name(each.name) for each in read) or nothing
            rows.append((name, *_sizes(budget, budget.method(name)), names))
            made = _made(budget.method(name))
            notes += [f"{name}: {made}"] if made else []
        yield from _table(rows, room)
        for note in notes:
            yield from _wrapped(note, room)
        yield from self._downloads(list(found.values()), here, room)

    def _downloads(self, found: Sequence[Source], here: _Here, room: int) -> Iterator[str]:
        for each in found:
            if each.where == HERE:
                size = f", {format_size(each.size)}" if each.size else ""
                yield from _wrapped(f"{_name(each.name)} is on this machine{size}", room)
        sets = {part.name for each in here.requests.values() for part in each.of(Task) if part.file is None}
        for name in sorted(sets & HUB_SETS.keys()):
            there = set_is_here(HUB_SETS[name][0])
            said = "in the hub's cache" if there else "from the hub, a few MB" if there is not None else "from the hub"
            yield from _wrapped(f"the questions of {name}: {HUB_SETS[name][0]}, {said}", room)
        for where, said in (
            (THERE, "To be downloaded"),
            (UNKNOWN, "To be downloaded where it is not in the hub's cache"),
        ):
            gone = [each for each in found if each.where == where]
            if gone:
                sizes = [each.size for each in gone if each.size is not None]
                about = "about " if any(each.about for each in gone) else ""
                more = " and what is not known" if len(sizes) < len(gone) else ""
                whole = f" {about}{format_size(sum(sizes))}{more}:" if len(gone) > 1 and sizes else ""
                names = ", ".join(f"{_name(each.name)} ({_size(each)})" for each in gone)
                yield from _wrapped(f"{said}:{whole} {names}", room)
        if all(each.where == HERE for each in found):
            yield from _wrapped("To be downloaded of weights: nothing", room)

    def _missing(self, budget: Budget, here: _Here, room: int) -> Iterator[str]:
        told = ", ".join(f"{gpu.name} ({format_size(gpu.total)})" for gpu in self.gpus.usable)
        yield from _wrapped(f"On this machine ({told or 'no GPU was found'}):", room, "")
        gone = [why for method in budget.methods if method.subject.python is None
                and (why := engines.missing(method.subject)) is not None]  # fmt: skip
        if gone:
            names = sorted({name for method in budget.methods for name in engines.absent(method.subject)})
            here_too = f"not installed: {', '.join(names)}; {methods.pip_command(*names)}"
            yield from _wrapped(here_too if names else "; ".join(gone), room)
        by_why: dict[str, dict[str, list[str]]] = {}
        for name, limit, why in here.skipped:
            by_why.setdefault(why, {}).setdefault(name, []).append(limit)
        for why, of_methods in by_why.items():
            count = sum(map(len, of_methods.values()))
            whole = {name for name, limits in of_methods.items() if len(limits) == len(budget.method(name).all_limits)}
            told = "; ".join(
                f"{name}: {'all' if name in whole else ', '.join(limits)}" for name, limits in of_methods.items()
            )
            yield from _wrapped(f"{count:,} limit{'s skip' if count > 1 else ' skips'}: {why}: {told}", room)
        if not here.skipped:
            yield from _wrapped("every limit can be judged, as far as is known before anything is loaded", room)

    def _takes(self, budget: Budget, here: _Here, room: int) -> Iterator[str]:
        yield "How long about:"
        base = here.requests.get(budget.baseline or "")
        made: dict[str, Expected] = {}
        rows: list[Sequence[str]] = [("method", "kept", "takes", "by")]
        for name, request in here.requests.items():
            if request.subject.key in self.told or name not in here.measured:
                continue
            made[name] = one = self.expecting.expect(request, budget, base if request is not base else None)
            wanted = [part for part in request.parts if not isinstance(part, DivergenceOf)]
            kept = f"{len([part for part in one.kept if part in wanted])} of {len(wanted)} parts"
            by = "what earlier runs took" if one.measured else "sizes" if one.seconds else one.why or "-"
            rows.append((name, kept, one.seconds.words if one.seconds else "not known", by if one.parts else "kept"))
        yield from _table(rows, room)
        away = [name for name in here.requests if name not in here.measured]
        if away:
            yield from _wrapped(f"not known here, because it is not measured here: {', '.join(away)}", room)
        spans = [one.seconds for one in made.values()]
        if not made:
            pass
        elif None in spans:
            yield from _wrapped("In all: not known here", room)
        else:
            whole: Span = sum(filter(None, spans), NOTHING)
            yield from _wrapped(f"In all: {whole.words if whole.high else 'a few seconds, nothing is measured'}"
                                ", without downloads", room)  # fmt: skip
        if any(not one.measured for one in made.values()):
            yield from _wrapped(assumed(on_gpu=bool(self.gpus.usable)), room)
        limits = [limit for method in budget.methods for limit in method.limits]
        timed = [limit for limit in limits if metric_of(limit.kind).margin == FACTOR and _is_open(limit)]
        if timed and budget.repeated is not None:
            why = f"--quant-update times {budget.repeated.name} {RUNS} more times, for the margin of what reads `auto`"
            yield from _wrapped(why, room)

    def _limits(self, budget: Budget, room: int) -> Iterator[str]:
        yield "What the limits tell:"
        said: dict[tuple[str, str], list[str]] = {}
        for method in budget.methods:
            for limit in method.limits:
                where = f"{display_path(limit.file)}:{limit.line} {method.name} {limit.name} {_values(limit)}"
                words = tells(budget, method, limit, self.known)
                said.setdefault((metric_of(limit.kind).name, words), []).append(where)
            for change in method.changes:
                where = f"{display_path(change.file)}:{change.line} {method.name} {change.name} {change.text}"
                said.setdefault((change.name, tells_change(change)), []).append(where)
        for (_, words), names in said.items():
            for name in names[:-1]:
                yield from _wrapped(f"{name},", room)
            yield from _wrapped(f"{names[-1]}: {words}", room)
        for problem in resolution.doubts(budget, self.known):
            yield from _wrapped(f"{display_path(problem.file)}:{problem.line}: {problem.message}", room)


def _is_open(limit: Limit) -> bool:
    return any(target.value is None for target in limit.targets)


def _values(limit: Limit) -> str:
    if len(limit.targets) == 1 and limit.targets[0].pattern == "*":
        return limit.targets[0].text
    return ", ".join(f"{target.text} for {target.pattern}" for target in limit.targets)


def _of(budget: Budget, part: Part) -> str:
    """What a part is, in words."""
    if isinstance(part, Workload):
        return "the workload"
    if isinstance(part, Task):
        total = budget.totals.get(part.name)
        asked = f"{total:,} questions" if total is not None else "the questions"
        shots = f" with {part.shots} worked examples" if part.shots else ""
        return f"{'at most ' * (part.start is not None)}{asked} of {part.name}{shots}"
    if isinstance(part, DivergenceOf):
        return f"logits on answers to {part.task.name}"
    if isinstance(part, Text):
        return f"the perplexity of {Path(part.file).name}"
    if isinstance(part, Load):
        return f"{part.requests:,} requests at each of {len(part.levels)} levels of load"
    return "a reply" if isinstance(part, Reply) else part.noun


def _name(name: str) -> str:
    if name == str(files.BUILTIN_DIR):
        return "builtin"
    return display_path(Path(name)) if Path(name).is_absolute() else name


def _size(source: Source) -> str:
    if source.size is None:
        return "size not known"
    return f"{'about ' * source.about}{format_size(source.size)}"


def _sizes(budget: Budget, method: Method) -> tuple[str, str]:
    """Weights, and the memory of a process on a GPU, by the estimate."""
    try:
        made = memory.estimate(method.subject, budget.workload)
    except ValueError:
        return "not known", "not known"
    bound = "at least " * made.at_least
    return f"{bound}{format_size(made.weights)}", f"{bound}{format_size(made.process)}"


def _made(method: Method) -> str:
    """What is made before a method is loaded."""
    subject, spec = method.subject, methods.spec(method.subject.kind)
    made = []
    if engines.merged_first(subject):
        made.append("its adapter is merged into the weights")
    if spec.quantize is not None and subject.checkpoint is None and subject.load_format != DUMMY:
        texts = f" on {method.subject.options['texts']} texts" if "texts" in subject.options else ""
        made.append(f"the model is quantized{texts}")
    return f"{' and '.join(made)} first, once, and kept" if made else ""


def _wrapped(text: str, room: int, indent: str = INDENT) -> Iterator[str]:
    """A sentence in indented lines."""
    for line in layout.wrapped(printable(text), room - len(indent)):
        yield f"{indent}{line}"


def _table(rows: Iterable[Sequence[str]], room: int) -> Iterator[str]:
    """Rows under their heads; where there is little room, columns in the middle go, and what is long is cut."""
    cells = [[printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    if len(cells[0]) < 2:
        return
    last = len(cells) - 1
    columns = [layout.Cells(head, rest, None if i in (0, last) else 10 - i) for i, (head, *rest) in enumerate(cells)]
    kept, _ = layout.fit(columns, room - 2)
    for line in layout.rows(kept):
        yield f"| {layout.clipped(line, room - 2)}"
