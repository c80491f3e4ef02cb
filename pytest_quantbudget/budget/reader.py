"""Reads a budget file into a Budget: checks every line, reports all mistakes at once, and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget import keys, limits, references, uses
from pytest_quantbudget.budget.adapters import read_adapter
from pytest_quantbudget.budget.baseline import read_baseline
from pytest_quantbudget.budget.changes import read_changes
from pytest_quantbudget.budget.engines import Runs, is_file, needs_checkpoint
from pytest_quantbudget.budget.load import LoadReader
from pytest_quantbudget.budget.paths import Paths
from pytest_quantbudget.budget.tasks import Declared, read_tasks
from pytest_quantbudget.budget.yaml import parse, read_extended, sources
from pytest_quantbudget.core.budget import MAX_AGE_S, Basis, Budget, Method
from pytest_quantbudget.core.changes import MAX_CHANGE, ChangeLimit
from pytest_quantbudget.core.engines import NO_PERMISSIONS, TRANSFORMERS, VLLM, Permissions
from pytest_quantbudget.core.files import BUILTIN_DIR, EVERYWHERE, Roots
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.layers import QUANTIZED_BITS
from pytest_quantbudget.core.limits import Judging, Limit, LimitKind
from pytest_quantbudget.core.problems import BudgetError, Marked, Problem, Problems
from pytest_quantbudget.core.request import DUMMY, Subject, Text, Workload
from pytest_quantbudget.judge import metrics, resolution
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.models.calibration import calibration_texts
from pytest_quantbudget.models.config import find_config
from pytest_quantbudget.models.methods import Spec
from pytest_quantbudget.tasks import questions, texts

REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")


def load_budget(
    path: Path,
    roots: Roots = EVERYWHERE,
    load_format: str | None = None,
    *,
    elsewhere: bool = False,
    permissions: Permissions = NO_PERMISSIONS,
) -> Budget:
    """The budget in a file, which may name what lies in `roots`, and start and reach what `permissions` allow.

    A `load_format` that is given holds instead of the file's.

    Raises BudgetError with all that is wrong with it. What lies outside is not looked at, and no message tells whether
    it exists. Where measuring was done `elsewhere`, models and files that are not on this machine are no mistake.
    """
    if not roots.hold(path):
        why = f"lies outside the repository; the ini line `quant_allow_paths = {path.absolute().parent}` allows it"
        raise BudgetError(Problem(path, 0, why))
    root = read_extended(path, roots)
    budget = _read(path, root, roots, load_format, elsewhere=elsewhere, permissions=permissions)
    return replace(budget, sources=sources(root))


def budget_of(text: str, path: Path, roots: Roots, permissions: Permissions = NO_PERMISSIONS) -> Budget:
    """The budget that a text would be in the file `path`, which need not be there. `extends` is not followed.

    Raises BudgetError as `load_budget`.
    """
    return _read(path, parse(text, path), roots, None, elsewhere=False, permissions=permissions)


def _read(
    path: Path, root: Marked, roots: Roots, load_format: str | None, *, elsewhere: bool, permissions: Permissions
) -> Budget:
    if not isinstance(root.value, dict):
        raise BudgetError(Problem(path, root.line, "a budget is a mapping with `model` and `methods`"))
    # What stands there is for anchors, which the rest refers to.
    own = {key: node for key, node in root.entries.items() if not key.startswith(keys.FOR_ANCHORS)}
    root = replace(root, value=own)
    problems = Problems()
    paths = Paths(roots, problems, elsewhere=elsewhere)
    runs = Runs(roots, problems, Permissions(everything=True) if elsewhere else permissions)
    budget = _BudgetReader(path, root, problems, paths, runs, load_format).read_budget()
    problems.raise_any()
    return budget


class _BudgetReader:
    """Makes a Budget from the merged nodes of a file. Every step notes mistakes and goes on with what is left."""

    def __init__(
        self, path: Path, root: Marked, problems: Problems, paths: Paths, runs: Runs, load_format: str | None
    ) -> None:
        self.path, self.root, self.problems, self.paths, self.runs = path, root, problems, paths, runs
        self.file = keys.read_fields(root, keys.FILE, "a budget", problems)
        self.load_format: str = load_format or self.file["load_format"]
        self.judging = Judging().under(keys.judging(self.file))
        self.gpu = self.gpu_need(self.file["gpu"])
        self.model = paths.model(root, "model") or ""
        self.loads = LoadReader(self.file["load"], paths.file, problems, runs.permissions)

    def read_budget(self) -> Budget:
        self.check_model()
        workload = keys.read_fields(self.file["workload"], keys.WORKLOAD, "workload", self.problems)
        prompt = workload.pop("prompt")
        declared = read_tasks(self.file["tasks"], self.paths.file, self.problems)
        tasks = {name: one.task for name, one in declared.items()}
        totals = {name: one.total for name, one in declared.items() if one.total is not None}
        text = self.perplexity_text()
        read = self.methods(declared)
        timed = Workload(**workload)
        loads = dict.fromkeys(method.load for method in read if method.load is not None)
        parts = [part for part in (timed, *tasks.values(), text, *loads) if part is not None]
        names = [method.name for method in read]
        baseline, stored = read_baseline(self.file["baseline"], names, self.path, parts, self.paths, self.problems)
        references.check(self.root, self.problems, stored=stored is not None)
        against = stored.measurement.subject.key if stored is not None else self.key_of(baseline, read)
        read = tuple(m if m.name == baseline else replace(m, subject=replace(m.subject, against=against)) for m in read)
        basis = Basis(timed, tasks, text, baseline, stored=stored is not None)
        for method in read:
            for limit in method.limits:
                own = replace(basis, load=method.load, limits=method.limits)
                self.check_limit(limit, method, own, totals)
            for change in method.changes:
                self.check_limit(change, method, replace(basis, load=method.load, limits=method.limits), totals)
        max_age = self.file["max_age"] or MAX_AGE_S
        wanted = uses.read_uses(self.root.entries.get("use"), self.file["use"], read, self.problems)
        return Budget(
            self.path, self.model, baseline, timed, prompt, tasks, read, max_age, text, totals,
            self.root.entries.get("model"), stored, wanted,
        )  # fmt: skip

    def check_model(self) -> None:
        """A model is named, its revision can be one, and dummy weights have a configuration on this machine."""
        revision = self.file["revision"]
        if "model" not in self.root.entries:
            self.problems.add(self.root, "a budget needs a `model`: a hub id, a directory, or builtin")
        if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
            self.problems.add(self.root.entries["revision"], f"revision {revision!r} is not a commit, branch or tag")
        # A model that is refused is not looked at.
        if self.load_format == DUMMY and not self.problems.found:
            try:
                find_config(self.model, revision)
            except (ValueError, OSError) as error:
                self.problems.add(self.root.entries["model"], f"model: {error}")

    def methods(self, tasks: Mapping[str, Declared]) -> tuple[Method, ...]:
        node: Marked = self.file["methods"] or Marked({}, self.path, self.root.line)
        if not node.entries:
            self.problems.add(node, f"a budget needs `methods`: {', '.join(methods.run_by(TRANSFORMERS))}")
        kinds = metrics.limit_kinds(tasks)
        read = []
        for name, entry in node.entries.items():
            method = self.method(name, entry, kinds, tasks)
            if method is not None:
                read.append(method)
        return tuple(read)

    def method(
        self, name: str, node: Marked, kinds: Mapping[str, LimitKind], tasks: Mapping[str, Declared]
    ) -> Method | None:
        values = keys.read_fields(node, keys.METHOD, name, self.problems)
        run = self.runs.read(name, node, values)
        if not isinstance(node.value, dict) or run is None:
            return None
        spec, engine = methods.spec(run["kind"]), engines.spec(run["engine"])
        judging = self.judging.under(keys.judging(values))
        of_tasks = {name: judging.under(task.judging) for name, task in tasks.items()}
        entries: Marked = values["budget"] or replace(node, value={})
        if not isinstance(entries.value, dict):
            self.problems.add(entries, f"budget takes limits ({', '.join(kinds)}), not {entries.plain!r}")
        read = [
            limits.read_limit(kinds, key, entry, judging, of_tasks, self.problems)
            for key, entry in entries.entries.items()
            if key != MAX_CHANGE
        ]
        published = references.of_method(self.root, name, values["reference"], tasks, of_tasks, self.problems)
        twice = {limit.name: limit for limit in published if limit.name in entries.entries}
        for limit in twice.values():
            self.problems.add(limit, f"{limit.name} stands in the budget of {name}, too")
        of_method = (*filter(None, read), *(limit for limit in published if limit.name not in twice))
        limits.check_contradictions(of_method, self.problems)
        taken = [limit.name for limit in of_method]
        of_runs = read_changes(entries.entries.get(MAX_CHANGE), kinds, judging, of_tasks, taken, self.problems)
        gpus = values["gpus"] if "gpus" in node.entries else self.file["gpus"]
        need = self.gpu_need(values["gpu"]) if values["gpu"] else self.gpu
        if need is not None or gpus > 1:
            need = replace(need or GpuNeed(), count=max(need.count if need else 1, gpus))
        options = spec.options if engine.quantizes else ()
        given = keys.read_fields(values["options"], options, f"{name}'s options", self.problems)
        lacks = needs_checkpoint(engine, spec, list(node.entries))
        if lacks is not None:
            self.problems.add(node, lacks)
        if "checkpoint" in node.entries:
            # Which options a ready checkpoint was made with, it says itself.
            given = {key: value for key, value in given.items() if key in (values["options"] or node).entries}
        subject = Subject(
            model=self.model,
            revision=self.file["revision"],
            method=name,
            checkpoint=self.checkpoint(spec, engine.name, node),
            options=given,
            calibration=self.calibration(spec, node, given) if engine.quantizes else None,
            gpus=gpus,
            load_format=self.load_format,
            same_as_source=self.same_as_source(node, values["same_as_source"]),
            adapter=read_adapter(node, values, spec, engine, run["engine_options"], self.paths),
            **run,
        )
        timeout = values["timeout"] or self.file["timeout"] or keys.TIMEOUT_S
        load = self.loads.of(values["load"], name)
        given_to_engine = values["engine_options"].entries if values["engine_options"] else {}
        marks = values["marks"] or ()
        return Method(
            name,
            subject,
            of_method,
            marks,
            need,
            timeout,
            node.line,
            load,
            given_to_engine,
            self.decompressed(node, values["decompressed"]),
            uses.traits(spec, subject),
            of_runs,
        )

    def decompressed(self, node: Marked, given: str | None) -> bool:
        """Whether memory and speed count also where the engine decompresses the checkpoint."""
        if given is not None and "checkpoint" not in node.entries:
            why = "decompressed is about how an engine runs a ready checkpoint, and there is no `checkpoint`"
            self.problems.add(node.entries["decompressed"], why)
        return given == keys.ALLOW

    def same_as_source(self, node: Marked, own: tuple[str, ...] | None) -> tuple[str, ...]:
        """What must be the source model's own: of the method, else of the file; of ready checkpoints alone."""
        if "checkpoint" in node.entries:
            return own if own is not None else self.file["same_as_source"] or ()
        if own:
            why = "same_as_source compares a ready checkpoint with `model`, and there is no `checkpoint`"
            self.problems.add(node.entries["same_as_source"], why)
        return ()

    def checkpoint(self, spec: Spec, engine: str, node: Marked) -> str | None:
        entry = node.entries.get("checkpoint")
        if entry is not None and spec.checkpoint_format is None:
            self.problems.add(entry, f"{spec.name} takes no checkpoint: its weights are those of `model`")
            return None
        if entry is not None and engine in (TRANSFORMERS, VLLM) and str(entry.value).endswith(".gguf"):
            self.problems.add(
                entry, f"{entry.value} is a GGUF file, which `engine: llama.cpp` runs, and {engine} does not"
            )
            return None
        if entry is not None and is_file(engine, entry.value):
            found = self.paths.file(node, "checkpoint")
            return str(found) if found is not None else None
        return self.paths.model(node, "checkpoint")

    def calibration(self, spec: Spec, node: Marked, options: Mapping[str, Any]) -> str | None:
        """The file of calibration texts, for a method that quantizes the model itself; it must hold enough of them."""
        if spec.quantize is None or not spec.calibrated or "checkpoint" in node.entries or self.load_format == DUMMY:
            return None
        if "calibration" not in self.root.entries:
            why = f"{spec.name} has no `checkpoint`, and the file has no `calibration` texts to quantize it with"
            self.problems.add(node, why)
            return None
        path = Path(self.calibration_file)
        if path.is_file():
            entry = self.root.entries["calibration"]
            try:
                calibration_texts(path, options["texts"], options["seed"])
            except BudgetError as error:
                self.problems.extend([each for each in error.problems if each not in self.problems.found])
            except ValueError as error:
                self.problems.add(entry, f"calibration: {error}")
        return self.calibration_file

    @cached_property
    def calibration_file(self) -> str:
        if self.file["calibration"] == questions.BUILTIN:
            return str(BUILTIN_DIR / "calibration.jsonl")
        return str(self.paths.file(self.root, "calibration") or "")

    def gpu_need(self, entry: Marked | None) -> GpuNeed | None:
        if entry is None or entry.value is False:
            return None
        if entry.value is True:
            return GpuNeed()
        return GpuNeed(**keys.read_fields(entry, keys.GPU, "gpu", self.problems))

    def key_of(self, baseline: str | None, read: Sequence[Method]) -> str | None:
        """What the methods' subjects call their baseline: in a run of several budgets, each judges by its own."""
        return next((method.subject.key for method in read if method.name == baseline), None)

    def perplexity_text(self) -> Text | None:
        node: Marked | None = self.file["perplexity"]
        if node is None:
            return None
        values = keys.read_fields(node, keys.PERPLEXITY, "perplexity", self.problems)
        path = self.paths.file(node, "file")
        if path is None and isinstance(node.value, dict) and "file" not in node.entries:
            self.problems.add(node, "perplexity needs a text `file`")
        if values["stride"] > values["window"]:
            self.problems.add(node, f"stride {values['stride']} skips text: the window is {values['window']}")
        if path is not None and path.is_file():
            try:
                if not texts.read_text(path).strip():
                    self.problems.add(node.entries["file"], f"file: {path.name} holds no text")
            except (OSError, ValueError) as error:
                self.problems.add(node.entries["file"], f"file: {error}")
        return Text(str(path), values["window"], values["stride"])

    def check_limit(self, limit: Limit | ChangeLimit, method: Method, basis: Basis, totals: Mapping[str, int]) -> None:
        """Note a limit that the method or the rest of the file makes pointless."""
        kind = limit.limit.kind if isinstance(limit, ChangeLimit) else limit.kind
        metric = metrics.metric_of(kind)
        missing, baseline = metric.lacking(basis), basis.baseline
        if metric.quantized_only and methods.spec(method.subject.kind).bits > QUANTIZED_BITS:
            missing = f"a method that quantizes: {method.name} stores every value in 16 bits or more"
        if kind.relation and method.name == baseline:
            self.problems.add(limit, f"{limit.name} compares the baseline {baseline} with itself: it cannot fail")
        elif kind.relation and baseline is None and "baseline" not in self.root.entries:
            self.problems.add(limit, f"{limit.name} compares with a baseline, and the file has no `baseline`")
        if missing:
            self.problems.add(limit, f"{limit.name} needs {missing}")
        elif isinstance(limit, Limit) and (method.subject.load_format != DUMMY or not metric.quality):
            why = resolution.pointless(limit, method.name, basis, totals)
            if why:
                self.problems.add(limit, why)
