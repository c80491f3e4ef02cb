"""Judging again without the model: figures from a report in place of new measurements.

What the budget asks for is compared with what was measured, part by part and setting by setting. Paths differ between
machines, so models and files are compared by their content. A difference is a failure like any other, and costs only
the tests that it touches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.files import BUILTIN_DIR, file_hash
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Device, Failure, Measurement
from pytest_quantbudget.core.request import LOAD, DivergenceOf, Part, Request, Subject, Task
from pytest_quantbudget.core.verdict import SKIPPED
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.models import hub
from pytest_quantbudget.report import consistency, document
from pytest_quantbudget.report.document import BudgetReport, JudgedFrom, MethodReport, Report
from pytest_quantbudget.tasks import harness_file, questions

# A commit, which may be abbreviated.
COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Stored:
    """A report that is judged again. `name` is what messages call it.

    `hashes` is a folder that remembers those of large directories, None for nowhere.
    """

    name: str
    report: Report
    hashes: Path | None
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

    def state(self, what: str, name: str, state: Callable[[Path], str]) -> str | None:
        """The state of a file or directory, computed once; None where it is not on this machine."""
        if (what, name) not in self._states:
            try:
                self._states[what, name] = state(Path(name)) if Path(name).exists() else None
            except OSError:
                self._states[what, name] = None
        return self._states[what, name]

    def noise(self, file: str, repeated: str | None) -> Noise | None:
        """What repeat runs of a method showed, if the report's run made any for a budget of that file name."""
        found = [budget.noise for budget in self.report.budgets if Path(budget.file).name == file]
        return next((noise for noise in found if noise is not None and noise.method == repeated), None)

    def measure(self, request: Request, file: str) -> Measurement:
        """The stored measurement of what a request asks for, as if it had been made now.

        `file` is the name of the request's budget: the report's budget of that name comes first, then the others. A
        subject that was measured with other settings is a failure of loading, and a part that was is one of its phase.
        The failures of the stored run stand.
        """
        subject = request.subject
        reports = [(b, m) for b in self.report.budgets for m in b.methods if m.name == subject.method]
        known = [(b, m.measurement, self._subject(subject, m.measurement)) for b, m in reports if m.measurement]
        if not known:
            return Measurement(subject, failures=(self._missing(reports),))
        budget, measured, compared = min(
            known, key=lambda one: (bool(one[2].differences), Path(one[0].file).name != file, len(one[2].differences))
        )
        if compared.differences:
            return Measurement(subject, failures=(Failure(LOAD, "error", "; ".join(compared.differences)),))
        notes = list(compared.notes if measured.device is not None else ())
        failures: list[Failure] = []
        held: dict[str, list[Any]] = {name: [] for name in Measurement.holders}
        for part in request.parts:
            if part.held_in:
                result = self._take(part, budget, measured, failures, notes)
                held[part.held_in] += [] if result is None else [replace(result, **{part.named: part})]
        for divergence in request.of(DivergenceOf):
            result = next((result for result in held["tasks"] if result.task == divergence.task), None)
            is_baseline = divergence.task.name in request.whole
            if result is not None and result.divergence is None and not is_baseline:
                failures += self._lack(divergence, measured)
        results: dict[str, Any] = {name: tuple(found) for name, found in held.items()}
        return replace(
            measured,
            subject=subject,
            failures=(*failures, *measured.failures),
            notes=tuple(dict.fromkeys((*measured.notes, *notes))),
            **results,
        )

    def _take(
        self, part: Part, budget: BudgetReport, measured: Measurement, failures: list[Failure], notes: list[str]
    ) -> Any:
        """The result of a part that fits best, or None and a failure that names the nearest difference."""
        loads = [method.load for method in budget.methods]
        declared = [one for one in (budget.workload, *budget.tasks, budget.text, *loads) if type(one) is type(part)]
        results = [(getattr(result, part.named), result) for result in getattr(measured, part.held_in)]
        asked = [one for one, _ in results]
        results += [(one, None) for one in declared if one not in asked]
        compared = [(self._part(part, one, result), one.label == part.label, result) for one, result in results]
        # A task's name is a label. But only what has the task's name is worth a message about its settings.
        candidates = [one for one in compared if one[1] or not one[0].differences]
        if not candidates:
            failures += self._lack(part, measured)
            return None
        comparison, _, result = min(
            candidates,
            key=lambda one: (bool(one[0].differences), one[2] is None, not one[1], len(one[0].differences)),
        )
        if comparison.differences:
            why = f"{part.phase}: {'; '.join(comparison.differences)}"
            failures.append(Failure(part.phase, "error", why, fatal=False))
            return None
        if result is None:
            failures += self._lack(part, measured)
        else:
            notes += comparison.notes
        return result

    def _lack(self, part: Part, measured: Measurement) -> list[Failure]:
        """A failure for figures that were not measured; none where the stored run says why."""
        if measured.failure(part.phase) is not None:
            return []
        return [Failure(part.phase, "error", f"{self.name} holds no {part.noun}", fatal=False)]

    def _missing(self, reports: Sequence[tuple[BudgetReport, MethodReport]]) -> Failure:
        """Why a method has no measurement at all: what its limits were skipped for, or that it was not measured."""
        for _, method in reports:
            for limit in method.limits:
                if limit.verdict.outcome == SKIPPED:
                    kind = "no-gpu" if limit.verdict.for_want_of_gpu else "skip"
                    why = limit.verdict.message.removeprefix(f"{method.name}: {limit.name} ")
                    return Failure(LOAD, kind, f"skipped in {self.name}: {why}")
        return Failure(LOAD, "error", f"{self.name} holds no measurement of it")

    def _subject(self, ours: Subject, measured: Measurement) -> Comparison:
        theirs, compared = measured.subject, Comparison(self)
        compared.weights("model", (ours.model, ours.revision), (theirs.model, theirs.revision), measured.revision)
        checkpoints = (ours.checkpoint, None), (theirs.checkpoint, None)
        compared.weights("checkpoint", *checkpoints, measured.checkpoint_revision)
        adapters = [(subject.adapter.name if subject.adapter else None, None) for subject in (ours, theirs)]
        compared.weights("adapter", adapters[0], adapters[1], measured.adapter_revision)
        compared.value("merge", *(bool(subject.adapter and subject.adapter.merge) for subject in (ours, theirs)))
        compared.value("load_format", ours.load_format, theirs.load_format)
        compared.values(ours.options, theirs.options)
        compared.content("calibration", ours.calibration, theirs.calibration, measured.calibration)
        compared.value("gpus", ours.gpus, theirs.gpus)
        for name in ("kind", "engine"):
            compared.value(name, getattr(ours, name), getattr(theirs, name))
        compared.values(ours.engine_options, theirs.engine_options)
        compared.values(_served(ours.server), _served(theirs.server))
        return compared

    def _part(self, ours: Part, theirs: Part, result: Any) -> Comparison:
        """Two parts of one kind, setting by setting and file by file."""
        compared = Comparison(self)
        source = getattr(result, "source", None)
        if isinstance(ours, Task) and isinstance(theirs, Task):
            hashes = _hashes(theirs, result)
            by_content = ours.is_harness_file and theirs.is_harness_file
            compared.values(ours.settings(), theirs.settings(), leave_out=("harness",) if by_content else ())
            if ours.file is None and theirs.file is None and ours.harness is None:
                sets = ("/".join(questions.HUB_SETS.get(task.name, (task.name,))) for task in (ours, theirs))
                compared.value("set", *sets)
        else:
            hashes = {"file": source}
            compared.values(ours.settings(), theirs.settings())
        for name, here in ours.files().items():
            state = (lambda path: harness_file.state(path)) if name == "harness" else file_hash
            compared.content(name, here, theirs.files()[name], hashes.get(name), state)
        return compared


