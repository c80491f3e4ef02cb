"""The JSON report: everything measured and judged, with the machine and the commit that it holds for."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget import files, hardware, records
from pytest_quantbudget.budget import Budget, Method
from pytest_quantbudget.hardware import Commit, Machine
from pytest_quantbudget.measurement import Measurement
from pytest_quantbudget.request import REAL, Task, Text, Workload
from pytest_quantbudget.session import Entry, Session
from pytest_quantbudget.verdict import Verdict

VERSION = 1
MAX_BYTES = 100_000_000
MAX_COLUMNS = MAX_ROWS = 100  # of one table


@dataclass(frozen=True)
class LimitReport:
    """One selected limit: the id of its test, its line in the file, and the verdict."""

    id: str
    name: str
    line: int
    verdict: Verdict


@dataclass(frozen=True)
class MethodReport:
    """One method: what was measured of it and what became of its limits."""

    name: str
    measurement: Measurement | None
    limits: tuple[LimitReport, ...]


@dataclass(frozen=True)
class BudgetReport:
    """One budget file."""

    file: str
    model: str
    revision: str | None
    baseline: str | None
    workload: Workload
    prompt: str
    tasks: tuple[Task, ...]
    methods: tuple[MethodReport, ...]
    text: Text | None = None
    load_format: str = REAL

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what no budget can hold: a table has a cell for each method and task."""
        if len(self.tasks) > MAX_COLUMNS or len(self.methods) > MAX_ROWS:
            raise ValueError(f"more than {MAX_COLUMNS} tasks or {MAX_ROWS} methods")


@dataclass(frozen=True)
class Report:
    """A run of pytest-quantbudget. Sizes in bytes, times in seconds, shares in percent."""

    version: int
    created: str
    machine: Machine
    commit: Commit | None
    budgets: tuple[BudgetReport, ...]


def build(session: Session) -> Report:
    """The report of a session as it stands."""
    measurements = {key: _without_ids(found) for key, found in session.measurements().items()}
    return Report(
        version=VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=hardware.machine(),
        commit=hardware.commit(session.root),
        budgets=tuple(_budget(session, b, entries, measurements) for _, b, entries in session.files()),
    )


def _without_ids(measured: Measurement) -> Measurement:
    """A measurement without the tokens of its answers, which only serve what is measured later."""
    tasks = (
        replace(task, answers=tuple(replace(answer, ids=()) for answer in task.answers)) for task in measured.tasks
    )
    return replace(measured, tasks=tuple(tasks))


def measurements(report: Report) -> Iterator[Measurement]:
    """All measurements of a report in its order, each once, however many budgets share it."""
    found = [method.measurement for budget in report.budgets for method in budget.methods]
    yield from {measured.subject.key: measured for measured in found if measured is not None}.values()


def _budget(session: Session, budget: Budget, entries: list[Entry], found: dict[str, Measurement]) -> BudgetReport:
    methods = [
        MethodReport(method.name, found.get(method.subject.key), _limits(method, entries))
        for method in budget.methods
        if method.subject.key in found or any(entry.method == method.name for entry in entries)
    ]
    return BudgetReport(
        file=os.path.relpath(budget.path, session.root),
        model=budget.model,
        revision=budget.methods[0].subject.revision,
        baseline=budget.baseline,
        workload=budget.workload,
        prompt=budget.prompt,
        tasks=tuple(budget.tasks.values()),
        methods=tuple(methods),
        text=budget.text,
        load_format=budget.methods[0].subject.load_format,
    )


def _limits(method: Method, entries: list[Entry]) -> tuple[LimitReport, ...]:
    lines = {limit.name: limit.line for limit in method.limits}
    mine = [entry for entry in entries if entry.method == method.name]
    return tuple(LimitReport(e.id, e.limit, lines.get(e.limit, 0), e.verdict) for e in mine)


def write(path: Path, report: Report) -> bool:
    """Write a report, whole or not at all. True: there is always one."""
    records.write_json(path, report)
    return True


def read(path: Path) -> Report:
    """A report that was written before.

    Raises ValueError where the file is none, or of another version; OSError where it cannot be opened.
    """
    try:
        data = records.read_json(files.read(path, MAX_BYTES))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON that can be used: {error}") from None
    found = data.get("version") if isinstance(data, dict) else None
    if found != VERSION:
        raise ValueError(f"{path} is a report of version {found!r:.60}; this release reads version {VERSION}")
    return records.from_builtins(Report, data)


def schema() -> dict[str, Any]:
    """The JSON Schema of a report, generated from these records."""
    definitions: dict[str, Any] = {}
    top = records.schema_of(Report, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantbudget report",
        **top,
        "$defs": definitions,
    }
