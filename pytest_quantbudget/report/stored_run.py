"""A run that measures nothing: its measurements are those of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import Commit, GpuNeed, Machine, lacking
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.report.again import Stored
from pytest_quantbudget.report.document import JudgedFrom


@dataclass
class StoredRun:
    """Takes what a run needs from a report, as `measure.runner.Runner` measures it."""

    needs: Needs
    stored: Stored

    def lacking(self, budget: Budget, method: Method, need: GpuNeed) -> str | None:
        """What the GPUs that a planned method was measured on lack for `need`, or None."""
        return lacking(need, self.stored.gpus(self.measure(budget, method).device)[: need.count])

    def too_large(self, budget: Budget, method: Method, limit: Limit | None = None) -> str | None:
        """None: what was measured had room."""
        return None

    def measure(self, budget: Budget, method: Method) -> Measurement:
        """The stored measurement of a planned method."""
        return self.stored.measure(self.needs.requests[method.subject.key], budget.path.name)

    def noise(self, budget: Budget, measurements: Mapping[str, Measurement] | None = None) -> Noise | None:
        """How much repeat runs of a budget's baseline differed; None where the report's run made none."""
        return self.stored.noise(budget.path.name, budget.repeated.name if budget.repeated is not None else None)

    def measurements(self) -> dict[str, Measurement]:
        """What everything that is planned is judged on, by subject."""
        requests = self.needs.requests.items()
        return {key: self.stored.measure(request, self.needs.files[key]) for key, request in requests}

    @property
    def cpu(self) -> str:
        """The CPU of the machine that measured."""
        return self.stored.report.machine.cpu

    def origin(self, root: Path) -> tuple[Machine, Commit | None, JudgedFrom]:
        """What the measurements hold for: the machine and the commit of the measured run, and the report itself."""
        return self.stored.report.machine, self.stored.report.commit, self.stored.origin
