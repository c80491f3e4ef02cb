"""Several reports judged as one: a matrix of machines, or one method a job.

Each method is judged on the report of the run that was asked for it, and compared with the baseline that this run
measured. What comes from unlike machines stays apart: a kind of machine is a series of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.gpus import MergedReport
from pytest_quantbudget.core.problems import display_path, nearest
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.report import consistency, document
from pytest_quantbudget.report.again import Stored
from pytest_quantbudget.report.document import BudgetReport, JudgedFrom, MethodReport, Report

NAMES = 3  # of reports in a message
LABEL = 60  # characters of a machine's name in a test's id
NOT_IN_IDS = re.compile(r"::+|[][/]")


@dataclass(frozen=True)
class Held:
    """The reports that hold a method: those whose run was `asked` for it, and those that only compared with it."""

    asked: tuple[Stored, ...] = ()
    beside: tuple[Stored, ...] = ()

    @property
    def owners(self) -> tuple[Stored, ...]:
        """Those that the method is judged on: of a baseline that no run was asked for, all that have it."""
        return self.asked or self.beside

    def among(self, reports: Iterable[Stored]) -> Held:
        """Those among some of the reports."""
        names = {stored.name for stored in reports}
        asked, beside = ([stored for stored in each if stored.name in names] for each in (self.asked, self.beside))
        return Held(tuple(asked), tuple(beside))


@dataclass(frozen=True)
class Merged:
    """Reports that are judged together, each of one run on one machine. Of one report it is that report."""

    reports: tuple[Stored, ...]
    _held: dict[Path, Mapping[str, Held]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What messages call them."""
        names = [stored.name for stored in self.reports]
        more = f" and {len(names) - NAMES} more" if len(names) > NAMES + 1 else ""
        return ", ".join(names[:NAMES] if more else names) + more

    @cached_property
    def series(self) -> Mapping[str, tuple[Stored, ...]]:
        """The reports by kind of machine, in their order; under no name where there is only one kind."""
        found: dict[str, list[Stored]] = {}
        for stored in self.reports:
            found.setdefault(kind_of(stored.report), []).append(stored)
        if len(found) == 1:
            return {"": self.reports}
        return {machine: tuple(reports) for machine, reports in found.items()}

    def held(self, budget: Budget) -> Mapping[str, Held]:
        """Which reports hold the methods of a budget, by their names.

        Budgets of its own path come first, then those of its file name, then all: it may have been renamed.
        """
        if budget.path not in self._held:
            ranks = {stored.name: [rank(budget, each) for each in stored.report.budgets] for stored in self.reports}
            best = min((each for found in ranks.values() for each in found), default=0)
            held: dict[str, Held] = {}
            for stored in self.reports:
                meant = [b for b, its in zip(stored.report.budgets, ranks[stored.name], strict=True) if its == best]
                for name, asked in _names(meant).items():
                    old = held.get(name, Held())
                    held[name] = (
                        replace(old, asked=(*old.asked, stored))
                        if asked
                        else replace(old, beside=(*old.beside, stored))
                    )
            self._held[budget.path] = held
        return self._held[budget.path]

    def machines(self, budget: Budget, method: str | None = None) -> tuple[str, ...]:
        """The kinds of machine that a method, or any of the budget, was measured on."""
        if len(self.reports) == 1:
            return ("",)
        held = self.held(budget)
        found = [held.get(method, Held())] if method is not None else list(held.values())
        owners = {stored.name for each in found for stored in each.owners}
        return tuple(m for m, reports in self.series.items() if any(stored.name in owners for stored in reports))

    @property
    def merged_from(self) -> tuple[MergedReport, ...]:
        """For the next report: where its figures come from; nothing for one report, whose machine is the report's."""
        if len(self.reports) == 1:
            return ()
        return tuple(
            MergedReport(stored.name, stored.origin.measured, stored.report.machine, stored.report.commit)
            for stored in self.reports
        )

    @property
    def origin(self) -> JudgedFrom:
        """All files, and the earliest time."""
        found = [stored.origin for stored in self.reports]
        return JudgedFrom(", ".join(each.file for each in found), min(each.measured for each in found))


def rank(budget: Budget, found: BudgetReport) -> int:
    """How likely a budget of a report is the one that is judged, 0 the likeliest: by path, file name, or neither."""
    parts = tuple(part for part in Path(found.file).parts if part != "..")
    if budget.path.parts[-len(parts) :] == parts and len(parts) > 1:
        return 0
    return 1 if parts[-1:] == (budget.path.name,) else 2


def _names(budgets: Sequence[BudgetReport]) -> dict[str, bool]:
    """The methods that budgets hold, and whether their run was asked for them: it then has verdicts on their limits."""
    found: dict[str, bool] = {}
    for budget in budgets:
        for method in own(budget):
            if method.measurement is not None or method.limits:
                asked = bool(method.limits) or method.name != budget.baseline
                found[method.name] = found.get(method.name, False) or asked
    return found


def own(budget: BudgetReport) -> Sequence[MethodReport]:
    """The methods of a budget that are its own: a stored baseline stands in front of them."""
    return budget.methods if budget.stored is None else budget.methods[1:]


