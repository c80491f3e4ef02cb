"""The phases of measuring one subject: each one's figures are reported and stored when it ends."""

from __future__ import annotations

import functools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import Answer, Origin, TaskResult, draft_id
from pytest_quantbudget.core.measurement import Failure, Measurement, merge
from pytest_quantbudget.core.request import LOAD, DivergenceOf, LoadTime, Part, Reply, Task, Text, Workload
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.engine import logits_file
from pytest_quantbudget.engine.hf import load, logits, memory, quantize
from pytest_quantbudget.engine.machine.gpus import Gpus, Sampler
from pytest_quantbudget.engine.machine.memory_phases import Ledger
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure.job import Job
from pytest_quantbudget.measure.keys import path_of
from pytest_quantbudget.measure.store import ISO, Key, Store, now
from pytest_quantbudget.models import hub, methods

REPLY_TOKENS = 48


class Phases:
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
        """Load the subject, then run every phase that the request needs."""
        if not self.phase(LOAD, self.load, fatal=True):
            return
        measures: Mapping[type, Callable[[Any], Measurement]] = {
            Workload: self.speed,
            Reply: self.reply,
            Task: self.ask,
            DivergenceOf: self.diverge,
            Text: self.read,
        }
        for part in self.job.request.parts:
            measure = measures.get(type(part))
            if measure is not None and self.possible(part):
                self.phase(part.phase, functools.partial(measure, part))

    def possible(self, part: Part) -> bool:
        """Whether there are answers to diverge on, and logits to compare with unless this is the baseline."""
        if not isinstance(part, DivergenceOf):
            return True
        task = part.task
        return task in self.answers and (task in self.job.references or task not in self.job.drafts)

    def phase(self, name: str, action: Callable[[], Measurement], *, fatal: bool = False) -> bool:
        """Run a phase and tell its figures, or why there are none; a failed phase's memory is freed."""
        self.say(phase=name)
        part: Measurement | None = None
        try:
            part = action()
        except Exception as error:  # noqa: BLE001  # whatever a library raises is this phase's result
            traceback.print_exc()
            detail = safe(traceback.format_exc(limit=-4)[-2000:], 2000, lines=True)
            crowd = self.gpus.crowd() if isinstance(error, load.Lacking) or memory.is_out_of_memory(error) else ""
            failure = Failure(name, _kind(error), _words(error) + crowd, detail, fatal)
        if part is None:
            part = Measurement(self.subject, failures=(failure,))
            memory.free()
        if self.store and self.store.notes:
            part = replace(part, notes=(*part.notes, *self.store.notes))
            self.store.notes.clear()
        self.say(part=codec.to_builtins(part))
        return not part.failures

    def say(self, **message: Any) -> None:
        """Send a message to the parent process."""
        self.tell.send_bytes(json.dumps(message, allow_nan=False).encode())

    def keep(self, part: Part, measured: Measurement, answers: str | None = None) -> None:
        """Store one phase's figures, so that they outlive this run."""
        if self.store and self.job.keys:
            self.store.put(self.job.keys.of(part, answers), codec.to_builtins(measured))

    def quantize(self) -> Measurement:
        """Make the subject's own quantized checkpoint, unless the cache has it."""
        start = time.perf_counter()
        spec = methods.spec(self.subject.method)
        load.settle(spec)
        pinned = self.job.keys.revision if self.job.keys else self.subject.revision
        source, revision = hub.fetch(self.subject.model, pinned, self.job.trust)
        load.check_format(spec, source, ready=False, trust=self.job.trust)
        os.chdir(self.job.scratch)  # gptqmodel leaves its logs where it stands
        target = quantize.quantized(self.subject, spec, source, revision, Path(self.job.cache), self.job.trust)
        return Measurement(self.subject, quantize_s=time.perf_counter() - start, quantized=target.name)

    def load(self) -> Measurement:
        """Load the model, and describe what was loaded."""
        keys = self.job.keys
        pins = (keys.revision, keys.checkpoint_revision) if keys else None
        with Sampler(self.gpus.cards) as sampler:
            loaded = load.load(self.subject, self.job.quantized, self.job.trust, pins)
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
            libraries=methods.libraries(),
            checkpoint_revision=keys.checkpoint_revision if keys else None,
            calibration=keys.base["calibration"] if keys else None,
            notes=(loaded.note,) if loaded.note else (),
        )
        timed = Measurement(self.subject, load_time_s=loaded.seconds, load_memory=next(iter(ledger.phases()), None))
        if loaded.offloaded:  # for want of memory, for which later runs need not want
            notes = (f"{self.subject.method}: {loaded.offloaded}",)
            return merge([part, timed, Measurement(self.subject, offloaded=loaded.offloaded, notes=notes)])
        if self.store and keys:
            self.store.put(keys.load(), codec.to_builtins(part))
        self.keep(LoadTime(), timed)
        return merge([part, timed])

    def speed(self, workload: Workload) -> Measurement:
        """Time the workload."""
        from pytest_quantbudget.engine.hf import speed

        measured = replace(speed.measure(self.model, workload, self.gpus, self.weights), origin=_origin())
        part = Measurement(self.subject, speeds=(measured,))
        if not self.offloaded:
            self.keep(workload, part)
        return part

    def reply(self, part: Reply) -> Measurement:
        """The greedy continuation of a prompt."""
        from pytest_quantbudget.engine.hf import plain_generate, speed
        from pytest_quantbudget.engine.hf.decoding import Ends

        ends = Ends(self.tokenizer, speed.end_tokens(self.model), (), REPLY_TOKENS)
        ids = self.tokenizer(part.prompt)["input_ids"]
        speed.check_positions(self.model, len(ids) + REPLY_TOKENS, "workload.prompt")
        (said,) = plain_generate.generate(self.model, self.tokenizer, [ids], ends, "workload.prompt")
        text = self.tokenizer.decode(said.ids, skip_special_tokens=True)
        measured = Measurement(self.subject, replies={part.prompt: text})
        self.keep(part, measured)
        return measured

    def ask(self, task: Task) -> Measurement:
        """Answer the questions of a task."""
        if task.harness is not None:
            return self.ask_by_harness(task)
        from pytest_quantbudget.engine.hf import ask
        from pytest_quantbudget.tasks import prompts

        baseline = self.job.drafts.get(task)
        batches = _Batches(self, task, draft_id(baseline))
        source = self.job.keys.states[task.source] if self.job.keys else None
        asked = prompts.sample(task, source)
        result = ask.run(self.model, self.tokenizer, task, asked, batches, baseline, enough=self.enough(task))
        if not any(answer.tokens for answer in result.answers):
            raise ValueError(
                f"every answer is empty: {self.subject.method} ends at once where the answer should begin "
                f"({len(result.answers):,} questions)"
            )
        result = self.answers[task] = replace(result, origin=_origin(), source=source)
        part = Measurement(self.subject, tasks=(result,))
        self.keep(task, part, batches.drafts)
        if batches.drafts:  # without the comparison they serve a run that has no baseline, too
            alone = Measurement(self.subject, tasks=(replace(result, agreement=None),))
            self.keep(task, alone)
        batches.drop()
        shrunk = tuple(f"{self.subject.name}: {note}" for note in batches.notes)
        return replace(part, notes=shrunk)

    def enough(self, task: Task) -> Callable[[TaskResult], str] | None:
        """Of a growing task, what tells when no more needs to be asked."""
        if task.start is None:
            return None
        baseline = self.job.drafts.get(task)
        return lambda result: sequential.stopped(self.job.request, self.device, result, baseline)

    def ask_by_harness(self, task: Task) -> Measurement:
        """A task that lm-evaluation-harness runs: its answers are kept together, when all are there."""
        from pytest_quantbudget.engine.hf import harness

        batches = _Batches(self, task, None)
        source = self.job.keys.states[task.source] if self.job.keys else None
        result = harness.run(self.model, self.tokenizer, task, self.job.trust, source, batches.shrunk)
        if not any(answer.text for answer in result.answers):
            raise ValueError(f"every answer is empty ({len(result.answers):,} questions)")
        part = Measurement(self.subject, tasks=(replace(result, origin=_origin(), source=source),))
        self.keep(task, part)
        batches.answered(result.answers, len(result.answers))
        return replace(part, notes=tuple(f"{self.subject.name}: {note}" for note in batches.notes))

    def diverge(self, compared: DivergenceOf) -> Measurement:
        """Compare with the baseline's logits; a baseline, which has no drafts, keeps its own."""
        from pytest_quantbudget.engine.hf import divergence
        from pytest_quantbudget.tasks import prompts

        task = compared.task
        keys, own = self.job.keys, self.answers[task]
        baseline = self.job.drafts.get(task)
        if baseline is None:
            path = path_of(Path(self.job.cache), Path(self.job.scratch), keys, self.subject, task, own)
            if not self.job.refresh and logits_file.fault(path) is None:
                return Measurement(self.subject)
        asked = prompts.sample(task, keys.states[task.source] if keys else None)
        pairs = divergence.sample(self.tokenizer, task, asked, (baseline or own).answers)
        if baseline is None:
            divergence.keep(self.model, pairs, path)
            return Measurement(self.subject)
        found = divergence.compare(self.model, pairs, self.job.references[task])
        part = Measurement(self.subject, tasks=(replace(own, divergence=found),))
        self.keep(task, part, draft_id(baseline))
        return part

    def read(self, text: Text) -> Measurement:
        """The perplexity of a text."""
        from pytest_quantbudget.engine.hf import perplexity

        state = self.job.keys.states[text.file] if self.job.keys else None
        found = replace(perplexity.measure(self.model, self.tokenizer, text, state), origin=_origin(), source=state)
        part = Measurement(self.subject, perplexities=(found,))
        self.keep(text, part)
        return part


