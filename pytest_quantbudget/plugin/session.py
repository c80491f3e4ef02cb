"""What one run holds: the budgets, what they need measured, the measurements and the verdicts. Knows no pytest."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.budget.yaml import MAX_BYTES
from pytest_quantbudget.core import files, problems
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.files import named_folder
from pytest_quantbudget.core.gpus import Gpu, GpuNeed, share, visible_gpus
from pytest_quantbudget.core.gpus import lacking as gpus_lacking
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError, Problem
from pytest_quantbudget.core.request import NO_TRUST, Request, Trust
from pytest_quantbudget.core.safetext import printable, quoted
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, SKIPPED, Entry, Verdict
from pytest_quantbudget.judge import noise
from pytest_quantbudget.judge.margin import RATE
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.judge.verdict import judge, unjudged
from pytest_quantbudget.measure import bench, flip_rates, hardware, job, run_folder
from pytest_quantbudget.measure.answers_file import AnswersFile
from pytest_quantbudget.measure.progress import Progress, View
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models.estimate import fit

if TYPE_CHECKING:
    from pytest_quantbudget.report.again import Stored


@dataclass(frozen=True)
class Options:
    """What the command line and the ini file say about measuring."""

    cache: Path  # a local directory, for checkpoints
    store: str | None = None  # where results are kept, a directory or URL; None for nowhere
    refresh: bool = False
    require_gpu: bool = False
    strict: bool = False  # a limit that its questions cannot decide is a mistake
    trust: Trust = NO_TRUST
    roots: tuple[Path, ...] | None = None  # outside of which budgets may name nothing
    timeout_s: float = math.inf
    stored: Stored | None = None  # a report that is judged, in place of measuring
    noise: int = 0  # how many equal runs show the noise of each budget's baseline
    update: str = ""  # which limits are written into the budgets at the end: see update.MODES
    update_rate: float = RATE
    load_format: str | None = None  # instead of the budgets'


@dataclass
class Session:
    """The state of one run, in the controller or in a worker."""

    root: Path
    options: Options
    folder: Path | None = None  # where this run's measurements are exchanged; a worker is told
    worker: int | None = None  # its number, where the run has several
    deadline: float = math.inf
    view: View | None = None  # who shows how far a measurement is
    answers: Path | None = None  # where answers are written as they come
    opened: list[Path] = field(default_factory=list)  # folders of budgets that were named
    budgets: dict[Path, Budget] = field(default_factory=dict)
    texts: dict[Path, bytes] = field(default_factory=dict)  # of the budgets, as they were read
    needs: dict[str, Request] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    _noise: dict[Path, Noise] = field(default_factory=dict)
    _own_folder: run_folder.RunFolder | None = None
    _bench: bench.Bench | None = None
    _gpus: list[Gpu] | None = None

    def named(self, name: str, base: Path) -> list[Path]:
        """The budgets that the command line or the ini file names; their folder is open to them. Raises BudgetError."""
        self.opened.append(named_folder(base, name))
        return find_budgets(name, base)

    def budget(self, path: Path) -> Budget:
        """The budget in a file, read once. Raises BudgetError."""
        path = path.resolve()
        if path not in self.budgets:
            roots = None if self.options.roots is None else (*self.options.roots, *self.opened)
            self.budgets[path] = load_budget(
                path, roots, self.options.load_format, elsewhere=self.options.stored is not None
            )
            self.texts[path] = files.read(path, MAX_BYTES)
        return self.budgets[path]

    def check_id(self, argument: str) -> None:
        """Raise BudgetError, with the nearest right name, for an id `FILE::METHOD::LIMIT` that names nothing."""
        file, *parts = argument.split("::")
        path = Path(file)
        budget = self.budget(path)
        names = [method.name for method in budget.methods]
        if parts and parts[0] not in names:
            raise BudgetError(Problem(path, 0, f"has no method {parts[0]!r}{problems.nearest(parts[0], names)}"))
        if len(parts) > 1:
            limits = [limit.name for limit in budget.method(parts[0]).limits]
            if parts[1] not in limits:
                near = problems.nearest(parts[1], limits)
                raise BudgetError(Problem(path, 0, f"{parts[0]} has no limit {parts[1]!r}{near}"))

    @property
    def exchange(self) -> Path:
        """The folder through which the processes of this run share measurements."""
        if self.folder is None:
            self._own_folder = run_folder.RunFolder()
            self.folder = self._own_folder.path
        return self.folder

    def close(self) -> None:
        """The run is over: its folder goes."""
        if self._own_folder is not None:
            self._own_folder.remove()

    @property
    def gpus(self) -> list[Gpu]:
        """The GPUs that this process may use, largest first, with their memory when they were first looked at."""
        if self._gpus is None:
            visible = visible_gpus(hardware.all_gpus(), os.environ)
            self._gpus = share(sorted(visible, key=lambda gpu: -gpu.total), self.worker)
        return self._gpus

    @property
    def bench(self) -> bench.Bench:
        """Where measurements are made."""
        if self._bench is None:
            options = self.options
            keeps = options.store is not None and run_folder.unwritable(options.cache) is None
            cache = options.cache if keeps else self.exchange
            place = options.store or str(self.exchange / "results")
            self._bench = bench.Bench(
                self.exchange,
                cache,
                run_folder.device_locks(self.exchange),
                Store(place, refresh=options.refresh),
                self.gpus,
                options.trust,
                self.deadline,
                Progress(self.view),
                AnswersFile(self.answers) if self.answers else None,
            )
        return self._bench

    def lacking(self, need: GpuNeed) -> str | None:
        """What this machine lacks for `need`, or None."""
        return gpus_lacking(need, self.gpus[: need.count])

    def lacking_for(self, budget: Budget, method: Method, need: GpuNeed) -> str | None:
        """What the machine lacks for `need` that a planned method is, or was, measured on; or None."""
        stored = self.options.stored
        if stored is None:
            return self.lacking(need)
        return gpus_lacking(need, stored.gpus(self.measure(budget, method).device)[: need.count])

    def plan(self, budget: Budget, method: Method, limits: Sequence[Limit] | None) -> None:
        """Note what `limits` of a method need (all that the file declares where None), the baseline included.

        Beside every limit stands how much the baseline's figure varies, if that is asked for.
        """
        if limits is not None:
            limits = [limit for limit in limits if unjudged(method.subject, limit.kind) is None]
            if not limits:
                return
        self._need(budget.request(method, limits))
        related = [limit for limit in limits or () if limit.kind.relation or self.options.noise]
        if related and budget.baseline is not None:
            self._need(budget.request(budget.method(budget.baseline), related))

    def _need(self, request: Request) -> None:
        key = request.subject.key
        self.needs[key] = self.needs[key].and_(request) if key in self.needs else request

    def measure(self, budget: Budget, method: Method) -> Measurement:
        """The measurement of a planned method; where the baseline is planned as well, that comes first.

        Its answers to the tasks serve as drafts.
        """
        needed = self.needs[method.subject.key]
        if self.options.stored is not None:
            return self.options.stored.measure(needed, budget.path.name)
        base = budget.method(budget.baseline) if budget.baseline is not None else None
        drafts: job.Drafts = {}
        if needed.tasks and base is not None and self._before(budget, base, method):
            drafts = {result.task: result for result in self.measure(budget, base).tasks}
        if base is None or base.subject.key == method.subject.key:
            return self.bench.measure(needed, drafts)
        needed = replace(needed, divergence=tuple(task for task in needed.divergence if task in drafts))
        return self.bench.measure(needed, drafts, self.needs.get(base.subject.key))

    def _before(self, budget: Budget, base: Method, method: Method) -> bool:
        """Whether the baseline is another subject than the method's, is planned, and can be measured here."""
        planned = base.subject.key in self.needs and base.subject.key != method.subject.key
        return planned and self._has_room(budget, base)

    def too_large(self, budget: Budget, method: Method, limit: Limit | None = None) -> str | None:
        """Why a method cannot fit the GPUs that it would be given, by its estimate; None where it may.

        What counts is what the limit needs: the peak of the workload, or the weights alone.
        """
        if self.options.stored is not None:  # it was measured, so it had room
            return None
        runs = limit is not None and bool(budget.request(method, [limit]).workloads)
        return fit.too_large(method.subject, budget.workload, self.gpus, runs=runs)

    def _has_room(self, budget: Budget, method: Method) -> bool:
        lacking = self.lacking(method.gpu) if method.gpu is not None else None
        return lacking is None and self.too_large(budget, method) is None

    def equal_runs(self, budget: Budget) -> list[Measurement]:
        """The measurement of a budget's baseline, then those of its equal runs, each made once a run.

        An equal run is measured as a method is: in a process of its own, with the first run's answers as drafts.
        Whatever failed is in its record. Empty without --quant-noise, without a baseline that is planned and that this
        machine has the GPUs for, and where the baseline came to no end.
        """
        base = budget.method(budget.baseline) if budget.baseline is not None else None
        if not self.options.noise or base is None or base.subject.key not in self.needs:
            return []
        if not self._has_room(budget, base):
            return []
        runs = [self.measure(budget, base)]
        if any(failure.fatal for failure in runs[0].failures):
            return []
        needed = self.needs[base.subject.key]
        drafts = {result.task: result for result in runs[0].tasks}
        compared = tuple(task for task in needed.divergence if task in drafts)
        for subject in noise.subjects(budget, self.options.noise)[1:]:
            again = replace(needed, subject=subject, divergence=compared)
            runs.append(self.bench.measure(again, drafts, needed))
        return runs

    def noise_of(self, budget: Budget) -> Noise | None:
        """How much equal runs of a budget's baseline differ, measured first; None where nobody asks."""
        if self.options.stored is not None:
            return self.options.stored.noise(budget.path.name, budget.baseline)
        if self.options.noise and budget.path not in self._noise:
            self._noise[budget.path] = noise.of(budget, self.equal_runs(budget))
        return self._noise.get(budget.path)

    def noise_seen(self, budget: Budget, found: Mapping[str, Measurement]) -> Noise | None:
        """The noise as far as the run's measurements, `found`, tell, whichever process made them."""
        if self.options.stored is not None or not self.options.noise:
            return self.noise_of(budget)
        runs = [found.get(subject.key) for subject in noise.subjects(budget, self.options.noise)]
        return noise.of(budget, [run for run in runs if run is not None])

    def finish_measuring(self) -> None:
        """Measure all that is planned: what is loaded in this process afterwards must not disturb it."""
        for budget, method in [(b, m) for b in self.budgets.values() for m in b.methods]:
            if method.subject.key in self.needs and self._has_room(budget, method):
                self.measure(budget, method)
        for _, budget, _ in self.files():
            self.noise_of(budget)

    def judge(self, budget: Budget, method: Method, limit: Limit, needs: Sequence[GpuNeed] = ()) -> Verdict:
        """The verdict on a limit, measuring first what has not been measured; nothing is where `needs` are not met."""
        why = unjudged(method.subject, limit.kind)
        if why is not None:
            return Verdict(SKIPPED, f"{method.name}: {limit.name} {why}")
        for need in needs:
            lacking = self.lacking_for(budget, method, need)
            if lacking is not None:
                return self._without_gpu(
                    Verdict(SKIPPED, f"{method.name}: {limit.name} {lacking}", for_want_of_gpu=True)
                )
        base = budget.method(budget.baseline) if limit.kind.relation and budget.baseline is not None else None
        lacking = self.lacking_for(budget, base, base.gpu) if base is not None and base.gpu is not None else None
        if base is not None and lacking is not None:
            why = f"not measured: the baseline {base.name} {lacking}"
            return self._without_gpu(Verdict(SKIPPED, f"{method.name}: {limit.name} {why}", for_want_of_gpu=True))
        for one in filter(None, (method, base)):
            large = self.too_large(budget, one, limit)
            if large is not None:
                whose = "" if one is method else f"the baseline {one.name} "
                why = f"not measured: {whose}{large}"
                return self._without_gpu(Verdict(SKIPPED, f"{method.name}: {limit.name} {why}", for_want_of_gpu=True))
        measured = {method.name: self.measure(budget, method)}
        if base is not None:
            measured[base.name] = self.measure(budget, base)
        if needs and any(m.device is not None and m.device.name == "cpu" for m in measured.values()):
            why = "needs a GPU; one was found and torch cannot use it"
            return self._without_gpu(Verdict(SKIPPED, f"{method.name}: {limit.name} {why}", for_want_of_gpu=True))
        verdict = judge(budget, method, limit, measured, self.noise_of(budget))
        if self.options.stored is not None:  # nobody knows who wrote that report
            verdict = replace(verdict, message=printable(verdict.message))
        return self._without_gpu(verdict)

    def _without_gpu(self, verdict: Verdict) -> Verdict:
        """With --quant-require-gpu, a gate must not go green by skipping."""
        if self.options.require_gpu and verdict.outcome == SKIPPED and verdict.for_want_of_gpu:
            return replace(verdict, outcome=FAILED, message=f"{verdict.message} (--quant-require-gpu)")
        return verdict

    def select(self, ids: Iterable[str]) -> None:
        """Note the ids that the run selected; each is `not run` until a verdict comes."""
        for id_ in ids:
            file, _, rest = id_.partition("::")
            method, _, limit = rest.partition("::")
            path = (self.root / file).resolve()
            if path in self.budgets and id_ not in self.entries:
                self.entries[id_] = Entry(id_, path, method, limit, Verdict(NOT_RUN, "selected and never judged"))

    def record(self, id_: str, verdict: Verdict) -> None:
        """Note the verdict on a selected limit."""
        self.select([id_])
        self.entries[id_] = replace(self.entries[id_], verdict=verdict)

    def not_run(self) -> list[Entry]:
        """Selected limits without a verdict."""
        return [entry for entry in self.entries.values() if entry.verdict.outcome == NOT_RUN]

    def measurements(self) -> dict[str, Measurement]:
        """All measurements of the run so far, by subject, whichever process made them."""
        if self.options.stored is not None:
            return self._stored()
        if self.folder is None:
            return {}
        own = self._bench.known if self._bench is not None else {}
        return {**own, **{path.stem: bench.read(path) for path in sorted(self.folder.glob("*.json"))}}

    def remember(self) -> None:
        """Keep what later runs want to know of this one before they load anything: rates of flips."""
        if self.options.store is not None and self.options.stored is None and self.entries:
            flip_rates.remember(self.options.cache, self.budgets.values(), self.measurements())

    def _stored(self) -> dict[str, Measurement]:
        """What the selected limits are judged on, found anew in the report: xdist's controller judges nothing."""
        found = {}
        for _, budget, entries in self.files():
            selected = {(entry.method, entry.limit) for entry in entries}
            for method in budget.methods:
                limits = [limit for limit in method.limits if (method.name, limit.name) in selected]
                if limits:
                    self.plan(budget, method, limits)
            for method in budget.methods:
                if method.subject.key in self.needs:
                    found[method.subject.key] = self.measure(budget, method)
        return found

    def files(self) -> Iterator[tuple[Path, Budget, list[Entry]]]:
        """The budgets that have selected limits, with these, in the order of the files' lines."""
        for path, budget in self.budgets.items():
            mine = [entry for entry in self.entries.values() if entry.file == path]
            if mine:
                order = {(m.name, limit.name): i for i, (m, limit) in enumerate(_lines(budget))}
                yield path, budget, sorted(mine, key=lambda e: order.get((e.method, e.limit), len(order)))


def _lines(budget: Budget) -> Iterator[tuple[Method, Limit]]:
    for method in budget.methods:
        for limit in method.limits:
            yield method, limit


def explain(limit: Limit, verdict: Verdict) -> str:
    """A broken limit in words: the verdict, the user's line, and what the measuring process last said."""
    text = f"{verdict.message}\n\n{Problem(limit.file, limit.line, 'this line')}"
    return f"{text}\n\n{quoted(verdict.detail)}" if verdict.detail else text


PROPERTIES = tuple(field.name for field in fields(Verdict))


def properties(verdict: Verdict) -> list[tuple[str, object]]:
    """A verdict as flat pairs of builtins, which xdist carries to the controller and JUnit prints."""
    return [(f"quant.{name}", getattr(verdict, name)) for name in PROPERTIES]


def verdict_of(pairs: Iterable[tuple[str, object]]) -> Verdict | None:
    """The inverse of `properties`; None where the pairs hold no verdict."""
    found: Mapping[str, object] = dict(pairs)
    if "quant.outcome" not in found:
        return None
    return Verdict(**{name: found[f"quant.{name}"] for name in PROPERTIES})  # type: ignore[arg-type]


SESSION = pytest.StashKey[Session]()