def kind_of(report: Report) -> str:
    """The kind of machine that a report's figures are from: its GPUs' name, or its CPU's where none was used.

    It stands in tests' ids, so nothing in it means anything there.
    """
    records = [method.measurement for budget in report.budgets for method in own(budget)]
    devices = [record.device for record in records if record is not None and record.device is not None]
    # A server on another machine has no threads here.
    gpus = sorted({device.name for device in devices if device.threads and device.name != "cpu"})
    elsewhere = sorted({device.name for device in devices if not device.threads})
    largest = sorted(report.machine.gpus, key=lambda gpu: -gpu.total)[:1] if not devices else []
    if gpus:
        name = " and ".join(gpus)
    elif elsewhere and len(elsewhere) == len({device.name for device in devices}):
        name = " and ".join(elsewhere)
    else:
        name = largest[0].name if largest else report.machine.cpu
    return " ".join(printable(NOT_IN_IDS.sub(" ", name)).split())[:LABEL] or "cpu"


def parts(stored: Stored) -> Iterator[Stored]:
    """The reports that a report was judged from, as far as it holds them; itself where it is no merged one."""
    report = stored.report
    if not report.merged_from:
        yield stored
        return
    for source in report.merged_from:
        budgets = tuple(b for each in report.budgets if (b := _of_source(each, source.file)).methods)
        single = replace(
            report,
            created=source.measured,
            machine=source.machine,
            commit=source.commit,
            budgets=budgets,
            judged_from=None,
            merged_from=(),
            notes=(),
        )
        yield replace(stored, name=source.file, report=single)


def _of_source(budget: BudgetReport, file: str) -> BudgetReport:
    """A budget with the methods of one source, and the baseline that they were compared with, which has no verdicts."""
    mine = [method for method in own(budget) if method.from_report == file]
    stored = budget.methods[:1] if budget.stored is not None else ()
    if not mine:
        return replace(budget, methods=())
    found = [replace(method, from_report="", against=None) for method in mine]
    if not stored and budget.baseline not in [method.name for method in mine]:
        row = next((method for method in budget.methods if method.name == budget.baseline), None)
        records = [method.against for method in mine] + [row.measurement if row is not None else None]
        record = next((each for each in records if each is not None), None)
        if row is not None and record is not None:
            found.insert(0, MethodReport(row.name, record, (), row.estimate))
    return replace(budget, methods=(*stored, *found), machine="")


def read_all(names: Sequence[str], base: Path, leave_out: Path | None, hashes: Path | None) -> Merged:
    """The reports in files, directories (searched recursively) and globs, relative to `base`; each file once.

    Of what a directory or a glob finds, JSON that is no report is passed over, and so is the file to `leave_out`, which
    the run is going to write. `hashes` is a folder that remembers those of large directories, None for nowhere. Raises
    ValueError, whose message begins with `: ` or with a space and the name.
    """
    found: dict[Path, Stored] = {}
    merged: list[Stored] = []
    for name in names:
        path = files.path_from(base, name)
        listed = _listed(path, base, name)
        paths = [each for each in listed or [path] if each.resolve() not in found]
        for each in paths:
            if each.resolve() == leave_out:
                if listed:
                    continue
                raise ValueError(": --quant-report would overwrite the measurements that --quant-from judges")
            report = _read(each, name if not listed else display_path(each), skip=bool(listed))
            if report is not None:
                found[each.resolve()] = Stored(display_path(each), report, hashes)
        if listed and not any(each.resolve() in found for each in listed):
            raise ValueError(f" {name}: no report is among {len(listed)} JSON files; --quant-report writes one")
    taken = {stored.name for stored in found.values()}
    for stored in found.values():
        for part in parts(stored) if stored.report.merged_from else ():
            # A file and what a merged report holds of it are told apart.
            merged.append(replace(part, name=f"{part.name} of {stored.name}") if part.name in taken else part)
            taken.add(part.name)
        merged += [] if stored.report.merged_from else [stored]
    return Merged(tuple(merged))


def _listed(path: Path, base: Path, name: str) -> list[Path]:
    """The JSON files of a directory or a glob, in order; none for the name of a file. Raises ValueError for nothing."""
    if path.is_dir():
        found = sorted(each for each in path.rglob("*.json") if each.is_file())
    elif not path.exists() and any(c in name for c in "*?["):
        found = sorted(each for each in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if each.is_file())
    else:
        return []
    if not found:
        raise ValueError(f" {name}: there is no report (*.json)")
    return found


def _read(path: Path, name: str, *, skip: bool) -> Report | None:
    """The report in a file; None for JSON that is none, where that may be skipped. Raises ValueError."""
    try:
        report = document.read(path)
        consistency.check(report)
    except FileNotFoundError:
        near = nearest(path.name, [each.name for each in path.parent.glob("*.json")])
        raise ValueError(f": there is no report {name!r}{near}") from None
    except document.NoReport as error:
        if skip:
            return None
        raise ValueError(f" {name}: {error}") from None
    except (ValueError, OSError, ArithmeticError, RecursionError) as error:
        raise ValueError(f" {name}: {error}") from None
    return report