class _Batches:
    """Answers of a task as they are given: they are stored at once, and an earlier run's are found again."""

    def __init__(self, run: Phases, task: Task, drafts: str | None) -> None:
        self.store, self.keys, self.task = run.store, run.job.keys, task
        self.say = run.say
        self.drafts = drafts
        self.done = self.asked = 0
        self.touched: list[Key] = []
        self.slowly: list[str] = []
        self.short: list[str] = []

    def earlier(self) -> Iterator[TaskResult]:
        if self.task.start is not None and self.store is not None and self.keys is not None:
            grown = self.store.get(self.keys.of(self.task, self.drafts))  # so far, when other limits held
            yield from codec.from_builtins(Measurement, grown.payload).tasks if grown else ()
        while self.store is not None and self.keys is not None:
            key = self.keys.batch(self.task, len(self.touched), self.drafts)
            entry = self.store.get(key)
            if entry is None:
                return
            self.touched.append(key)
            try:
                yield codec.from_builtins(TaskResult, entry.payload)
            except ValueError as error:
                self.store.set_aside(key, str(error))

    def put(self, part: TaskResult) -> None:
        if self.store is not None and self.keys is not None:
            self.touched.append(self.keys.batch(self.task, len(self.touched), self.drafts))
            self.store.put(self.touched[-1], codec.to_builtins(part))

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
        told = [codec.to_builtins(replace(answer, ids=())) for answer in answers]
        counts = {"done": self.done, "total": total}
        self.say(answered={"task": self.task.name, "extract": self.task.extract, **counts, "answers": told})

    def drop(self) -> None:
        """Forget the batches: the whole task is stored."""
        if self.store is not None:
            self.store.drop(self.touched)


def _origin() -> Origin:
    return Origin(now().strftime(ISO))


def _kind(error: Exception) -> str:
    if isinstance(error, load.Lacking):
        return "no-gpu"
    return "skip" if isinstance(error, ModuleNotFoundError) else "error"


def _words(error: Exception) -> str:
    line = safe((str(error).strip().splitlines() or ["(no message)"])[0])
    if isinstance(error, load.Lacking):
        return line
    if isinstance(error, ModuleNotFoundError):
        return f"{line}: {methods.pip_command(error.name or '')}"
    return f"{'out of memory' if memory.is_out_of_memory(error) else type(error).__name__}: {line}"