def _hashes(task: Task, result: TaskResult | None) -> dict[str, str | None]:
    """The hashes of a task's files when it was measured, by the budget's keys."""
    source = result.source if result is not None else None
    if not source:
        return {}
    if task.is_harness_file:
        # The state of the files stands behind the library's name and version.
        return {"harness": source.split(" ", 2)[-1]}
    hashes = iter(source.split("+") if task.file else ())
    return {name: next(hashes, None) for name in ("file", "shots_file") if getattr(task, name)}


@dataclass
class Comparison:
    """What differs between a budget and a report, and what could only be compared by its name, in words."""

    stored: Stored
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def value(self, what: str, here: object, there: object) -> None:
        """Compare two values of a setting."""
        if here != there:
            self.differences.append(f"{what} is {_shown(here)} here and {_shown(there)} in {self.stored.name}")

    def values(self, here: dict[str, Any], there: dict[str, Any], leave_out: Sequence[str] = ()) -> None:
        """Compare settings by their names."""
        for name in dict.fromkeys((*here, *there)):
            if name not in leave_out:
                self.value(name, here.get(name), there.get(name))

    def content(
        self,
        what: str,
        here: str | None,
        there: str | None,
        held: str | None,
        state: Callable[[Path], str] = file_hash,
    ) -> None:
        """Compare files or directories by their content, `held` in the report; by their names where one is unknown."""
        if here is None or there is None:
            self.value(what, here, there)
            return
        now = self.stored.state(what, here, state)
        if now is not None and held is not None:
            if now != held:
                why = f"{what} {_shown(here)} holds something else here than in {self.stored.name}"
                self.differences.append(why)
        elif Path(here).name != Path(there).name:
            self.value(what, here, there)
        else:
            name = self.stored.name
            why = f"{here} is not on this machine" if now is None else f"{name} does not tell what it held"
            self.notes.append(f"{what} {Path(here).name} was compared with {name} by its name alone: {why}")

    def weights(
        self,
        what: str,
        ours: tuple[str | None, str | None],
        theirs: tuple[str | None, str | None],
        measured: str | None,
    ) -> None:
        """Compare (name, revision as written) of hub models and directories; `measured` is the revision that was used.

        A relative path such as `models/x` reads as a hub id on a machine that has no such directory.
        """
        (here, revision), (there, written) = ours, theirs
        if here is None or there is None:
            self.value(what, here, there)
        elif Path(here).is_absolute() and Path(there).is_absolute():
            memo = self.stored.hashes
            self.content(what, here, there, measured, lambda path: hub.revision_of(str(path), None, memo))
        elif Path(there).is_absolute() and Path(there).parts[-len(Path(here).parts) :] == Path(here).parts:
            name = self.stored.name
            self.notes.append(f"{what} {here} is no directory here: taken for {there} of {name} by its name")
        elif here != there:
            self.value(what, here, there)
        elif revision is not None and measured is not None and COMMIT.fullmatch(revision):
            self.value("revision", revision, measured[: len(revision)])
        else:
            self.value("revision", revision, written)


def read(path: Path, name: str, hashes: Path | None) -> Stored:
    """The report in a file, to be judged again. Raises as `document.read` does, and for one that contradicts itself."""
    report = document.read(path)
    consistency.check(report)
    return Stored(name, report, hashes)


def _served(server: Server | None) -> dict[str, Any]:
    """What of a server its figures depend on, as far as a budget says it, by its keys there."""
    names = ("url", "command", "model") if server is not None else ()
    return {f"server.{name}": getattr(server, name) or None for name in names}


def _shown(value: object) -> str:
    """A value as a budget would have it."""
    if value is None:
        return "not given"
    if isinstance(value, str):
        builtin = Path(value).is_relative_to(BUILTIN_DIR)
        return questions.BUILTIN if builtin else value
    return json.dumps(value)
