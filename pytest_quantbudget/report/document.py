"""The JSON report: everything measured and judged, with the machine and the commit that it holds for."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, files
from pytest_quantbudget.core.answers import draft_id
from pytest_quantbudget.core.budget import USE, Basis, Budget, Method, Source
from pytest_quantbudget.core.gpus import Commit, Machine, MergedReport
from pytest_quantbudget.core.limits import Limit, Target
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import REAL, Task, Text, Workload
from pytest_quantbudget.core.safetext import redacted
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.judge import advice, intervals, metrics
from pytest_quantbudget.judge.advice import Advice
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.judge.trend import Moved
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.memory import Estimate

VERSION = 1
MAX_BYTES = 200_000_000
MAX_COLUMNS = MAX_ROWS = 100  # of one table
MAX_SOURCE = 200_000


@dataclass(frozen=True)
class Together:
    """A drop limit read together with all others of its budget.

    `p_over`: how likely at least the measured drop would be if the true one were at the limit; `adjusted` for the
    number of limits (Holm 1979), so that all limits with less than 0.05 are over together at 5 %.
    """

    id: str
    p_over: float
    adjusted: float


@dataclass(frozen=True)
class MethodReport:
    """One method: what was measured of it, what became of its limits, and what memory was predicted for it.

    In a run that was judged from several reports, `from_report` is the file of the one that holds it, and `against` the
    baseline that was measured in the same run, where that is not the one of the budget's table.
    """

    name: str
    measurement: Measurement | None
    limits: tuple[LimitReport, ...]
    estimate: Estimate | None = None
    load: Load | None = None
    decompressed: bool = False
    from_report: str = ""
    against: Measurement | None = None

    @property
    def judged(self) -> tuple[Limit, ...]:
        """Its limits that need no task and have a number, as they were judged."""
        kinds = ((metrics.limits().get(each.name) or metrics.percentile_limit(each.name), each) for each in self.limits)
        return tuple(
            Limit(kind, (Target("*", each.verdict.limit, each.verdict.limit_text, each.verdict.unit),), Path(), 0)
            for kind, each in kinds
            if kind is not None and each.verdict.limit is not None
        )


@dataclass(frozen=True)
class StoredFrom:
    """Where a baseline comes from that an earlier run measured: the report's file, and the budget and method in it.

    It was `measured` then, with this `cpu`.
    """

    file: str
    budget: str
    method: str
    measured: str
    cpu: str


@dataclass(frozen=True)
class BudgetReport:
    """One budget file; `noise` is that of its baseline, where repeat runs of it were asked for.

    With a `stored` baseline, the first of the methods is that one, which has no limits. `uses` are what a method is
    wanted for, each a test, and `advice` says what the numbers say of that. `changes` are against the last comparable
    run of a history, where the run has one. `sources` are the texts that the budget was read from, its own file's
    first, without secrets, and cut where all together are longer than MAX_SOURCE characters. Where a run was judged
    from reports of several kinds of `machine`, each kind has a record of its own for the file.
    """

    file: str
    model: str
    revision: str | None
    baseline: str | None
    workload: Workload
    prompt: str
    tasks: tuple[Task, ...]
    methods: tuple[MethodReport, ...]
    text: Text | None = None
    together: tuple[Together, ...] = ()
    noise: Noise | None = None
    load_format: str = REAL
    stored: StoredFrom | None = None
    uses: tuple[LimitReport, ...] = ()
    advice: Advice | None = None
    changes: tuple[Moved, ...] = ()
    sources: tuple[Source, ...] = ()
    machine: str = ""

    @property
    def heading(self) -> str:
        """Its file, and the kind of machine where that has to be told."""
        return f"{self.file} on {self.machine}" if self.machine else self.file

    @property
    def basis(self) -> Basis:
        """What its figures were taken on."""
        tasks, stored = {task.name: task for task in self.tasks}, self.stored is not None
        decompressed = tuple(method.name for method in self.methods if method.decompressed)
        return Basis(self.workload, tasks, self.text, self.baseline, decompressed=decompressed, stored=stored)

    def basis_of(self, method: MethodReport) -> Basis:
        """What the figures of one method were taken on."""
        return replace(self.basis, load=method.load, limits=method.judged)

    @property
    def measured(self) -> dict[str, Measurement]:
        """The measurements by method name."""
        return {method.name: method.measurement for method in self.methods if method.measurement is not None}

    def measured_beside(self, method: MethodReport) -> dict[str, Measurement]:
        """The measurements by method name that one method is judged on: the baseline is that of its own run."""
        own = {self.baseline: method.against} if self.baseline is not None and method.against is not None else {}
        return {**self.measured, **own}

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what no budget can hold: a table has a cell for each method and task."""
        if len(self.tasks) > MAX_COLUMNS or len(self.methods) > MAX_ROWS:
            raise ValueError(f"more than {MAX_COLUMNS} tasks or {MAX_ROWS} methods")


