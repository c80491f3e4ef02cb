"""A run that measures nothing: its measurements are those of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import Commit, GpuNeed, Machine, MergedReport, lacking
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.core.request import LOAD
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.report import differences
from pytest_quantbudget.report.again import Stored
from pytest_quantbudget.report.document import JudgedFrom
from pytest_quantbudget.report.merged import Held, Merged


@dataclass
class StoredRun:
    """Takes what a run needs from reports, as `measure.runner.Runner` measures it.

    Of reports from several kinds of machine, from those of one `machine`; of all where that is empty.
    """

    needs: Needs
    stored: Merged
    machine: str = ""

    def on(self, machine: str) -> StoredRun:
        """The same for one kind of machine."""
        return replace(self, machine=machine)

    @property
    def _reports(self) -> tuple[Stored, ...]:
        return self.stored.series.get(self.machine, self.stored.reports)

    def _held(self, budget: Budget, method: str) -> Held:
        if len(self.stored.reports) == 1:
            # What it does not hold is told in its own words.
            return Held(self.stored.reports)
        return self.stored.held(budget).get(method, Held()).among(self._reports)

    def _owner(self, budget: Budget, method: Method) -> Stored | None:
        """The report that a method is judged on: of several that say the same, the one that holds most of it."""
        held = self._held(budget, method.name)
        found = held.asked or held.beside
        return max(found, key=lambda stored: differences.parts_of(budget, stored, method.name), default=None)

    def _taken(self, stored: Stored | None, budget: Budget, method: Method) -> Measurement:
        request = self.needs.requests[method.subject.key]
        if stored is not None:
            return stored.measure(request, self.needs.files.get(method.subject.key, budget.path.name))
        where = f"from {self.machine} " if self.machine else ""
        why = f"none of the reports {where}holds a measurement of it: {Merged(self._reports).name}"
        return Measurement(request.subject, failures=(Failure(LOAD, "error", why),))

    def lacking(self, budget: Budget, method: Method, need: GpuNeed) -> str | None:
        """What the GPUs that a planned method was measured on lack for `need`, or None."""
        stored = self._owner(budget, method) or self._reports[0]
        return lacking(need, stored.gpus(self.measure(budget, method).device)[: need.count])

    def too_large(self, budget: Budget, method: Method, limit: Limit | None = None) -> str | None:
        """None: what was measured had room."""
        return None

    def measure(self, budget: Budget, method: Method) -> Measurement:
        """The stored measurement of a planned method."""
        return self._taken(self._owner(budget, method), budget, method)

    def baseline_of(self, budget: Budget, method: Method, base: Method) -> Measurement:
        """The baseline that a method is compared with: of the same run, else of another on this kind of machine."""
        owner, held = self._owner(budget, method), self._held(budget, base.name)
        of_same_run = next((stored for stored in (*held.asked, *held.beside) if stored is owner), None)
        return self._taken(of_same_run or self._owner(budget, base), budget, base)

    def noise(self, budget: Budget, measurements: Mapping[str, Measurement] | None = None) -> Noise | None:
        """How much repeat runs of a budget's baseline differed; None where the reports' runs made none."""
        repeated = budget.repeated.name if budget.repeated is not None else None
        found = (stored.noise(budget.path.name, repeated) for stored in self._reports)
        return next((noise for noise in found if noise is not None), None)

    def measurements(self) -> dict[str, Measurement]:
        """None were made by this run."""
        return {}

    def measured(self, budget: Budget, run: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """What the planned methods of a budget are judged on, by subject: those that were measured on this machine."""
        planned = [method for method in budget.methods if method.subject.key in self.needs.requests]
        held = [method for method in planned if self._owner(budget, method) is not None]
        found = {method.subject.key: self.measure(budget, method) for method in held}
        if budget.base in held:
            found[budget.base.subject.key] = self._whole(budget, budget.base)
        return found

    def _whole(self, budget: Budget, base: Method) -> Measurement:
        """The baseline as the table shows it: what its own report lacks, as no limit on it asks, others may have."""
        record, held = self.measure(budget, base), self._held(budget, base.name)
        for stored in (*held.asked, *held.beside):
            record = differences.filled(record, self._taken(stored, budget, base))
        return record

    def reports(self, budget: Budget) -> dict[str, str]:
        """The report that holds each method of a budget, by the method's name; none where there is one report."""
        if len(self.stored.reports) == 1:
            return {}
        owners = {method.name: self._owner(budget, method) for method in budget.methods}
        return {name: stored.name for name, stored in owners.items() if stored is not None}

    def against(self, budget: Budget) -> dict[str, Measurement]:
        """By the names of methods, the baselines that are not the one which stands for all in the table."""
        base = budget.base
        if len(self.stored.reports) == 1 or base is None or base.subject.key not in self.needs.requests:
            return {}
        shown, found = self._whole(budget, base), {}
        for method in budget.methods:
            if method is not base and self._owner(budget, method) is not None:
                other = self.baseline_of(budget, method, base)
                if differences.differing(shown, other):
                    found[method.name] = other
        return found

    def cpu(self, budget: Budget, method: Method) -> str:
        """The CPU of the machine that measured a method."""
        return (self._owner(budget, method) or self._reports[0]).report.machine.cpu

    def origin(self, root: Path) -> tuple[Machine, Commit | None, JudgedFrom]:
        """What the measurements hold for: machine and commit of the measured runs, and the reports themselves."""
        first, commits = self.stored.reports[0].report, {stored.report.commit for stored in self.stored.reports}
        return first.machine, first.commit if len(commits) == 1 else None, self.stored.origin

    @property
    def merged_from(self) -> tuple[MergedReport, ...]:
        """Machine and commit of each of several reports."""
        return self.stored.merged_from

    def notes(self, budgets: Sequence[Budget]) -> tuple[str, ...]:
        """What is not the same in all of several reports."""
        unlike = (note for budget in budgets for note in differences.unlike_baselines(self.stored, budget))
        return (*differences.notes(self.stored), *unlike)
