"""Judging again without the model: what a report holds, in place of new measurements. Loads nothing, knows no pytest.

What a budget asks for is compared with what was measured, setting by setting. Paths differ between machines, so models
and files are compared by what they hold. A difference is a failure like any other, and costs the tests that it touches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Generic, TypeVar

from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Device, Failure, Measurement, Perplexity, Speed
from pytest_quantbudget.core.request import (
    LOAD,
    NO_MATTER,
    PERPLEXITY,
    WORKLOAD,
    Request,
    Subject,
    Task,
    Text,
    Workload,
)
from pytest_quantbudget.core.verdict import SKIPPED
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.models import hub
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import BudgetReport, JudgedFrom, MethodReport, Report
from pytest_quantbudget.tasks import harness_file, questions

R = TypeVar("R", TaskResult, Speed, Perplexity)
COMMIT = re.compile(r"[0-9a-f]{7,40}")  # maybe abbreviated


@dataclass
class _Compared:
    """What differs between here and a report, and what could only be compared by name, in words."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found(Generic[R]):
    """Figures of a part, if there are any, beside the comparison of its settings."""

    compared: _Compared
    figures: R | None
    same_name: bool = True


@dataclass(frozen=True)
class Stored:
    """A report that is judged again. `name` is what messages call it; `hashes` remembers those of large directories."""

    name: str
    report: Report
    hashes: Path
    _states: dict[tuple[str, str], str | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def origin(self) -> JudgedFrom:
        """For the next report: where its figures come from, and when they were measured."""
        earlier = self.report.judged_from
        return JudgedFrom(self.name, earlier.measured if earlier else self.report.created)

    def gpus(self, device: Device | None) -> list[Gpu]:
        """The GPUs that a method was measured on, its own first; where it was on none, those of the machine.

        What was measured there had the memory it needed: all of it counts as free.
        """
        machine = sorted(self.report.machine.gpus, key=lambda gpu: -gpu.total)
        if device is None or device.name == "cpu":
            return machine
        total = device.total or 0
        own = [gpu for gpu in machine if gpu.uuid == device.uuid]
        own = own or [Gpu(0, device.name, device.uuid or "", total, total, device.capability or "0.0", "")]
        others = [gpu for gpu in machine if gpu.name == device.name and gpu.uuid != device.uuid]
        return [replace(gpu, free=gpu.total) for gpu in (*own, *others)]

    def noise(self, file: str, baseline: str | None) -> Noise | None:
        """What equal runs of the baseline showed, if the report's run made any for a budget of that file name."""
        found = [b.noise for b in self.report.budgets if Path(b.file).name == file and b.baseline == baseline]
        return next((noise for noise in found if noise is not None), None)

    def measure(self, request: Request, file: str) -> Measurement:
        """The stored measurement of what a request asks for, as if it had been made now.

        `file` is the name of the request's budget: the report's budget of that name comes first, then the others. Where
        the subject was measured otherwise, that is a failure of loading; where a task, the workload or a text was, it
        is one of that phase. The failures of the stored run stand.
        """
        subject = request.subject
        reports = [(b, m) for b in self.report.budgets for m in b.methods if m.name == subject.method]
        found = [(b, m.measurement, self._subject(subject, m.measurement)) for b, m in reports if m.measurement]
        if not found:
            return Measurement(subject, failures=(self._missing(reports),))
        budget, measured, told = min(
            found,
            key=lambda each: (
                bool(each[2].differences),
                Path(each[0].file).name != file,
                len(each[2].differences),
            ),
        )
        if told.differences:
            return Measurement(subject, failures=(Failure(LOAD, "error", "; ".join(told.differences)),))
        parts = _Parts(self.name, measured, list(told.notes if measured.weights is not None else ()))
        results = tuple(
            replace(result, task=task)
            for task in request.tasks
            if (result := parts.take(task.phase, f"answers to {task.name}", self._answers(task, budget, measured)))
        )
        speeds = tuple(
            replace(speed, workload=workload)
            for workload in request.workloads
            if (speed := parts.take(WORKLOAD, "figures of the workload", self._speeds(workload, budget, measured)))
        )
        perplexities = tuple(
            replace(read, text=text)
            for text in request.texts
            if (read := parts.take(PERPLEXITY, "perplexity", self._perplexities(text, budget, measured)))
        )
        for result in results:
            compared = result.task in request.divergence and result.task.name not in request.whole  # no baseline
            if compared and result.divergence is None:
                parts.lack(result.task.divergence_phase, f"divergence of the answers to {result.task.name}")
        return replace(
            measured,
            subject=subject,
            tasks=results,
            speeds=speeds,
            perplexities=perplexities,
            failures=(*parts.failures, *measured.failures),
            notes=tuple(dict.fromkeys((*measured.notes, *parts.notes))),
        )

    def _missing(self, reports: Sequence[tuple[BudgetReport, MethodReport]]) -> Failure:
        """Why a method has no measurement at all: what its limits were skipped for, or that nobody measured it."""
        for _, method in reports:
            for limit in method.limits:
                if limit.verdict.outcome == SKIPPED:
                    kind = "no-gpu" if limit.verdict.for_want_of_gpu else "skip"
                    why = limit.verdict.message.removeprefix(f"{method.name}: {limit.name} ")
                    return Failure(LOAD, kind, f"skipped in {self.name}: {why}")
        return Failure(LOAD, "error", f"{self.name} holds no measurement of it")

    def _subject(self, ours: Subject, measured: Measurement) -> _Compared:
        theirs, told = measured.subject, _Compared()
        self._weights(told, "model", (ours.model, ours.revision), (theirs.model, theirs.revision), measured.revision)
        checkpoints = (ours.checkpoint, None), (theirs.checkpoint, None)
        self._weights(told, "checkpoint", *checkpoints, measured.checkpoint_revision)
        self._value(told, "load_format", ours.load_format, theirs.load_format)
        for option in dict.fromkeys((*ours.options, *theirs.options)):
            self._value(told, option, ours.options.get(option), theirs.options.get(option))
        self._file(told, "calibration", ours.calibration, theirs.calibration, measured.calibration)
        self._value(told, "gpus", ours.gpus, theirs.gpus)
        return told

    def _weights(
        self,
        told: _Compared,
        what: str,
        ours: tuple[str | None, str | None],
        theirs: tuple[str | None, str | None],
        measured: str | None,
    ) -> None:
        """Compare (name, revision as written) of hub models and directories; `measured` is the revision that was found.

        A relative path such as `models/x` reads as a hub id on a machine that has no such directory.
        """
        (here, revision), (there, written) = ours, theirs
        if here is None or there is None:
            self._value(told, what, here, there)
        elif Path(here).is_absolute() and Path(there).is_absolute():
            self._content(told, what, here, there, measured, lambda name: hub.revision_of(name, None, self.hashes))
        elif Path(there).is_absolute() and Path(there).parts[-len(Path(here).parts) :] == Path(here).parts:
            told.notes.append(f"{what} {here} is no directory here: taken for {there} of {self.name} by its name")
        elif here != there:
            self._value(told, what, here, there)
        elif revision is not None and measured is not None and COMMIT.fullmatch(revision):
            self._value(told, "revision", revision, measured[: len(revision)])
        else:
            self._value(told, "revision", revision, written)

    def _answers(self, ours: Task, budget: BudgetReport, measured: Measurement) -> list[_Found[TaskResult]]:
        """What was asked, compared with a task. A name is a label; but only what has the task's name is its like."""
        found = [_Found(self._task(ours, r.task, r.source), r, r.task.name == ours.name) for r in measured.tasks]
        for task in budget.tasks:
            if measured.task(task) is None:
                found.append(_Found(self._task(ours, task, None), None, task.name == ours.name))
        return [each for each in found if each.same_name or not each.compared.differences]

    def _task(self, ours: Task, theirs: Task, source: str | None) -> _Compared:
        told = _Compared()
        for name in (each.name for each in fields(Task)):
            if name not in (*NO_MATTER, "harness"):
                self._value(told, name, getattr(ours, name), getattr(theirs, name))
        here, there = ours.harness, theirs.harness
        if here and there and harness_file.is_file(here) and harness_file.is_file(there):
            held = source.split(" ", 2)[-1] if source else None  # behind the library's name and version
            self._content(told, "harness", here, there, held, lambda name: harness_file.state(Path(name)))
            return told
        self._value(told, "harness", here, there)
        if ours.file is None and theirs.file is None and ours.harness is None:
            self._value(told, "set", *("/".join(questions.HUB_SETS.get(t.name, (t.name,))) for t in (ours, theirs)))
        hashes = iter(source.split("+") if source and theirs.file else ())
        for name in ("file", "shots_file"):
            there = getattr(theirs, name)
            self._file(told, name, getattr(ours, name), there, next(hashes, None) if there else None)
        return told

    def _speeds(self, ours: Workload, budget: BudgetReport, measured: Measurement) -> list[_Found[Speed]]:
        found = [_Found(self._values(ours, speed.workload), speed) for speed in measured.speeds]
        return [*found, _Found(self._values(ours, budget.workload), None)]

    def _perplexities(self, ours: Text, budget: BudgetReport, measured: Measurement) -> list[_Found[Perplexity]]:
        found = [_Found(self._text(ours, each.text, each.source), each) for each in measured.perplexities]
        return found + ([_Found(self._text(ours, budget.text, None), None)] if budget.text else [])

    def _text(self, ours: Text, theirs: Text, source: str | None) -> _Compared:
        told = self._values(replace(ours, file=""), replace(theirs, file=""))
        self._file(told, "file", ours.file, theirs.file, source)
        return told

    def _values(self, ours: Workload | Text, theirs: Workload | Text) -> _Compared:
        told = _Compared()
        for each in fields(ours):
            self._value(told, each.name, getattr(ours, each.name), getattr(theirs, each.name))
        return told

    def _value(self, told: _Compared, what: str, here: object, there: object) -> None:
        if here != there:
            told.differences.append(f"{what} is {_shown(here)} here and {_shown(there)} in {self.name}")

    def _file(self, told: _Compared, what: str, here: str | None, there: str | None, held: str | None) -> None:
        if here is None or there is None:
            self._value(told, what, here, there)
        else:
            self._content(told, what, here, there, held, lambda name: files.file_hash(Path(name)))

    def _content(
        self, told: _Compared, what: str, here: str, there: str, held: str | None, state: Callable[[str], str]
    ) -> None:
        """Compare files or directories by what they hold; where one side does not tell, by their names."""
        now = self._state(what, here, state)
        if now is not None and held is not None:
            if now != held:
                told.differences.append(f"{what} {_shown(here)} holds something else here than in {self.name}")
        elif Path(here).name != Path(there).name:
            self._value(told, what, here, there)
        else:
            why = f"{here} is not on this machine" if now is None else f"{self.name} does not tell what it held"
            told.notes.append(f"{what} {Path(here).name} was compared with {self.name} by its name alone: {why}")

    def _state(self, what: str, name: str, state: Callable[[str], str]) -> str | None:
        """What something holds, looked at once; None where it is not here."""
        if (what, name) not in self._states:
            try:
                self._states[what, name] = state(name) if Path(name).exists() else None
            except OSError:
                self._states[what, name] = None
        return self._states[what, name]


@dataclass
class _Parts:
    """Gathers the parts of one measurement, and what is wrong with those that cannot be had."""

    name: str
    measured: Measurement
    notes: list[str]
    failures: list[Failure] = field(default_factory=list)

    def take(self, phase: str, what: str, found: Sequence[_Found[R]]) -> R | None:
        """The figures that fit best; without any, a failure that names the nearest difference."""
        if not found:
            self.lack(phase, what)
            return None
        best = min(
            found,
            key=lambda each: (
                bool(each.compared.differences),
                each.figures is None,
                not each.same_name,
                len(each.compared.differences),
            ),
        )
        if best.compared.differences:
            why = f"{phase}: {'; '.join(best.compared.differences)}"
            self.failures.append(Failure(phase, "error", why, fatal=False))
            return None
        if best.figures is None:
            self.lack(phase, what)
        else:
            self.notes += best.compared.notes
        return best.figures

    def lack(self, phase: str, what: str) -> None:
        """Figures that nobody has measured; where the stored run says why, that stands."""
        if self.measured.failure(phase) is None:
            self.failures.append(Failure(phase, "error", f"{self.name} holds no {what}", fatal=False))


def read(path: Path, name: str, hashes: Path) -> Stored:
    """The report in a file, to be judged again. Raises as `document.read` does."""
    return Stored(name, document.read(path), hashes)


def _shown(value: object) -> str:
    """A value as a budget would have it."""
    if value is None:
        return "not given"
    if isinstance(value, str):
        builtin = Path(value).is_relative_to(BUILTIN_DIR)
        return questions.BUILTIN if builtin else value
    return json.dumps(value)
