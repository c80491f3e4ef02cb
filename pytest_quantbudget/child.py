"""Inside the measuring process: load one subject, run what the request needs, tell and store each phase's figures.

A phase that fails costs its own figures. What was told or stored before the process dies is kept.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pytest_quantbudget import growth, hardware, identity, loading, methods, records, reference, sources
from pytest_quantbudget.identity import Keys
from pytest_quantbudget.measurement import Answer, Failure, Measurement, Origin, TaskResult, draft_id, merge
from pytest_quantbudget.metrics import logits, memory
from pytest_quantbudget.metrics.gpus import Gpus, Sampler
from pytest_quantbudget.metrics.ledger import Ledger
from pytest_quantbudget.request import (
    LOAD,
    NO_TRUST,
    PERPLEXITY,
    QUANTIZE,
    REPLY,
    WORKLOAD,
    Request,
    Task,
    Text,
    Trust,
    Workload,
)
from pytest_quantbudget.safetext import safe
from pytest_quantbudget.store import ISO, Key, Store, now

REPLY_TOKENS = 48
FORK_SPOILED = 78


@dataclass(frozen=True)
class Job:
    """What a measuring process is told to do, and where.

    `cache` keeps checkpoints, and `scratch` goes with the run. Without `keys` nothing is stored. `quantized` is the
    directory of the subject's own quantization; `quantize` asks for that to be made, and nothing else. `drafts` are the
    baseline's answers, and `references` the files of its logits. `answers` are the subject's own, where they were
    stored. `last` says that there is no other way to start a process.
    """

    request: Request
    cache: str
    scratch: str
    keys: Keys | None = None
    store: str | None = None
    refresh: bool = False
    quantize: bool = False
    quantized: str | None = None
    trust: Trust = NO_TRUST
    environ: Mapping[str, str] = field(default_factory=dict)
    last: bool = True
    drafts: Mapping[Task, TaskResult] = field(default_factory=dict)
    references: Mapping[Task, Path] = field(default_factory=dict)
    answers: Mapping[Task, TaskResult] = field(default_factory=dict)


def main(job: Job, tell: Connection, log: Connection) -> None:
    """Entry point of the process.

    Ends with the code FORK_SPOILED, unless this is the `last` way to start a process, where a GPU is there and this
    fork cannot use it.
    """
    _settle(log, job.environ)
    gpus = Gpus()
    if not job.last and _spoiled():
        os._exit(FORK_SPOILED)
    run = _Run(job, tell, gpus)
    if job.quantize:
        run.phase(QUANTIZE, run.quantize, fatal=True)
    else:
        run.measure()
    run.say(done=True)
    # Libraries leave threads and pools behind that can hang at exit; all that matters has been told.
    sys.stdout.flush()
    os._exit(0)


def _settle(log: Connection, environ: Mapping[str, str]) -> None:
    """Lead a group of our own, send all output, native code's too, into the log, and end when the parent is gone."""
    os.setpgid(0, 0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a crash must not take the last words along
    os.environ.update(environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the fork server; see preload.py
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # how the parent asks where we hang
    parent = parent_process()
    if parent is not None:
        _end_with(parent.sentinel)
    logging.captureWarnings(True)


def _end_with(sentinel: int) -> None:
    """End this process and its group when the other end of a pipe closes, even while native code keeps the GIL."""
    if sys.platform == "linux":
        import fcntl

        # The kernel then sends the signal itself: fcntl(2), F_SETSIG.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(sentinel, 10, signal.SIGKILL)  # F_SETSIG, which Python 3.11 has no name for
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_outlive_nobody, args=(sentinel,), daemon=True).start()


def _outlive_nobody(sentinel: int) -> None:
    wait([sentinel])
    os.killpg(os.getpid(), signal.SIGKILL)


def _spoiled() -> bool:
    """Whether something touched CUDA before the fork: NVML then counts GPUs that CUDA refuses to open."""
    try:
        import torch

        if torch.cuda.device_count():
            torch.cuda.init()
    except ImportError:
        return False
    except (RuntimeError, AssertionError):
        traceback.print_exc()
        return True
    return False


class _Run:
    """One subject's measurement, phase by phase."""

    def __init__(self, job: Job, tell: Connection, gpus: Gpus) -> None:
        self.job = job
        self.gpus = gpus
        self.subject = job.request.subject
        self.tell = tell
        self.store = Store(job.store, refresh=job.refresh) if job.store and job.keys else None
        self.model: Any = None
        self.tokenizer: Any = None
        self.answers = dict(job.answers)
        self.device = "cpu"
        self.offloaded = ""
        self.weights = 0

    def measure(self) -> None:
        request = self.job.request
        if not self.phase(LOAD, self.load, fatal=True):
            return
        for workload in request.workloads:
            self.phase(WORKLOAD, lambda w=workload: self.speed(w))  # type: ignore[misc]
        for prompt in request.prompts:
            self.phase(REPLY, lambda p=prompt: self.reply(p))  # type: ignore[misc]
        for task in request.tasks:
            self.phase(task.phase, lambda t=task: self.ask(t))  # type: ignore[misc]
        for task in request.divergence:
            if task in self.answers and (task in self.job.references or task not in self.job.drafts):
                self.phase(task.divergence_phase, lambda t=task: self.diverge(t))  # type: ignore[misc]
        for text in request.texts:
            self.phase(PERPLEXITY, lambda t=text: self.read(t))  # type: ignore[misc]

    def phase(self, name: str, action: Callable[[], Measurement], *, fatal: bool = False) -> bool:
        """Run a phase and tell its figures, or why there are none; a failed phase's memory is freed."""
        self.say(phase=name)
        part: Measurement | None = None
        try:
            part = action()
        except Exception as error:  # noqa: BLE001  # whatever a library raises is this phase's result
            traceback.print_exc()
            detail = safe(traceback.format_exc(limit=-4)[-2000:], 2000, lines=True)
            crowd = self.gpus.crowd() if isinstance(error, loading.Lacking) or memory.is_out_of_memory(error) else ""
            failure = Failure(name, _kind(error), _words(error) + crowd, detail, fatal)
        if part is None:
            part = Measurement(self.subject, failures=(failure,))
            memory.free()
        if self.store and self.store.notes:
            part = replace(part, notes=(*part.notes, *self.store.notes))
            self.store.notes.clear()
        self.say(part=records.to_builtins(part))
        return not part.failures

    def say(self, **message: Any) -> None:
        self.tell.send_bytes(json.dumps(message, allow_nan=False).encode())

    def keep(self, key: Callable[[Keys], Key], part: Measurement) -> None:
        """Store one phase's figures, so that they outlive this run."""
        if self.store and self.job.keys:
            self.store.put(key(self.job.keys), records.to_builtins(part))

    def quantize(self) -> Measurement:
        start = time.perf_counter()
        spec = methods.spec(self.subject.method)
        loading.settle(spec)
        pinned = self.job.keys.revision if self.job.keys else self.subject.revision
        source, revision = sources.fetch(self.subject.model, pinned, self.job.trust)
        loading.check_format(spec, source, ready=False, trust=self.job.trust)
        os.chdir(self.job.scratch)  # gptqmodel leaves its logs where it stands
        target = sources.quantized(self.subject, spec, source, revision, Path(self.job.cache), self.job.trust)
        return Measurement(self.subject, quantize_s=time.perf_counter() - start, quantized=target.name)

    def load(self) -> Measurement:
        keys = self.job.keys
        pins = (keys.revision, keys.checkpoint_revision) if keys else None
        with Sampler(self.gpus.cards) as sampler:
            loaded = loading.load(self.subject, self.job.quantized, self.job.trust, pins)
            ledger = Ledger(self.gpus, on_gpu=loaded.device.name != "cpu")
            ledger.note(LOAD, sampler)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        logits.check(self.model)
        self.device, self.offloaded, self.weights = loaded.device.name, loaded.offloaded, loaded.weights
        part = Measurement(
            self.subject,
            revision=loaded.revision,
            device=loaded.device,
            quantized=Path(self.job.quantized).name if self.job.quantized else None,
            weights=loaded.weights,
            receipt=loaded.receipt,
            placement=loaded.placement,
            loaded=_origin(),
            libraries=hardware.libraries(),
            checkpoint_revision=keys.checkpoint_revision if keys else None,
            calibration=keys.base["calibration"] if keys else None,
            notes=(loaded.note,) if loaded.note else (),
        )
        timed = Measurement(self.subject, load_time_s=loaded.seconds, load_memory=next(iter(ledger.phases()), None))
        if loaded.offloaded:  # for want of memory, for which later runs need not want
            notes = (f"{self.subject.method}: {loaded.offloaded}",)
            return merge([part, timed, Measurement(self.subject, offloaded=loaded.offloaded, notes=notes)])
        self.keep(Keys.load, part)
        self.keep(Keys.load_time, timed)
        return merge([part, timed])

    def speed(self, workload: Workload) -> Measurement:
        from pytest_quantbudget.metrics import speed

        measured = replace(speed.measure(self.model, workload, self.gpus, self.weights), origin=_origin())
        part = Measurement(self.subject, speeds=(measured,))
        if not self.offloaded:
            self.keep(lambda keys: keys.workload(workload), part)
        return part

    def reply(self, prompt: str) -> Measurement:
        from pytest_quantbudget.metrics import speed
        from pytest_quantbudget.tasks import plain
        from pytest_quantbudget.tasks.decoding import Ends

        ends = Ends(self.tokenizer, speed.end_tokens(self.model), (), REPLY_TOKENS)
        ids = self.tokenizer(prompt)["input_ids"]
        speed.check_positions(self.model, len(ids) + REPLY_TOKENS, "workload.prompt")
        (said,) = plain.generate(self.model, self.tokenizer, [ids], ends, "workload.prompt")
        text = self.tokenizer.decode(said.ids, skip_special_tokens=True)
        part = Measurement(self.subject, replies={prompt: text})
        self.keep(lambda keys: keys.reply(prompt), part)
        return part

    def ask(self, task: Task) -> Measurement:
        if task.harness is not None:
            return self.ask_by_harness(task)
        from pytest_quantbudget.tasks import ask, prompts

        baseline = self.job.drafts.get(task)
        batches = _Batches(self, task, draft_id(baseline))
        source = self.job.keys.asked[identity.source(task)] if self.job.keys else None
        asked = prompts.sample(task, source)
        result = ask.run(self.model, self.tokenizer, task, asked, batches, baseline, enough=self.enough(task))
        if not any(answer.tokens for answer in result.answers):
            raise ValueError(
                f"every answer is empty: {self.subject.method} ends at once where the answer should begin "
                f"({len(result.answers):,} questions)"
            )
        result = self.answers[task] = replace(result, origin=_origin(), source=source)
        part = Measurement(self.subject, tasks=(result,))
        self.keep(lambda keys: keys.task(task, batches.drafts), part)
        if batches.drafts:  # without the comparison they serve a run that has no baseline, too
            alone = Measurement(self.subject, tasks=(replace(result, agreement=None),))
            self.keep(lambda keys: keys.task(task), alone)
        batches.drop()
        shrunk = tuple(f"{self.subject.name}: {note}" for note in batches.notes)
        return replace(part, notes=shrunk)

    def enough(self, task: Task) -> Callable[[TaskResult], str] | None:
        """Of a growing task, what tells when no more needs to be asked."""
        if task.start is None:
            return None
        baseline = self.job.drafts.get(task)
        return lambda result: growth.stopped(self.job.request, self.device, result, baseline)

    def ask_by_harness(self, task: Task) -> Measurement:
        """A task that lm-evaluation-harness runs: its answers are kept together, when all are there."""
        from pytest_quantbudget.tasks import harness

        batches = _Batches(self, task, None)
        source = self.job.keys.asked[identity.source(task)] if self.job.keys else None
        result = harness.run(self.model, self.tokenizer, task, self.job.trust, source, batches.shrunk)
        if not any(answer.text for answer in result.answers):
            raise ValueError(f"every answer is empty ({len(result.answers):,} questions)")
        part = Measurement(self.subject, tasks=(replace(result, origin=_origin(), source=source),))
        self.keep(lambda keys: keys.task(task), part)
        batches.answered(result.answers, len(result.answers))
        return replace(part, notes=tuple(f"{self.subject.name}: {note}" for note in batches.notes))

    def diverge(self, task: Task) -> Measurement:
        """Compare with the baseline's logits; a baseline, which has no drafts, keeps its own."""
        from pytest_quantbudget.metrics import divergence
        from pytest_quantbudget.tasks import prompts

        keys, own = self.job.keys, self.answers[task]
        baseline = self.job.drafts.get(task)
        if baseline is None:
            path = reference.path_of(Path(self.job.cache), Path(self.job.scratch), keys, self.subject, task, own)
            if not self.job.refresh and reference.fault(path) is None:
                return Measurement(self.subject)
        asked = prompts.sample(task, keys.asked[identity.source(task)] if keys else None)
        pairs = divergence.sample(self.tokenizer, task, asked, (baseline or own).answers)
        if baseline is None:
            divergence.keep(self.model, pairs, path)
            return Measurement(self.subject)
        found = divergence.compare(self.model, pairs, self.job.references[task])
        part = Measurement(self.subject, tasks=(replace(own, divergence=found),))
        self.keep(lambda keys: keys.task(task, draft_id(baseline)), part)
        return part

    def read(self, text: Text) -> Measurement:
        from pytest_quantbudget.metrics import perplexity

        state = self.job.keys.texts[text.file] if self.job.keys else None
        found = replace(perplexity.measure(self.model, self.tokenizer, text, state), origin=_origin(), source=state)
        part = Measurement(self.subject, perplexities=(found,))
        self.keep(lambda keys: keys.perplexity(text), part)
        return part


class _Batches:
    """Answers of a task as they are given: they are stored at once, and an earlier run's are found again."""

    def __init__(self, run: _Run, task: Task, drafts: str | None) -> None:
        self.store, self.keys, self.task = run.store, run.job.keys, task
        self.say = run.say
        self.drafts = drafts
        self.done = self.asked = 0
        self.touched: list[Key] = []
        self.slowly: list[str] = []
        self.short: list[str] = []

    def earlier(self) -> Iterator[TaskResult]:
        if self.task.start is not None and self.store is not None and self.keys is not None:
            grown = self.store.get(self.keys.task(self.task, self.drafts))  # so far, when other limits held
            yield from records.from_builtins(Measurement, grown.payload).tasks if grown else ()
        while self.store is not None and self.keys is not None:
            key = self.keys.batch(self.task, len(self.touched), self.drafts)
            entry = self.store.get(key)
            if entry is None:
                return
            self.touched.append(key)
            try:
                yield records.from_builtins(TaskResult, entry.payload)
            except ValueError as error:
                self.store.set_aside(key, str(error))

    def put(self, part: TaskResult) -> None:
        if self.store is not None and self.keys is not None:
            self.touched.append(self.keys.batch(self.task, len(self.touched), self.drafts))
            self.store.put(self.touched[-1], records.to_builtins(part))

    def shrunk(self, asked: int, held: int) -> None:
        self.asked = self.asked or asked
        what = f"{self.asked:,} questions of {self.task.name} at once"
        self.short = [f"out of memory with {what}; {held:,} were answered at once"]

    def slow(self, why: str) -> None:
        self.slowly = [f"answers to {self.task.name} come from transformers' generate, and without drafts: {why}"]

    @property
    def notes(self) -> list[str]:
        """What was noticed."""
        return self.slowly + self.short

    def answered(self, answers: Sequence[Answer], total: int) -> None:
        self.done += len(answers)
        told = [records.to_builtins(replace(answer, ids=())) for answer in answers]
        counts = {"done": self.done, "total": total}
        self.say(answered={"task": self.task.name, "extract": self.task.extract, **counts, "answers": told})

    def drop(self) -> None:
        """Forget the batches: the whole task is stored."""
        if self.store is not None:
            self.store.drop(self.touched)


def _origin() -> Origin:
    return Origin(now().strftime(ISO))


def _kind(error: Exception) -> str:
    if isinstance(error, loading.Lacking):
        return "no-gpu"
    return "skip" if isinstance(error, ModuleNotFoundError) else "error"


def _words(error: Exception) -> str:
    line = safe((str(error).strip().splitlines() or ["(no message)"])[0])
    if isinstance(error, loading.Lacking):
        return line
    if isinstance(error, ModuleNotFoundError):
        return f"{line}: {methods.pip_command(error.name or '')}"
    return f"{'out of memory' if memory.is_out_of_memory(error) else type(error).__name__}: {line}"