@dataclass(frozen=True)
class JudgedFrom:
    """The report whose measurements were judged again: its file, and when they were measured.

    Of several reports these are all files, separated by commas, and the earliest time.
    """

    file: str
    measured: str


@dataclass(frozen=True)
class Report:
    """A run of pytest-quantbudget. Sizes in bytes, times in seconds, shares in percent.

    Machine and commit are those of the measuring, also where that was another run's. Where several reports were judged
    together, `merged_from` has those of each; `machine` is the first one's, and `commit` the one that all have. `notes`
    say what differs between them.
    """

    version: int
    created: str
    machine: Machine
    commit: Commit | None
    budgets: tuple[BudgetReport, ...]
    judged_from: JudgedFrom | None = None
    merged_from: tuple[MergedReport, ...] = ()
    notes: tuple[str, ...] = ()

    def cpu_of(self, method: MethodReport) -> str:
        """The CPU of the machine that a method was measured on."""
        found = (each.machine for each in self.merged_from if each.file == method.from_report)
        return next(found, self.machine).cpu


@dataclass(frozen=True)
class Judged:
    """A budget's limits that were judged on one kind of `machine`, with the `measurements` by subject beneath them.

    The noise is that of the baseline. Of several reports, `reports` has the file that holds a method, by its name, and
    `against` the baseline of that report where it is another one than that in `measurements`.
    """

    budget: Budget
    limits: Sequence[LimitReport]
    noise: Noise | None
    measurements: Mapping[str, Measurement]
    machine: str = ""
    reports: Mapping[str, str] = field(default_factory=dict)
    against: Mapping[str, Measurement] = field(default_factory=dict)

    def beside(self, method: str) -> dict[str, Measurement]:
        """The measurements by method name that one method is judged on."""
        base = self.budget.baseline
        own = {base: self.against[method]} if base is not None and method in self.against else {}
        return {**self.budget.measured(self.measurements), **own}

    def baseline_of(self, methods: Iterable[str]) -> dict[str, Measurement]:
        """By subject, the baseline of the report that holds these methods, where it is another than the table's."""
        found = [self.against[name] for name in methods if name in self.against]
        return {record.subject.key: record for record in found[:1]}


def build(
    root: Path,
    judged: Iterable[Judged],
    machine: Machine,
    commit: Commit | None,
    judged_from: JudgedFrom | None = None,
    merged_from: tuple[MergedReport, ...] = (),
    notes: tuple[str, ...] = (),
) -> Report:
    """The report of a run. The budgets' paths are written relative to `root`."""
    return Report(
        version=VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine,
        commit=commit,
        budgets=tuple(_budget(root, part) for part in judged),
        judged_from=judged_from,
        merged_from=merged_from,
        notes=notes,
    )


def _named(measured: Measurement) -> Measurement:
    """A measurement whose answers have the name under which others were compared with them."""
    return replace(measured, tasks=tuple(replace(task, name=draft_id(task)) for task in measured.tasks))


