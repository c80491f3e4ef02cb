"""Measuring what a run needs: in which order, with which drafts, and on which GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.gpus import Commit, GpuNeed, Machine, MergedReport
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import NO_TRUST, DivergenceOf, Request, Task, Trust, Workload
from pytest_quantbudget.judge import noise
from pytest_quantbudget.judge.needs import Needs, request
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.measure import bench, hardware, job, run_folder
from pytest_quantbudget.measure.hardware import LocalGpus
from pytest_quantbudget.measure.progress import Progress, View
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import fit


@dataclass
class Runner:
    """Measures what one process of a run needs.

    `cache` is a local directory for checkpoints and hashes, and `store` where results are kept, a directory or URL;
    None for nowhere. With `refresh`, results that are kept are not used. The run has to end at `deadline`, on the
    monotonic clock. `folder` is where the processes of the run share measurements, given to workers. `view` shows the
    progress.
    """

    needs: Needs
    gpus: LocalGpus
    cache: Path | None
    store: str | None = None
    refresh: bool = False
    trust: Trust = NO_TRUST
    deadline: float = math.inf
    folder: Path | None = None
    view: View | None = None
    _noise: dict[Path, Noise] = field(default_factory=dict)
    _run_folder: run_folder.RunFolder | None = None

    @property
    def exchange(self) -> Path:
        """The folder through which the processes of this run share measurements."""
        if self.folder is None:
            self._run_folder = run_folder.RunFolder()
            self.folder = self._run_folder.path
            if self.cache is not None:
                run_folder.sweep_cache(self.cache)
        return self.folder

    @cached_property
    def bench(self) -> bench.Bench:
        """What starts the measuring processes."""
        keeps = self.store is not None and self.cache is not None and run_folder.unwritable(self.cache) is None
        run_folder.note_sockets(self.exchange)
        return bench.Bench(
            self.exchange,
            self.cache if self.cache is not None and keeps else self.exchange,
            run_folder.device_locks(self.exchange),
            Store(self.store or str(self.exchange / "results"), refresh=self.refresh),
            self.gpus.usable,
            self.trust,
            self.deadline,
            Progress(self.view),
            self._ahead(),
        )

    def _ahead(self) -> list[str]:
        """What the planned methods import, on a machine without a GPU: with one, some of it might spoil a fork."""
        planned = [request.subject for request in self.needs.requests.values() if request.subject.python is None]
        needed = [methods.resolved(subject) for subject in planned if subject.engine == TRANSFORMERS]
        return [] if self.gpus.usable else sorted({module for spec in needed for module in spec.ahead})

    def lacking(self, budget: Budget, method: Method, need: GpuNeed) -> str | None:
        """What this machine lacks for `need`, or None."""
        return self.gpus.lacking(need)

    def too_large(self, budget: Budget, method: Method, limit: Limit | None = None) -> str | None:
        """Why a method cannot fit the GPUs that it would be given, by its estimate; None where it may.

        A limit on the workload needs room for its peak, every other limit for the weights.
        """
        runs = limit is not None and bool(request(budget, method, [limit]).of(Workload))
        return fit.too_large(method.subject, budget.workload, self.gpus.usable, runs=runs)

    def _has_room(self, budget: Budget, method: Method) -> bool:
        lacks = self.gpus.lacking(method.gpu) if method.gpu is not None else None
        return lacks is None and self.too_large(budget, method) is None

    def measure(self, budget: Budget, method: Method) -> Measurement:
        """The measurement of a planned method. A planned baseline is measured first: its answers are the drafts.

        Of a stored baseline they are in its report.
        """
        needed = self.needs.requests[method.subject.key]
        base = budget.base
        if budget.stored is not None:
            return self.bench.measure(needed, {result.task: result for result in budget.stored.measurement.tasks})
        if base is None or base.subject.key == method.subject.key:
            return self.bench.measure(needed)
        planned = self.needs.requests.get(base.subject.key)
        drafts: job.Drafts = {}
        if needed.of(Task) and planned is not None and self._has_room(budget, base):
            drafts = {result.task: result for result in self.measure(budget, base).tasks}
        return self.bench.measure(_comparable(needed, drafts), drafts, planned)

    def on(self, machine: str) -> Runner:
        """This: all is measured on the machine of the run."""
        return self

    def baseline_of(self, budget: Budget, method: Method, base: Method) -> Measurement:
        """The baseline that a method is compared with: there is one."""
        return self.measure(budget, base)

    def measured(self, budget: Budget, run: Mapping[str, Measurement]) -> Mapping[str, Measurement]:
        """What the methods of a budget are judged on, by subject, of all that the `run` has measured."""
        return run

    def reports(self, budget: Budget) -> dict[str, str]:
        """The reports that hold the methods of a budget: none."""
        return {}

    def against(self, budget: Budget) -> dict[str, Measurement]:
        """By the names of methods, the baselines that are not the one which stands for all in the table: none."""
        return {}

    @property
    def merged_from(self) -> tuple[MergedReport, ...]:
        """Machine and commit of each of several reports: there are none."""
        return ()

    def notes(self, budgets: Sequence[Budget]) -> tuple[str, ...]:
        """What is not the same in several reports: nothing."""
        return ()

    def measure_all(self, budgets: Iterable[Budget]) -> None:
        """Measure everything that is planned: what this process loads afterwards must not disturb it."""
        for budget in budgets:
            for method in budget.methods:
                if method.subject.key in self.needs.requests and self._has_room(budget, method):
                    self.measure(budget, method)

    def noise(self, budget: Budget, measurements: Mapping[str, Measurement] | None = None) -> Noise | None:
        """How much repeat runs of a budget's baseline differ; None where none are asked for.

        They are measured first, unless the run's `measurements` are given: then it is as far as these show it.
        """
        times = self.needs.times(budget)
        if not times:
            return None
        if measurements is not None:
            keys = [subject.key for subject in noise.subjects(budget, times)]
            return noise.of(budget, [measurements[key] for key in keys if key in measurements])
        if budget.path not in self._noise:
            self._noise[budget.path] = noise.of(budget, self._repeat_runs(budget))
        return self._noise[budget.path]

    def _repeat_runs(self, budget: Budget) -> list[Measurement]:
        """The measurement of what is repeated in a budget, its baseline, then those of its repeat runs.

        A repeat run is measured as a method is: in a process of its own, with the first run's answers as drafts.
        Empty where no selected limit needs the baseline, where it does not fit, and where its measurement failed.
        """
        base = budget.repeated
        if base is None or base.subject.key not in self.needs.requests or not self._has_room(budget, base):
            return []
        first = self.measure(budget, base)
        if any(failure.fatal for failure in first.failures):
            return []
        needed = self.needs.requests[base.subject.key]
        drafts = {result.task: result for result in first.tasks}
        again = _comparable(self.needs.repeated(budget, needed), drafts)
        subjects = noise.subjects(budget, self.needs.times(budget))
        repeats = [replace(again, subject=subject) for subject in subjects[1:]]
        return [first, *(self.bench.measure(request, drafts, needed) for request in repeats)]

    def measurements(self) -> dict[str, Measurement]:
        """All measurements of the run so far, by subject, whichever process made them."""
        if self.folder is None:
            return {}
        known = self.bench.known if "bench" in vars(self) else {}
        others = [path for path in sorted(self.folder.glob("*.json")) if path.stem not in known]
        return {**known, **{path.stem: bench.read(path) for path in others}}

    def origin(self, root: Path) -> tuple[Machine, Commit | None, None]:
        """What the measurements hold for: the machine, and the commit of the repository at `root`."""
        return hardware.machine(), hardware.commit(root), None

    def cpu(self, budget: Budget, method: Method) -> str:
        """The CPU of the machine that measures."""
        return hardware.cpu()

    def close(self) -> None:
        """The run is over: remove its folder."""
        if self._run_folder is not None:
            self._run_folder.remove()


def _comparable(request: Request, drafts: job.Drafts) -> Request:
    """The request without divergences on tasks that the baseline has not answered."""
    parts = (part for part in request.parts if not isinstance(part, DivergenceOf) or part.task in drafts)
    return replace(request, parts=tuple(parts))
