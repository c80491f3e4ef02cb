"""Measuring each subject once: from the store where it is known, else in a process of its own."""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.engines import TRANSFORMERS, VLLM
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Failure, Measurement, merge
from pytest_quantbudget.core.request import (
    DUMMY,
    KERNELS,
    LOAD,
    NO_TRUST,
    QUANTIZE,
    DivergenceOf,
    Request,
    Subject,
    Trust,
)
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.engine import logits_file
from pytest_quantbudget.judge.metrics.speed import doubts
from pytest_quantbudget.measure import child, elsewhere, interpreter, process, run_folder
from pytest_quantbudget.measure.interpreter import Interpreters, Unusable
from pytest_quantbudget.measure.job import FORK_SPOILED, NO_DRAFTS, Drafts, Job, References
from pytest_quantbudget.measure.keys import Keys, keys_of, logits_path
from pytest_quantbudget.measure.progress import Progress
from pytest_quantbudget.measure.recall import recall
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import engines, methods

TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
USED_UP = "the time for the whole run (--quant-timeout) was used up"


@dataclass
class Gathered:
    """The parts of one subject's measurement so far."""

    subject: Subject
    parts: list[Measurement] = field(default_factory=list)
    prepared: methods.Prepared | None = None

    def __post_init__(self) -> None:
        """Begin with an empty measurement, which says what the subject is."""
        self.parts.append(Measurement(self.subject))

    def fail(self, phase: str, message: str, detail: str = "") -> None:
        """Add a failure that ends the measurement."""
        self.parts.append(Measurement(self.subject, failures=(Failure(phase, "error", message, detail),)))