def measurements(report: Report) -> Iterator[tuple[str, Measurement]]:
    """All measurements of a report in its order, each once, however many budgets share it; with their machine."""
    found = {
        (budget.machine, method.measurement.subject.key): method.measurement
        for budget in report.budgets
        for method in budget.methods
        if method.measurement is not None
    }
    yield from ((machine, measured) for (machine, _), measured in found.items())


def _budget(root: Path, part: Judged) -> BudgetReport:
    budget, limits = part.budget, part.limits
    measurements = {key: _named(measured) for key, measured in part.measurements.items()}
    by_method: dict[str, list[LimitReport]] = {}
    for limit in limits:
        by_method.setdefault(limit.method, []).append(limit)
    methods = [
        MethodReport(
            method.name,
            measurements.get(method.subject.key),
            tuple(by_method.get(method.name, ())),
            _estimate(budget, method),
            method.load,
            method.decompressed,
            part.reports.get(method.name, ""),
            _named(part.against[method.name]) if method.name in part.against else None,
        )
        for method in budget.methods
        if method.subject.key in measurements or method.name in by_method
    ]
    stored = budget.stored
    if stored is not None:
        methods.insert(0, MethodReport(stored.name, _named(stored.measurement), ()))
    return BudgetReport(
        file=os.path.relpath(budget.path, root),
        model=budget.model,
        revision=budget.methods[0].subject.revision,
        baseline=budget.baseline,
        workload=budget.workload,
        prompt=budget.prompt,
        tasks=tuple(budget.tasks.values()),
        methods=tuple(methods),
        text=budget.text,
        together=_together(limits),
        noise=part.noise,
        load_format=budget.methods[0].subject.load_format,
        stored=StoredFrom(os.path.relpath(stored.file, root), stored.budget, stored.method, stored.measured, stored.cpu)
        if stored is not None
        else None,
        uses=tuple(by_method.get(USE, ())) if budget.uses else (),
        advice=advice.advise(budget, by_method, budget.measured(measurements), part.noise),
        sources=tuple(_sources(root, budget)),
        machine=part.machine,
    )


def _sources(root: Path, budget: Budget) -> Iterator[Source]:
    left = MAX_SOURCE
    for source in budget.sources:
        text = redacted(source.text)[:left]
        left -= len(text)
        if text:
            yield Source(os.path.relpath(source.file, root), text)


def _together(limits: Sequence[LimitReport]) -> tuple[Together, ...]:
    p_over = {limit.id: limit.verdict.p_over for limit in limits if limit.verdict.p_over is not None}
    adjusted = intervals.holm(list(p_over.values()))
    return tuple(Together(id_, p, q) for (id_, p), q in zip(p_over.items(), adjusted, strict=True))


def _estimate(budget: Budget, method: Method) -> Estimate | None:
    with contextlib.suppress(ValueError):  # another architecture, or no configuration on this machine
        return memory.estimate(method.subject, budget.workload)
    return None


def write(path: Path, report: Report) -> bool:
    """Write a report, whole or not at all. True: there is always one."""
    codec.write_json(path, report)
    return True


class NoReport(ValueError):
    """A file is JSON, and no report."""


def read(path: Path) -> Report:
    """A report that was written before.

    Raises NoReport where the file is none, ValueError where it cannot be read or is of another version, and OSError
    where it cannot be opened.
    """
    try:
        data = codec.read_json(files.read(path, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON that can be used: {error}") from None
    found = data.get("version") if isinstance(data, dict) else None
    if not isinstance(found, int) and (not isinstance(data, dict) or "budgets" not in data):
        raise NoReport(f"{path} is no report: --quant-report writes one")
    if found != VERSION:
        raise ValueError(f"{path} is a report of version {found!r:.60}; this release reads version {VERSION}")
    try:
        return codec.from_builtins(Report, data)
    except ValueError as error:
        raise ValueError(f"{path} has another form than this release's reports: {error}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema of a report, generated from these records."""
    definitions: dict[str, Any] = {}
    top = codec.schema_of(Report, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantbudget report",
        **top,
        "$defs": definitions,
    }
