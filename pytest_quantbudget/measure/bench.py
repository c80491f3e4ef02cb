"""Measuring each subject once: from the store where it is known, else in a process of its own."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import Origin, TaskResult, draft_id
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Failure, Measurement, merge
from pytest_quantbudget.core.request import DUMMY, LOAD, NO_TRUST, QUANTIZE, Request, Subject, Task, Trust
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.engine import logits_file
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure import child, process
from pytest_quantbudget.measure.answers_file import AnswersFile
from pytest_quantbudget.measure.job import FORK_SPOILED, NO_DRAFTS, Drafts, Job, References
from pytest_quantbudget.measure.keys import Keys, keys_of, path_of
from pytest_quantbudget.measure.progress import Progress
from pytest_quantbudget.measure.store import Entry, Key, Store
from pytest_quantbudget.models import methods

USED_UP = "the time for the whole run (--quant-timeout) was used up"


@dataclass
class Bench:
    """Measures subjects for one process of a run.

    `folder` is where the run's processes exchange measurements; `cache` is a local directory for checkpoints and
    hashes; `locks` holds one lock a device, for all runs of this user; `gpus` are those that this process may use, in
    the order in which it takes them; `deadline` is when the run has to end, on the monotonic clock, which all processes
    of a machine share. What measuring processes say is also told to `progress`, and answers to `answers`.
    """

    folder: Path
    cache: Path
    locks: Path
    store: Store
    gpus: Sequence[Gpu] = ()
    trust: Trust = NO_TRUST
    deadline: float = math.inf
    progress: Progress = field(default_factory=Progress)
    answers: AnswersFile | None = None
    known: dict[str, Measurement] = field(default_factory=dict)
    _parts: list[Measurement] = field(default_factory=list)

    def measure(self, request: Request, drafts: Drafts = NO_DRAFTS, baseline: Request | None = None) -> Measurement:
        """The measurement of a request's subject: from this process, from another of the run, or made now.

        `drafts` are the answers of the `baseline` to the tasks; its logits are taken again where they are needed and
        its file of them has gone.

        Never raises for what happens while measuring; that is in the record's `failures`. Where the caller is
        interrupted, what there is by then is the measurement: whatever hung or crashed once is not tried again.
        """
        key = request.subject.key
        if key not in self.known:
            with FileLock(self.folder / f"{key}.lock"):
                path = self.folder / f"{key}.json"
                if not path.exists():
                    self._parts = [Measurement(request.subject)]
                    try:
                        self._make(request, drafts, baseline)
                    except OSError as error:  # a lock that cannot be had, say
                        why = f"{type(error).__name__}: {error}"
                        self._parts.append(self._failed(request.subject, LOAD, why, traceback.format_exc()))
                    except BaseException as error:
                        why = f"measuring was interrupted ({type(error).__name__})"
                        self._parts.append(self._failed(request.subject, LOAD, why))
                        raise
                    finally:
                        self.known[key] = self._share(path, self._whole())
                else:
                    self.known[key] = read(path)
        return self.known[key]

    def _share(self, path: Path, measured: Measurement) -> Measurement:
        """Give a measurement to the other processes of the run; where that fails, each of them makes its own."""
        try:
            codec.write_json(path, measured)
        except OSError as error:
            why = f"the folder for temporary files {path.parent.parent} takes nothing ({error.strerror or error})"
            return replace(measured, notes=(*measured.notes, why))
        return measured

    def _whole(self) -> Measurement:
        notes = (*self.store.notes,)
        self.store.notes.clear()
        whole = merge([*self._parts, Measurement(self._parts[0].subject, notes=notes)])
        doubts = (f"{whole.subject.name}: {doubt}" for speed in whole.speeds for doubt in speed.doubts)
        return replace(whole, notes=(*whole.notes, *doubts))

    def environ(self, count: int = 1) -> dict[str, str]:
        """What shows the first `count` GPUs of this process, and no other, to the processes that it starts."""
        uuids = [gpu.uuid for gpu in self.gpus[:count]]
        return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}

    @contextlib.contextmanager
    def devices(self, count: int = 1) -> Iterator[None]:
        """Hold the devices that a measurement runs on: no other of this user's runs on them meanwhile.

        Two timings on one device would disturb each other. Raises Timeout when the run's time is over.
        """
        names = sorted(gpu.uuid for gpu in self.gpus[:count]) or ["cpu"]
        with contextlib.ExitStack() as held:
            for name in names:  # in one order everywhere, so that nobody waits in a circle
                held.enter_context(self._lock(self.locks / f"device-{name}.lock"))
            yield

    def _lock(self, path: Path) -> AbstractContextManager[object]:
        path.parent.mkdir(parents=True, exist_ok=True)
        left = max(0.0, self.deadline - time.monotonic())
        return FileLock(path, is_singleton=True).acquire(timeout=-1 if math.isinf(left) else left)

    def quantized(self, subject: Subject) -> Measurement:
        """The record of the subject's own quantization, made unless it is kept already; `quantized` is its name."""
        keys = keys_of(Request(subject), self.gpus[: subject.gpus], self.trust, self.cache / "hashes")
        self._parts = [Measurement(subject)]
        self._child(Request(subject), keys, math.inf, quantize=True)
        return self._whole()

    def quantized_path(self, name: str) -> Path:
        """Where a quantization of that name is kept."""
        return self.cache / "quantized" / name

    def _make(self, request: Request, drafts: Drafts, baseline: Request | None) -> None:
        subject = request.subject
        spec = methods.spec(subject.method)
        missing = spec.missing()
        if missing is not None:
            self._parts.append(Measurement(subject, failures=(Failure(LOAD, "skip", missing),)))
            return
        keys = self._keys(request)
        references = self._references(request, drafts, baseline)
        stored = keys if not subject.again else None  # what equal runs are to show would be gone in what is stored
        try:
            # Another run that measures the same is waited for: its figures are ours.
            with self._lock(self.cache / "locks" / f"{stored.folder}.lock") if stored else contextlib.nullcontext():
                rest = self._recall(request, stored, drafts, references) if stored else request
                if rest is None:
                    return
                if baseline is not None:
                    references = self._provide(rest, drafts, references, baseline)
                with self.devices(subject.gpus):
                    self._run(rest, keys, spec, drafts=drafts, references=references)
        except Timeout:
            self._parts.append(self._failed(subject, LOAD, f"not begun: {USED_UP}"))

    def _references(self, request: Request, drafts: Drafts, baseline: Request | None) -> References:
        """Where the baseline's logits lie, for the tasks on which the request's subject is compared with it."""
        if baseline is None or not request.divergence:
            return {}
        keys = self._keys(baseline)
        return {
            task: path_of(self.cache, self.folder, keys, baseline.subject, task, drafts[task])
            for task in request.divergence
            if task in drafts
        }

    def _keys(self, request: Request) -> Keys | None:
        return keys_of(request, self.gpus[: request.subject.gpus], self.trust, self.cache / "hashes")

    def _provide(self, request: Request, drafts: Drafts, references: References, baseline: Request) -> References:
        """Those of the files of the baseline's logits that there are.

        The baseline, whose answers may all have come from the store, is loaded again for those that are needed and not
        there, or not whole; unless it failed to keep them earlier in this run.
        """
        wanted = {task: path for task, path in references.items() if task in request.divergence}
        if not wanted:
            return {}
        told = self.known.get(baseline.subject.key) or Measurement(baseline.subject)
        # Not the lock of the baseline's figures: a run in which the two have changed places would wait in a circle.
        with self._lock(self.cache / "locks" / f"reference-{baseline.subject.key}.lock"):
            faults = {task: fault for task, path in wanted.items() if (fault := logits_file.fault(path))}
            if faults and not {task.divergence_phase for task in faults} & {f.phase for f in told.failures}:
                told = self._load_again(baseline, {task: drafts[task] for task in faults})
                noted = {task: fault for task, fault in faults.items() if fault != logits_file.MISSING}
                why = "the kept logits of {} for task {} were made again: {}"
                notes = [why.format(baseline.subject.method, task.name, fault) for task, fault in noted.items()]
                self._parts.append(Measurement(request.subject, notes=(*notes, *told.notes)))
                faults = {task: fault for task in faults if (fault := logits_file.fault(wanted[task]))}
        for task, fault in faults.items():
            failure = told.failure(task.divergence_phase) or Failure(task.divergence_phase, "error", fault)
            why = f"no logits of {baseline.subject.method}: {failure.message}"
            failure = replace(failure, phase=task.divergence_phase, message=why, fatal=False)
            self._parts.append(Measurement(request.subject, failures=(failure,)))
        return {task: path for task, path in wanted.items() if task not in faults}

    def _load_again(self, baseline: Request, answers: Drafts) -> Measurement:
        """Have the baseline keep its logits for its answers, and do nothing else; what was told of that."""
        own, self._parts = self._parts, [Measurement(baseline.subject, tasks=tuple(answers.values()))]
        only = Request(baseline.subject, timeout_s=baseline.timeout_s, divergence=tuple(answers))
        try:
            with self.devices(baseline.subject.gpus):
                self._run(only, self._keys(baseline), methods.spec(baseline.subject.method))
            return self._whole()
        finally:
            self._parts = own

    def _recall(self, request: Request, keys: Keys, drafts: Drafts, references: References) -> Request | None:
        """Take in what the store knows; what is left to measure, or None where nothing is.

        A baseline's own logits are no figure, and left to be kept only where it is loaded anyway: once they are needed,
        `_provide` sees to them.
        """
        loaded, _ = self._stored(keys.load(), request.subject)
        took, age = self._stored(keys.load_time(), request.subject)
        if took and age and not age.younger_than(request.max_age_s):
            took = None
        workloads = []
        for workload in request.workloads:
            part, age = self._stored(keys.workload(workload), request.subject)
            if part and age and age.younger_than(request.max_age_s):
                self._parts.append(part)
            else:
                workloads.append(workload)
        prompts = [p for p in request.prompts if not self._take(self._stored(keys.reply(p), request.subject)[0])]
        tasks, compared = [], []
        for task in request.tasks:
            part, _ = self._stored(keys.task(task, draft_id(drafts.get(task))), request.subject)
            if part and self._enough(request, task, part, drafts.get(task)):
                path = references.get(task)
                results = [_compared(replace(result, task=task), path) for result in part.tasks]
                self._parts.append(replace(part, tasks=tuple(results)))
                if path is not None and any(result.divergence for result in results):
                    compared.append(task)
            else:
                tasks.append(task)
        divergence = tuple(task for task in request.divergence if task not in compared)
        apart = any(task in references for task in divergence)
        texts = []
        for text in request.texts:
            part, _ = self._stored(keys.perplexity(text), request.subject)
            if part:
                self._parts.append(replace(part, perplexities=tuple(replace(p, text=text) for p in part.perplexities)))
            else:
                texts.append(text)
        if loaded and (took or not request.load_time) and not (workloads or prompts or tasks or texts or apart):
            self._parts += [part for part in (loaded, took) if part]
            return None
        rest = replace(request, workloads=tuple(workloads), prompts=tuple(prompts), tasks=tuple(tasks))
        return replace(rest, texts=tuple(texts), divergence=divergence)

    def _enough(self, request: Request, task: Task, part: Measurement, baseline: TaskResult | None) -> bool:
        """Whether stored answers decide what the request wants decided: a growing task's may have ended before.

        They are read as the task reads them now: under another name, or another extraction, they may decide less.
        """
        device = self.gpus[0].name if self.gpus else "cpu"
        return all(
            len(result.answers) == result.total
            or sequential.stopped(request, device, replace(result, task=task), baseline)
            for result in part.tasks
        )

    def _take(self, part: Measurement | None) -> bool:
        if part:
            self._parts.append(part)
        return part is not None

    def _stored(self, key: Key, subject: Subject) -> tuple[Measurement | None, Entry | None]:
        """The part that is stored under a key, marked as reused."""
        entry = self.store.get(key)
        if entry is None:
            return None, None
        try:
            part = codec.from_builtins(Measurement, entry.payload)
        except ValueError as error:
            self.store.set_aside(key, str(error))
            return None, None
        origin = Origin(entry.at, reused=True)
        return replace(
            part,
            subject=subject,
            loaded=origin if part.weights is not None else None,
            speeds=tuple(replace(speed, origin=origin) for speed in part.speeds),
            tasks=tuple(replace(task, origin=origin) for task in part.tasks),
            perplexities=tuple(replace(text, origin=origin) for text in part.perplexities),
        ), entry

    def _run(self, request: Request, keys: Keys | None, spec: methods.Spec, **more: Any) -> None:
        """Measure, after the method's own quantization where it has one; both within the request's time."""
        if time.monotonic() >= self.deadline:
            raise Timeout("")
        until = time.monotonic() + request.timeout_s
        path = None
        subject = request.subject
        if spec.quantize is not None and subject.checkpoint is None and subject.load_format != DUMMY:
            self._child(request, keys, until, quantize=True)
            made = self._parts[-1]
            if made.quantized is None:
                return
            path = str(self.quantized_path(made.quantized))
        self._child(request, keys, until, quantized=path, **more)

    def _child(self, request: Request, keys: Keys | None, until: float, **more: Any) -> None:
        """Run one measuring process to its end; what it told until then counts, however it ended."""
        subject = request.subject
        answers = {result.task: result for part in self._parts for result in part.tasks}
        job = Job(
            request,
            str(self.cache),
            str(self.folder),
            keys,
            self.store.place if not subject.again else None,
            self.store.refresh,
            trust=self.trust,
            environ=self.environ(subject.gpus),
            answers={task: answers[task] for task in request.divergence if task in answers},
            **more,
        )
        ends = min(until, self.deadline)
        contexts = process.contexts()
        while True:
            context = contexts.pop(0)
            self.progress.begin(subject.name)
            try:
                outcome = process.run(
                    context,
                    child.main,
                    (replace(job, last=not contexts),),
                    self._hear,
                    name=f"quantbudget-{subject.name}",
                    until=ends,
                    tick=self.progress.tick,
                )
            except (OSError, EOFError) as error:  # no socket (a long TMPDIR, say), or the server died while importing
                if not contexts:
                    self._parts.append(self._failed(subject, LOAD, f"no measuring process can be started: {error}"))
                    return
                continue
            finally:
                self.progress.over()
            if outcome.code != FORK_SPOILED or not contexts:
                break
        if outcome.code == 0 and outcome.done:
            return
        at = outcome.phase or (QUANTIZE if job.quantize else LOAD)
        if outcome.code is not None:
            why = f"the measuring process {outcome.death} during phase {at!r}"
        elif self.deadline <= until:
            why = f"ended during phase {at!r}: {USED_UP}"
        else:
            why = f"not finished within its timeout of {format_time(request.timeout_s)}: ended during phase {at!r}"
        self._parts.append(self._failed(subject, at, why, outcome.tail))

    def _hear(self, message: Mapping[str, Any]) -> None:
        self.progress.hear(message)
        if self.answers is not None and "answered" in message and not self._parts[0].subject.again:
            self.answers.add(self._parts[0].subject, message["answered"])
        if "part" in message:
            self._parts.append(codec.from_builtins(Measurement, message["part"]))

    def _failed(self, subject: Subject, phase: str, message: str, detail: str = "") -> Measurement:
        return Measurement(subject, failures=(Failure(phase, "error", message, detail),))


def _compared(result: TaskResult, path: Path | None) -> TaskResult:
    """Stored answers, without what they were compared with where that is not wanted, or was another baseline."""
    known = result.divergence is not None and path is not None and result.divergence.against == path.stem
    return result if known else replace(result, divergence=None)


def read(path: Path) -> Measurement:
    """A record that was written by `records.write_json`. Raises ValueError where it is none."""
    return codec.from_builtins(Measurement, codec.read_json(path.read_bytes()))