@dataclass
class Bench:
    """Measures subjects for one process of a run.

    `folder` is where the run's processes exchange measurements; `cache` is a local directory for checkpoints and
    hashes; `locks` holds one lock a device, for all runs of this user; `gpus` are those that this process may use, in
    the order in which it takes them; `deadline` is when the run has to end, on the monotonic clock, which all processes
    of a machine share. `progress` counts the messages of the measuring processes. `ahead` are modules that are imported
    once for all of them.
    """

    folder: Path
    cache: Path
    locks: Path
    store: Store
    gpus: Sequence[Gpu] = ()
    trust: Trust = NO_TRUST
    deadline: float = math.inf
    progress: Progress = field(default_factory=Progress)
    ahead: Sequence[str] = ()
    known: dict[str, Measurement] = field(default_factory=dict)
    interpreters: Interpreters = field(default_factory=Interpreters)

    def measure(self, request: Request, drafts: Drafts = NO_DRAFTS, baseline: Request | None = None) -> Measurement:
        """The measurement of a request's subject: from this process, from another of the run, or made now.

        `drafts` are the answers of the `baseline` to the tasks; its logits are taken again where they are needed and
        its file of them has gone.

        Never raises for what happens while measuring; that is in the record's `failures`. Where the caller is
        interrupted, the parts so far are the measurement: what hung or crashed once is not tried again.
        """
        key = request.subject.key
        if key not in self.known:
            with FileLock(self.folder / f"{key}.lock"):
                path = self.folder / f"{key}.json"
                self.known[key] = read(path) if path.exists() else self._measure(request, drafts, baseline, path)
        return self.known[key]

    def _measure(self, request: Request, drafts: Drafts, baseline: Request | None, path: Path) -> Measurement:
        gathered = Gathered(request.subject)
        try:
            self._make(request, drafts, baseline, gathered)
        except OSError as error:
            # A lock that cannot be taken, for example.
            gathered.fail(LOAD, f"{type(error).__name__}: {error}", traceback.format_exc())
        except BaseException as error:
            why = ": ".join(filter(None, (type(error).__name__, str(error))))
            gathered.fail(LOAD, f"measuring was interrupted ({why})")
            self.known[request.subject.key] = self._share(path, self._whole(gathered))
            raise
        return self._share(path, self._whole(gathered))

    def _share(self, path: Path, measured: Measurement) -> Measurement:
        """Give a measurement to the other processes of the run; where that fails, each of them makes its own."""
        try:
            codec.write_json(path, measured)
        except OSError as error:
            why = f"the folder for temporary files {path.parent.parent} takes nothing ({error.strerror or error})"
            return replace(measured, notes=(*measured.notes, why))
        return measured

    def _whole(self, gathered: Gathered) -> Measurement:
        notes = (*self.store.notes,)
        self.store.notes.clear()
        whole = merge([*gathered.parts, Measurement(gathered.subject, notes=notes)])
        remarks = (f"{whole.subject.name}: {doubt}" for speed in whole.speeds for doubt in doubts(speed))
        return replace(whole, notes=(*whole.notes, *remarks))

    def environ(self, count: int = 1) -> dict[str, str]:
        """The environment in which a process sees only the first `count` GPUs of this one."""
        uuids = [gpu.uuid for gpu in self.gpus[:count]]
        return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}

    def _torch_cache(self) -> dict[str, str]:
        """Where torch.compile keeps what it makes: by default among the temporary files, though it is meant to last."""
        return {} if TORCH_CACHE in os.environ else {TORCH_CACHE: str(self.cache / "torchinductor")}

    @contextlib.contextmanager
    def devices(self, count: int = 1) -> Iterator[None]:
        """Hold the devices that a measurement runs on: no other of this user's runs on them meanwhile.

        Two timings on one device would disturb each other. Raises Timeout when the run's time is over.
        """
        names = sorted(gpu.uuid for gpu in self.gpus[:count]) or ["cpu"]
        with contextlib.ExitStack() as held:
            # In one order everywhere: no two runs wait for each other.
            for name in names:
                held.enter_context(self._lock(self.locks / f"device-{name}.lock"))
            yield

    def _lock(self, path: Path) -> AbstractContextManager[object]:
        path.parent.mkdir(parents=True, exist_ok=True)
        left = max(0.0, self.deadline - time.monotonic())
        return FileLock(path, is_singleton=True).acquire(timeout=-1 if math.isinf(left) else left)

    def quantized(self, subject: Subject) -> Measurement:
        """The record of the subject's own quantization, made unless the cache has it; `quantized` is its name."""
        keys = keys_of(Request(subject), self.gpus[: subject.gpus], self.trust, self.cache / "hashes")
        gathered = Gathered(subject)
        self._child(Request(subject), keys, math.inf, gathered, only=QUANTIZE)
        return self._whole(gathered)

    def quantized_path(self, name: str) -> Path:
        """The directory of a quantization with that name."""
        return self.cache / "quantized" / name

    def _make(self, request: Request, drafts: Drafts, baseline: Request | None, gathered: Gathered) -> None:
        subject = request.subject
        spec = methods.resolved(subject)
        try:
            found = self.interpreters.find(subject.python, self.deadline) if subject.python else None
            missing = engines.missing(subject, found.modules if found else None) or _unfit(subject)
            missing = missing or (interpreter.outdated(subject, found) if found else None)
        except Unusable as error:
            if time.monotonic() >= self.deadline:
                gathered.fail(LOAD, f"not begun: {USED_UP}")
                return
            if not error.missing:
                gathered.fail(LOAD, str(error))
                return
            missing = f"{error}{engines.setup(subject)}"
        if missing is not None:
            gathered.parts.append(Measurement(subject, failures=(Failure(LOAD, "skip", missing),)))
            return
        keys = self._keys(request)
        references = self._references(request, drafts, baseline, gathered)
        # Stored results are never reused for repeat runs: it would hide the noise.
        stored = keys if not subject.again else None
        try:
            # Wait for another run that measures the same, then use its figures.
            with self._lock(self.cache / "locks" / f"{stored.folder}.lock") if stored else contextlib.nullcontext():
                rest: Request | None = request
                if stored:
                    device = self.gpus[0].name if self.gpus else "cpu"
                    recalled, rest = recall(self.store, request, stored, drafts, references, device)
                    gathered.parts += recalled
                if rest is None:
                    return
                if baseline is not None:
                    references = self._provide(rest, drafts, references, baseline, gathered)
                with self.devices(subject.gpus):
                    began = time.monotonic()
                    self._run(rest, keys, spec, gathered, drafts=drafts, references=references)
                    allowed = rest.timeout_s if math.isfinite(rest.timeout_s) else None
                    took = time.monotonic() - began
                    gathered.parts.append(Measurement(subject, took_s=took, allowed_s=allowed))
        except Timeout:
            gathered.fail(LOAD, f"not begun: {USED_UP}")

    def _references(self, request: Request, drafts: Drafts, baseline: Request | None, gathered: Gathered) -> References:
        """Where the baseline's logits lie, for the tasks on which the request's subject is compared with it.

        Where its engine gives none, nothing is loaded to learn that.
        """
        tasks = [part.task for part in request.of(DivergenceOf) if part.task in drafts]
        if baseline is None or not tasks:
            return {}
        engine = baseline.subject.engine
        if not engines.spec(engine).logits:
            why = f"no logits of {baseline.subject.method}: {engine} does not give full logits"
            lacks = tuple(Failure(task.divergence_phase, "not offered", why, fatal=False) for task in tasks)
            gathered.parts.append(Measurement(request.subject, failures=lacks))
            return {}
        keys = self._keys(baseline)
        return {
            task: logits_path(self.cache, self.folder, keys, baseline.subject, task, drafts[task]) for task in tasks
        }

    def _keys(self, request: Request) -> Keys | None:
        subject, found = request.subject, None
        if subject.python is not None:
            try:
                found = self.interpreters.find(subject.python, self.deadline)
            except Unusable:
                return None
        return keys_of(request, self.gpus[: subject.gpus], self.trust, self.cache / "hashes", found)

    def _provide(
        self, request: Request, drafts: Drafts, references: References, baseline: Request, gathered: Gathered
    ) -> References:
        """The files of the baseline's logits that the request needs and that can be used.

        Where one is missing or damaged, the baseline, whose answers may all have come from the store, is loaded again,
        unless it failed to keep its logits earlier in this run.
        """
        tasks = [part.task for part in request.of(DivergenceOf)]
        wanted = {task: path for task, path in references.items() if task in tasks}
        if not wanted:
            return {}
        kept = self.known.get(baseline.subject.key) or Measurement(baseline.subject)
        # Not the lock of the baseline's figures: two runs in which the roles are swapped would wait for each other.
        with self._lock(self.cache / "locks" / f"reference-{baseline.subject.key}.lock"):
            faults = {task: fault for task, path in wanted.items() if (fault := logits_file.fault(path))}
            if faults and not {task.divergence_phase for task in faults} & {f.phase for f in kept.failures}:
                kept = self._load_again(baseline, {task: drafts[task] for task in faults})
                damaged = {task: fault for task, fault in faults.items() if fault != logits_file.MISSING}
                why = "the kept logits of {} for task {} were made again: {}"
                notes = [why.format(baseline.subject.method, task.name, fault) for task, fault in damaged.items()]
                gathered.parts.append(Measurement(request.subject, notes=(*notes, *kept.notes)))
                faults = {task: fault for task in faults if (fault := logits_file.fault(wanted[task]))}
        for task, fault in faults.items():
            failure = kept.failure(task.divergence_phase) or Failure(task.divergence_phase, "error", fault)
            why = f"no logits of {baseline.subject.method}: {failure.message}"
            failure = replace(failure, phase=task.divergence_phase, message=why, fatal=False)
            gathered.parts.append(Measurement(request.subject, failures=(failure,)))
        return {task: path for task, path in wanted.items() if task not in faults}

    def _load_again(self, baseline: Request, answers: Drafts) -> Measurement:
        """Load the baseline to keep its logits for its answers, and for nothing else."""
        gathered = Gathered(baseline.subject)
        gathered.parts.append(Measurement(baseline.subject, tasks=tuple(answers.values())))
        only = replace(baseline, parts=tuple(DivergenceOf(task) for task in answers), rules=(), whole=())
        with self.devices(baseline.subject.gpus):
            self._run(only, self._keys(baseline), methods.resolved(baseline.subject), gathered)
        return self._whole(gathered)

    def _run(self, request: Request, keys: Keys | None, spec: methods.Spec, gathered: Gathered, **more: Any) -> None:
        """Measure, after quantizing and compiling kernels where the method does; all within the request's time."""
        if time.monotonic() >= self.deadline:
            raise Timeout("")
        until = time.monotonic() + request.timeout_s
        path = None
        subject = request.subject
        if engines.makes_first(subject):
            self._child(request, keys, until, gathered, only=QUANTIZE)
            made = gathered.parts[-1]
            if made.quantized is None:
                run_folder.sweep_half_made(self.cache)
                return
            path = str(self.quantized_path(made.quantized))
        if spec.prepare is not None and self.gpus:
            self._child(request, keys, until, gathered, only=KERNELS, quantized=path)
            if gathered.prepared is None:
                return
        self._child(request, keys, until, gathered, quantized=path, prepared=gathered.prepared, **more)

    def _child(self, request: Request, keys: Keys | None, until: float, gathered: Gathered, **more: Any) -> None:
        """Run one measuring process to its end; the phases that it reported count, however it ended."""
        with run_folder.temporary_files(self.folder) as temporary:
            self._run_process(request, keys, until, gathered, temporary=temporary, **more)

    def _run_process(self, request: Request, keys: Keys | None, until: float, gathered: Gathered, **more: Any) -> None:
        subject = request.subject
        answers = {result.task: result for part in gathered.parts for result in part.tasks}
        compared = [part.task for part in request.of(DivergenceOf)]
        job = Job(
            request,
            str(self.cache),
            str(self.folder),
            keys,
            self.store.place if not subject.again else None,
            self.store.refresh,
            trust=self.trust,
            environ={**self.environ(subject.gpus), **self._torch_cache()},
            answers={task: answers[task] for task in compared if task in answers},
            **more,
        )
        ends = min(until, self.deadline)
        python = engines.measured_in(subject)
        contexts = [elsewhere.Context(python)] if python is not None else process.contexts(self.ahead)
        while True:
            context = contexts.pop(0)
            self.progress.begin(subject.name)
            try:
                outcome = process.run(
                    context,
                    child.main,
                    (replace(job, last=not contexts),),
                    lambda message: self._hear(message, gathered),
                    name=f"quantbudget-{subject.name}",
                    until=ends,
                    tick=self.progress.tick,
                )
            except process.NotStarted as error:
                if not contexts:
                    gathered.fail(LOAD, f"no measuring process can be started: {error}")
                    return
                continue
            finally:
                self.progress.over()
            if outcome.code != FORK_SPOILED or not contexts:
                break
        if outcome.code == 0 and outcome.done:
            return
        at = outcome.phase or job.only or LOAD
        if outcome.code is not None:
            where = f" in {python}" if python is not None else ""
            why = f"the measuring process{where} {outcome.death} during phase {at!r}"
        elif self.deadline <= until:
            why = f"ended during phase {at!r}: {USED_UP}"
        else:
            why = f"not finished within its timeout of {format_time(request.timeout_s)}: ended during phase {at!r}"
        gathered.fail(at, why, outcome.tail)

    def _hear(self, message: Mapping[str, Any], gathered: Gathered) -> None:
        self.progress.hear(message)
        if "part" in message:
            gathered.parts.append(codec.from_builtins(Measurement, message["part"]))
        if "prepared" in message:
            gathered.prepared = codec.from_builtins(methods.Prepared, message["prepared"])


def _unfit(subject: Subject) -> str | None:
    """Why a subject cannot have dummy weights, where it is to have some."""
    if subject.load_format == DUMMY and subject.engine == TRANSFORMERS:
        unknown = methods.resolved(subject).resolve is not None
        return f"{subject.method} has no dummy weights: no kind makes what its checkpoint says it is" * unknown or None
    if subject.load_format != DUMMY or subject.engine == VLLM:
        return None
    return f"{subject.engine} has no dummy weights"


def read(path: Path) -> Measurement:
    """A record that was written by `codec.write_json`. Raises ValueError where it is none."""
    return codec.from_builtins(Measurement, codec.read_json(path.read_bytes()))
