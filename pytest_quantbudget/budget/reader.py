"""A budget file -> Budget: every line checked, every mistake found at once, nothing loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget import keys, limits
from pytest_quantbudget.budget.tasks import Declared, read_tasks
from pytest_quantbudget.budget.yaml import read_extended
from pytest_quantbudget.core import fields
from pytest_quantbudget.core.budget import MAX_AGE_S, Budget, Method
from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.files import BUILTIN_DIR, Roots, path_from
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.layers import QUANTIZED_BITS
from pytest_quantbudget.core.limits import Judging, LimitKind
from pytest_quantbudget.core.problems import BudgetError, Marked, Problem, Problems, nearest
from pytest_quantbudget.core.request import DUMMY, Subject, Task, Text, Workload
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.config import find_config
from pytest_quantbudget.tasks import questions

TOP = (
    "model", "revision", "extends", "baseline", "workload", "calibration", "gpu", "gpus", "timeout", "max_age", "tasks",
    "perplexity", "methods", "load_format", *[field.name for field in keys.JUDGING],
)  # fmt: skip
METHOD = ("checkpoint", "options", "budget", "marks", "gpu", "gpus", "timeout", *[f.name for f in keys.JUDGING])
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")


def load_budget(
    path: Path, roots: Sequence[Path] | None = None, load_format: str | None = None, *, elsewhere: bool = False
) -> Budget:
    """The budget in a file, which may name what lies in `roots` and in the package; anything where that is None.

    A `load_format` that is given holds instead of the file's.

    Raises BudgetError with all that is wrong with it. What lies outside is not looked at, and no message tells whether
    it exists. Where measuring was done `elsewhere`, models and files that are not on this machine are no mistake.
    """
    allowed = Roots(roots)
    if not allowed.hold(path):
        why = f"lies outside the repository; the ini line `quant_allow_paths = {path.absolute().parent}` allows it"
        raise BudgetError(Problem(path, 0, why))
    root = read_extended(path, allowed)
    problems = Problems()
    budget = _Reader(path, root, problems, allowed, load_format, elsewhere).budget()
    problems.raise_any()
    return budget


class _Reader:
    """Reads one file's merged nodes; every method notes what is wrong and goes on with what it can."""

    def __init__(
        self,
        path: Path,
        root: Marked,
        problems: Problems,
        roots: Roots,
        load_format: str | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.path, self.root, self.problems, self.roots, self.elsewhere = path, root, problems, roots, elsewhere
        told = keys.read_fields(_only(root, "load_format"), [keys.LOAD_FORMAT], "", problems)
        self.load_format = load_format or str(told["load_format"])

    def budget(self) -> Budget:
        if not isinstance(self.root.value, dict):
            raise BudgetError(Problem(self.path, self.root.line, "a budget is a mapping with `model` and `methods`"))
        self.known_keys(self.root, TOP, "a budget")
        model = self.model(self.root)
        self.configuration(model)
        workload = keys.read_fields(self.section("workload"), keys.WORKLOAD, "workload", self.problems)
        prompt = workload.pop("prompt")
        asked = read_tasks(self.section("tasks"), self.file, self.problems)
        tasks = {name: each.task for name, each in asked.items()}
        totals = {name: each.total for name, each in asked.items() if each.total is not None}
        text = self.perplexity()
        found = self.methods(model, asked)
        baseline = self.baseline(found)
        for method in found:
            self.relations(method, baseline)
            self.wants(method, tasks, text)
        max_age = self.time(self.root, "max_age", MAX_AGE_S)
        return Budget(self.path, model, baseline, Workload(**workload), prompt, tasks, found, max_age, text, totals)

    def section(self, name: str) -> Marked:
        return self.root.entries.get(name) or Marked({}, self.path, self.root.line)

    def known_keys(self, node: Marked, known: Sequence[str], what: str) -> None:
        for key, value in node.entries.items():
            if key not in known:
                self.problems.add(value, f"{what} has no key {key!r}{nearest(key, known)}")

    def text(self, node: Marked, key: str) -> str | None:
        entry = node.entries.get(key)
        if entry is None:
            return None
        try:
            return str(fields.TEXT.read(entry.plain))
        except ValueError as error:
            self.problems.add(entry, f"{key}: {error}")
            return None

    def model(self, node: Marked, key: str = "model") -> str:
        name = self.text(node, key)
        entry = node.entries.get(key)
        if entry is None:
            self.problems.add(node, f"a budget names its `{key}`: a hub id, a directory, or builtin")
        if name is None or entry is None:
            return ""
        if name == questions.BUILTIN:
            return str(BUILTIN_DIR)
        hub_id = HUB_ID.fullmatch(name)
        beside = entry.file.parent
        outside = self.roots.refuse(beside, name)
        if outside is not None:
            # A link of the repository must not make a hub id of what lies behind it, nor tell whether it exists.
            if not hub_id or os.path.lexists(beside / name.split("/")[0]):
                self.problems.add(entry, f"{key}: {outside}")
            return name
        folder = path_from(beside, name)
        if folder.is_dir():
            stray = self.roots.stray(folder)
            if stray is not None:
                self.problems.add(entry, f"{key}: {self.roots.refuse(stray.parent, stray.name)} (it lies in {name!r})")
            return str(folder.resolve())
        if not hub_id and self.elsewhere:
            return str(folder.resolve())
        if not hub_id:
            self.problems.add(entry, f"{key} {name!r} is neither a directory nor a hub id such as Qwen/Qwen3-8B")
        return name

    def configuration(self, model: str) -> None:
        """Dummy weights want a configuration that is on this machine; a model that is refused is not looked at."""
        if self.load_format == DUMMY and not self.problems.found:
            try:
                find_config(model, self.revision())
            except (ValueError, OSError) as error:
                self.problems.add(self.root.entries["model"], f"model: {error}")

    def revision(self) -> str | None:
        name = self.text(self.root, "revision")
        if name is not None and (not REVISION.fullmatch(name) or ".." in name):
            self.problems.add(self.root.entries["revision"], f"revision {name!r} is no commit, branch or tag")
        return name

    def file(self, node: Marked, key: str) -> Path | None:
        name, entry = self.text(node, key), node.entries.get(key)
        if name is None or entry is None:
            return None
        beside = entry.file.parent
        outside = self.roots.refuse(beside, name) if name != questions.BUILTIN else None
        if outside is not None:
            self.problems.add(entry, f"{key}: {outside}")
            return None
        path = questions.resolve(name, beside).resolve()
        if not path.is_file() and not self.elsewhere:
            names = [p.name for p in path.parent.glob("*")] if self.roots.hold(path.parent) else []
            near = nearest(path.name, [n for n in names if n.endswith(path.suffix)])
            self.problems.add(entry, f"{key}: there is no file {name!r}{near}")
            return None
        return path

    def methods(self, model: str, tasks: Mapping[str, Declared]) -> tuple[Method, ...]:
        node = self.section("methods")
        if not node.entries:
            self.problems.add(node, f"a budget names `methods`: {', '.join(methods.MODULES)}")
        kinds = metrics.limit_kinds(tasks)
        of_tasks = {name: each.judging for name, each in tasks.items()}
        found = []
        for name, entry in node.entries.items():
            if name not in methods.MODULES:
                self.problems.add(entry, f"there is no method {name!r}{nearest(name, methods.MODULES)}")
                continue
            if not isinstance(entry.value, dict):
                self.problems.add(entry, f"{name} wants keys ({', '.join(METHOD)}), not {entry.plain!r}")
                continue
            found.append(self.method(name, entry, model, kinds, of_tasks))
        return tuple(found)

    def method(
        self,
        name: str,
        node: Marked,
        model: str,
        kinds: Mapping[str, LimitKind],
        of_tasks: Mapping[str, Mapping[str, object]],
    ) -> Method:
        self.known_keys(node, METHOD, name)
        spec = methods.spec(name)
        options = node.entries.get("options") or Marked({}, node.file, node.line)
        values = keys.read_fields(options, spec.options, f"{name}'s options", self.problems)
        limits_node = node.entries.get("budget") or Marked({}, node.file, node.line)
        judging = Judging().under(self.judging(self.root)).under(self.judging(node))
        found = []
        for key, value in limits_node.entries.items():
            told = of_tasks.get(kinds[key].task, {}) if key in kinds else {}
            found.append(limits.read(kinds, key, value, judging.under(told), self.problems))
        mine = tuple(filter(None, found))
        if "budget" in node.entries and not isinstance(limits_node.value, dict):
            self.problems.add(limits_node, f"budget wants limits ({', '.join(kinds)}), not {limits_node.plain!r}")
        limits.check_contradictions(mine, self.problems)
        marks = keys.read_fields(_only(node, "marks"), [Field("marks", fields.NAMES, "")], name, self.problems)
        subject = Subject(
            model=model,
            revision=self.revision(),
            method=name,
            checkpoint=self.checkpoint(name, node),
            options=values,
            calibration=self.calibration(name, node),
            gpus=self.gpus(node),
            load_format=self.load_format,
        )
        timeout = self.time(node, "timeout", self.time(self.root, "timeout", keys.TIMEOUT_S))
        return Method(name, subject, mine, marks["marks"] or (), self.gpu(node), timeout, node.line)

    def checkpoint(self, name: str, node: Marked) -> str | None:
        entry = node.entries.get("checkpoint")
        if entry is None:
            return None
        if methods.spec(name).checkpoint_format is None:
            self.problems.add(entry, f"{name} takes no checkpoint: its weights are those of `model`")
            return None
        return self.model(node, "checkpoint")

    def calibration(self, name: str, node: Marked) -> str | None:
        """The calibration file of a method that will quantize the model itself."""
        if methods.spec(name).quantize is None or "checkpoint" in node.entries or self.load_format == DUMMY:
            return None
        entry = self.root.entries.get("calibration")
        if entry is None:
            self.problems.add(
                node, f"{name} has no `checkpoint`, and the file names no `calibration` text to quantize on"
            )
            return None
        if entry.value == questions.BUILTIN:
            return str(BUILTIN_DIR / "calibration.jsonl")
        return str(self.file(self.root, "calibration") or "")

    def gpu(self, node: Marked) -> GpuNeed | None:
        entry = node.entries.get("gpu") or self.root.entries.get("gpu")
        spread = self.gpus(node)
        if entry is None or entry.value is False:
            return GpuNeed(count=spread) if spread > 1 else None
        if entry.value is True:
            return GpuNeed(count=spread)
        need = GpuNeed(**keys.read_fields(entry, keys.GPU, "gpu", self.problems))
        return replace(need, count=max(need.count, spread))

    def judging(self, node: Marked) -> dict[str, Any]:
        return keys.read_fields(_only(node, *[f.name for f in keys.JUDGING]), keys.JUDGING, "", self.problems)

    def gpus(self, node: Marked) -> int:
        holder = node if "gpus" in node.entries else self.root
        return int(keys.read_fields(_only(holder, "gpus"), keys.SPREAD, "gpus", self.problems)["gpus"])

    def time(self, node: Marked, key: str, default: float) -> float:
        field = Field(key, fields.TIME, "", default)
        return float(keys.read_fields(_only(node, key), [field], key, self.problems)[key])

    def baseline(self, found: Sequence[Method]) -> str | None:
        entry = self.root.entries.get("baseline")
        name = self.text(self.root, "baseline")
        names = [method.name for method in found]
        if entry is not None and name is not None and name not in names:
            self.problems.add(entry, f"the baseline {name!r} is not among the methods{nearest(name, names)}")
            return None
        return name

    def perplexity(self) -> Text | None:
        node = self.root.entries.get("perplexity")
        if node is None:
            return None
        values = keys.read_fields(node, keys.PERPLEXITY, "perplexity", self.problems)
        path = self.file(node, "file")
        if path is None and isinstance(node.value, dict) and "file" not in node.entries:
            self.problems.add(node, "perplexity wants a text `file`")
        if values["stride"] > values["window"]:
            self.problems.add(node, f"stride {values['stride']} skips text: the window is {values['window']}")
        return Text(str(path), values["window"], values["stride"])

    def wants(self, method: Method, tasks: Mapping[str, Task], text: Text | None) -> None:
        """What limits need that the file does not declare."""
        for limit in method.limits:
            metric = metrics.metric_of(limit.kind)
            missing = metric.lacking(tasks, text)
            if metric.quantized_only and methods.spec(method.name).bits > QUANTIZED_BITS:
                missing = f"a method that quantizes: {method.name} stores every value in 16 bits or more"
            if missing:
                self.problems.add(Marked(None, limit.file, limit.line), f"{limit.name} wants {missing}")

    def relations(self, method: Method, baseline: str | None) -> None:
        for limit in method.limits:
            if not limit.kind.relation:
                continue
            node = Marked(None, limit.file, limit.line)
            if method.name == baseline:
                self.problems.add(node, f"{limit.name} compares the baseline {baseline} with itself: it cannot fail")
            elif baseline is None and "baseline" not in self.root.entries:
                self.problems.add(node, f"{limit.name} is taken against a baseline, and the file names no `baseline`")


def _only(node: Marked, *names: str) -> Marked:
    return Marked({k: v for k, v in node.entries.items() if k in names}, node.file, node.line)
