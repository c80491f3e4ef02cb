"""The history of a run: what is kept of it when it ends, and what has changed since the last one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_quantbudget.core.gpus import MergedReport
from pytest_quantbudget.core.history import MethodRun
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.judge.trend import Moved
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import history
from pytest_quantbudget.report.document import BudgetReport, Judged, Report


@dataclass
class Keeper:
    """Adds a run to the history at `place`; `told` says what came of it, and `whole` whether it is kept."""

    place: str
    told: list[str]
    whole: bool = True

    def keep(self, session: Session, report: Report, judged: Sequence[Judged]) -> Report:
        """Add the run; its report with what has changed since the last comparable run.

        Of a report that is judged again, only what the history does not hold is added, under the time at which it was
        measured.
        """
        place = safe(self.place)
        again = report.judged_from
        try:
            kept = _runs(session, report, judged)
            past = session.past
            self.told += past.notes
            changed = {
                (part.machine, file): tuple(history.changes(past.runs, part.budget, runs)) for part, file, runs in kept
            }
            runs = [run for _, _, of in kept for run in of]
            new = history.new(past.runs, runs) if again is not None else runs
            if history.write(self.place, new):
                self.told.append(f"added to the history {place}")
            else:
                self.told.append(f"nothing was added to the history {place}: it holds all that there is to keep")
        except OSError as error:
            self.whole = False
            self.told.append(f"the history {place} could not be read or written: {safe(str(error.strerror or error))}")
            return report
        return replace(report, budgets=_changed(report, changed))


def _changed(report: Report, changed: Mapping[tuple[str, str], tuple[Moved, ...]]) -> tuple[BudgetReport, ...]:
    return tuple(replace(b, changes=changed.get((b.machine, b.file), ())) for b in report.budgets)


def _runs(session: Session, report: Report, judged: Sequence[Judged]) -> list[tuple[Judged, str, list[MethodRun]]]:
    """What the history keeps of each budget: a run is one measuring, so of several reports each has its own."""
    again = report.judged_from
    at = again.measured if again is not None else report.created
    machine = report.machine
    sources = report.merged_from or (MergedReport("", at, machine, report.commit),)
    found = []
    for part in judged:
        file = os.path.relpath(part.budget.path, session.root)
        runs: list[MethodRun] = []
        for source in sources:
            mine = [method.name for method in part.budget.methods if part.reports.get(method.name, "") == source.file]
            if mine:
                measured = dict(part.measurements) | part.baseline_of(mine)
                of = history.runs_of(
                    [(part.budget, part.limits, file)], measured, source.machine.cpu, source.measured, source.commit
                )
                runs += [run for run in of if run.method in mine]
        found.append((part, file, runs))
    return found
