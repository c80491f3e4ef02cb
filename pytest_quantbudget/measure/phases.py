"""The phases of measuring one subject: each one's figures are reported and stored when it ends."""

from __future__ import annotations

import functools
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import Origin, TaskResult, draft_id
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.measurement import Failure, Measurement, merge
from pytest_quantbudget.core.request import LOAD, DivergenceOf, LoadTime, Part, Reply, Subject, Task, Text, Workload
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.units import ISO
from pytest_quantbudget.engine import logits_file, out_of_memory
from pytest_quantbudget.engine.base import Decoded, Description, Ends, Engine, Lacking, NotOffered
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure.job import Job
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.measure.keys import logits_path
from pytest_quantbudget.measure.probe import python_version
from pytest_quantbudget.measure.store import Store, now
from pytest_quantbudget.models import methods, tensors
from pytest_quantbudget.models.engines import measured_in

REPLY_TOKENS = 48


class Phases:
    """One subject's measurement, phase by phase."""

    engine: Engine

    def __init__(self, job: Job, tell: Connection, gpus: Gpus) -> None:
        self.job = job
        self.gpus = gpus
        self.subject = job.request.subject
        self.tell = tell
        self.store = Store(job.store, refresh=job.refresh) if job.store and job.keys else None
        self.answers = dict(job.answers)

    def measure(self) -> None:
        """Load the subject, then run every phase that the request needs."""
        if not self.phase(LOAD, self.load, fatal=True):
            return
        measures: Mapping[type, Callable[[Any], Measurement]] = {
            Workload: self.time_workload,
            Reply: self.reply,
            Task: self.answer_task,
            DivergenceOf: self.diverge,
            Text: self.score_text,
            Load: self.put_under_load,
        }
        for part in self.job.request.parts:
            measure = measures.get(type(part))
            if measure is not None and self.possible(part):
                self.phase(part.phase, functools.partial(measure, part))
        self.engine.close()

    def possible(self, part: Part) -> bool:
        """Whether there are answers to diverge on, and logits to compare with unless this is the baseline."""
        if not isinstance(part, DivergenceOf):
            return True
        task = part.task
        return task in self.answers and (task in self.job.references or task not in self.job.drafts)

    def phase(self, name: str, action: Callable[[], Measurement], *, fatal: bool = False) -> bool:
        """Run a phase and report its figures, or why there are none; a failed phase's memory is freed."""
        self.say(phase=name)
        part: Measurement | None = None
        try:
            part = action()
        except Exception as error:  # noqa: BLE001  # whatever a library raises is this phase's result
            traceback.print_exc()
            detail = safe(traceback.format_exc(limit=-4)[-2000:], 2000, lines=True)
            short = isinstance(error, Lacking) or out_of_memory.is_out_of_memory(error)
            crowd = self.gpus.crowd() if short else ""
            words = _words(error, self.subject.python) + crowd
            failure = Failure(name, _kind(error), words, detail, fatal)
        if part is None:
            part = Measurement(self.subject, failures=(failure,))
            out_of_memory.release()
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
        pin = self.job.keys.revision if self.job.keys else None
        cache, temporary = Path(self.job.cache), Path(tempfile.gettempdir())
        folder = engines.module(self.subject.engine).quantize(self.pinned, self.job.trust, pin, cache, temporary)
        return Measurement(self.subject, quantized=folder.name, **_making(folder))

    def prepare(self) -> Measurement:
        """Choose the kernels and compile them, unless an earlier run has; the parent passes on what was chosen."""
        start = time.perf_counter()
        module = engines.module(self.subject.engine)
        prepared = module.prepare(self.pinned, self.job.quantized, self.job.trust, self.pins)
        self.say(prepared=codec.to_builtins(prepared))
        return Measurement(self.subject, kernels_s=time.perf_counter() - start)

    @property
    def pinned(self) -> Subject:
        """The subject, with its adapter's revision where that is known already."""
        keys, adapter = self.job.keys, self.subject.adapter
        if keys is None or adapter is None:
            return self.subject
        return replace(self.subject, adapter=replace(adapter, revision=keys.adapter_revision))

    @property
    def pins(self) -> tuple[str, str | None] | None:
        """The revisions of model and checkpoint, where they are known already."""
        keys = self.job.keys
        return (keys.revision, keys.checkpoint_revision) if keys else None

    def load(self) -> Measurement:
        """Load the model, and describe what was loaded."""
        keys, job = self.job.keys, self.job
        load = engines.module(self.subject.engine).load
        self.engine = load(self.pinned, self.gpus, job.quantized, job.trust, self.pins, job.prepared)
        loaded = self.engine.describe()
        elsewhere = measured_in(self.subject) is not None
        part = Measurement(
            self.subject,
            revision=loaded.revision,
            device=loaded.device,
            quantized=Path(self.job.quantized).name if self.job.quantized else None,
            **(_making(Path(self.job.quantized)) if self.job.quantized else {}),
            weights=loaded.weights,
            receipt=loaded.receipt if loaded.receipt.layers else None,
            placement=loaded.placement,
            loaded=_origin(),
            libraries={**methods.libraries(), **({"python": python_version()} if elsewhere else {})},
            checkpoint_revision=keys.checkpoint_revision if keys else None,
            adapter_revision=keys.adapter_revision if keys else None,
            calibration=keys.base["calibration"] if keys else None,
            notes=tuple(f"{self.subject.name}: {note}" for note in _notes(loaded)),
            made_with=loaded.made_with,
            unread=loaded.unread,
            disk=loaded.disk,
            engine=loaded.facts,
            untold=loaded.untold or None,
            packing=loaded.packing,
            decompressed=loaded.decompressed,
        )
        timed = Measurement(self.subject, load_time_s=loaded.load_time_s, load_memory=loaded.load_memory)
        if loaded.offloaded:
            # Not stored: the next run may find the memory that this one lacked.
            notes = (f"{self.subject.method}: {loaded.offloaded}",)
            return merge([part, timed, Measurement(self.subject, offloaded=loaded.offloaded, notes=notes)])
        if self.store and keys:
            self.store.put(keys.load(), codec.to_builtins(part))
        self.keep(LoadTime(), timed)
        return merge([part, timed])

    def time_workload(self, workload: Workload) -> Measurement:
        """Time the workload."""
        speed = replace(self.engine.time(workload), origin=_origin())
        notes = (f"{self.subject.name}: {speed.other_tokens}",) if speed.other_tokens else ()
        part = Measurement(self.subject, speeds=(speed,), notes=notes)
        if not self.engine.describe().offloaded:
            self.keep(workload, part)
        return part

    def reply(self, part: Reply) -> Measurement:
        """The greedy continuation of a prompt."""
        what, tokenizer = "workload.prompt", self.engine.tokenizer
        ids = tokenizer(part.prompt)["input_ids"]
        self.engine.check_positions(len(ids) + REPLY_TOKENS, what)
        ends = Ends(tokenizer, self.engine.describe().end_tokens, (), REPLY_TOKENS)
        replies: dict[int, Decoded] = {}
        self.engine.answer([ids], ends, replies.update, Batching(1), what=what)
        text = tokenizer.decode(replies[0].ids, skip_special_tokens=True)
        measured = Measurement(self.subject, replies={part.prompt: text})
        self.keep(part, measured)
        return measured

    def answer_task(self, task: Task) -> Measurement:
        """Answer the questions of a task."""
        if task.harness is not None:
            return self.answer_harness_task(task)
        from pytest_quantbudget.measure import ask
        from pytest_quantbudget.tasks import prompts

        baseline = self.job.drafts.get(task)
        kept = KeptAnswers(task, self.store, self.job.keys, draft_id(baseline), self.say)
        source = self.job.keys.states[task.source] if self.job.keys else None
        asked = prompts.sample(task, source)
        clock = now().strftime(ISO)
        result, notes = ask.run(self.engine, task, asked, kept, baseline, self.enough(task), clock)
        if not any(answer.tokens for answer in result.answers):
            raise ValueError(
                f"every answer is empty: {self.subject.method} ends at once where the answer should begin "
                f"({len(result.answers):,} questions)"
            )
        result = self.answers[task] = replace(result, origin=_origin(), source=source)
        part = Measurement(self.subject, tasks=(result,))
        self.keep(task, part, kept.drafts)
        if kept.drafts:
            # Without the comparison they also serve a run that has no baseline.
            self.keep(task, Measurement(self.subject, tasks=(replace(result, agreement=None),)))
        kept.drop()
        return replace(part, notes=tuple(f"{self.subject.name}: {note}" for note in notes))

    def enough(self, task: Task) -> Callable[[TaskResult], str] | None:
        """For a growing task, what says when no more questions need to be asked."""
        if task.start is None:
            return None
        device, baseline = self.engine.describe().device.name, self.job.drafts.get(task)
        return lambda result: sequential.stopped(self.job.request, device, result, baseline)

    def answer_harness_task(self, task: Task) -> Measurement:
        """A task that lm-evaluation-harness runs: its answers are kept together, when all are there."""
        from pytest_quantbudget.engine import harness
        from pytest_quantbudget.measure import ask

        batching = Batching(task.batch_size or 0)
        source = self.job.keys.states[task.source] if self.job.keys else None
        result = harness.run(self.engine, task, batching, self.job.trust, source)
        if not any(answer.text for answer in result.answers):
            raise ValueError(f"every answer is empty ({len(result.answers):,} questions)")
        part = Measurement(self.subject, tasks=(replace(result, origin=_origin(), source=source),))
        self.keep(task, part)
        KeptAnswers(task, say=self.say).report(len(result.answers), len(result.answers))
        return replace(part, notes=tuple(f"{self.subject.name}: {note}" for note in ask.notes(batching, task)))

    def diverge(self, compared: DivergenceOf) -> Measurement:
        """Compare with the baseline's logits; a baseline, which has no drafts, keeps its own."""
        from pytest_quantbudget.engine import divergence
        from pytest_quantbudget.tasks import prompts

        task = compared.task
        keys, own = self.job.keys, self.answers[task]
        baseline = self.job.drafts.get(task)
        if baseline is None:
            path = logits_path(Path(self.job.cache), Path(self.job.scratch), keys, self.subject, task, own)
            if not self.job.refresh and logits_file.fault(path) is None:
                return Measurement(self.subject)
        asked = prompts.sample(task, keys.states[task.source] if keys else None)
        theirs = baseline or own
        pairs = divergence.sample(self.engine.tokenizer, task, asked, theirs.answers, clock=theirs.clock)
        if baseline is None:
            divergence.keep(self.engine, pairs, path)
            return Measurement(self.subject)
        diverged = divergence.compare(self.engine, pairs, self.job.references[task])
        part = Measurement(self.subject, tasks=(replace(own, divergence=diverged),))
        self.keep(task, part, draft_id(baseline))
        return part

    def score_text(self, text: Text) -> Measurement:
        """The perplexity of a text."""
        from pytest_quantbudget.engine import perplexity

        state = self.job.keys.states[text.file] if self.job.keys else None
        scored = replace(perplexity.measure(self.engine, text, state), origin=_origin(), source=state)
        part = Measurement(self.subject, perplexities=(scored,))
        self.keep(text, part)
        return part

    def put_under_load(self, load: Load) -> Measurement:
        """What comes of requests under load."""
        state = self.job.keys.states[load.file] if self.job.keys and load.file else None
        result = replace(self.engine.load(load, self.served), origin=_origin(), source=state)
        part = Measurement(self.subject, loads=(result,))
        self.keep(load, part)
        return part

    def served(self, done: int, total: int) -> None:
        """Tell the parent process how many requests have ended, of how many."""
        self.say(answered={"done": done, "total": total})


def _origin() -> Origin:
    return Origin(now().strftime(ISO))


def _making(folder: Path) -> dict[str, Any]:
    """How long it took to make what a subject loads, and when that was, where that is known."""
    from pytest_quantbudget.engine import quantize

    made = quantize.making(folder)
    return {"quantize_s": made[0], "quantized_at": made[1]} if made else {}


def _notes(loaded: Description) -> Iterator[str]:
    yield from loaded.notes
    if loaded.unread:
        yield f"the model does not use {len(loaded.unread):,} tensors of its files ({tensors.few(loaded.unread)})"


def _kind(error: Exception) -> str:
    if isinstance(error, Lacking):
        return "no-gpu"
    if isinstance(error, NotOffered):
        return "not offered"
    return "skip" if isinstance(error, ModuleNotFoundError) else "error"


def _words(error: Exception, python: str | None = None) -> str:
    line = safe((str(error).strip().splitlines() or ["(no message)"])[0])
    if isinstance(error, Lacking | NotOffered):
        return line
    if isinstance(error, ModuleNotFoundError):
        return f"{line}: {methods.pip_command((error.name or '').partition('.')[0], python=python)}"
    return f"{'out of memory' if out_of_memory.is_out_of_memory(error) else type(error).__name__}: {line}"
