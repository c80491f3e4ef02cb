"""The history of a run: what is kept of it when it ends, and what has changed since the last one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import history
from pytest_quantbudget.report.document import Report


@dataclass
class Keeper:
    """Adds a run to the history at `place`; `told` says what came of it, and `whole` whether it is kept."""

    place: str
    told: list[str]
    whole: bool = True

    def keep(
        self,
        session: Session,
        report: Report,
        judged: Sequence[tuple[Budget, Sequence[LimitReport], Noise | None]],
        measurements: Mapping[str, Measurement],
    ) -> Report:
        """Add the run; its report with what has changed since the last comparable run.

        Of a report that is judged again, only what the history does not hold is added, under the time at which it was
        measured.
        """
        place = safe(self.place)
        again = report.judged_from
        at = again.measured if again is not None else report.created
        named = [(budget, limits, os.path.relpath(budget.path, session.root)) for budget, limits, _ in judged]
        try:
            runs = history.runs_of(named, dict(measurements), session.measurer.cpu, at, report.commit)
            past = session.past
            self.told += past.notes
            changed = {
                file: tuple(history.changes(past.runs, budget, [run for run in runs if run.budget == file]))
                for budget, _, file in named
            }
            new = history.new(past.runs, runs) if again is not None else runs
            if history.write(self.place, new):
                self.told.append(f"added to the history {place}")
            else:
                self.told.append(f"nothing was added to the history {place}: it holds all that there is to keep")
        except OSError as error:
            self.whole = False
            self.told.append(f"the history {place} could not be read or written: {safe(str(error.strerror or error))}")
            return report
        return replace(report, budgets=tuple(replace(b, changes=changed.get(b.file, ())) for b in report.budgets))
