"""Reads the `tasks` of a budget file: which questions are asked of the model, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core import files
from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.problems import BudgetError, Marked, Problems
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.tasks import harness_file, questions
from pytest_quantbudget.tasks.harness_file import FindFile
from pytest_quantbudget.tasks.sets import file_of, others, styles

TASK_NAME = re.compile("[a-z][a-z0-9_]*")
MAX_TASKS = 100  # what is checked pair by pair must stay few


@dataclass(frozen=True)
class Declared:
    """A task, how its limits are judged, and how many questions are asked at most, where that is known."""

    task: Task
    judging: Mapping[str, Any]
    total: int | None


def read_tasks(node: Marked | None, find: FindFile, problems: Problems) -> dict[str, Declared]:
    """The tasks that a file declares, by name; `find` gives the file that a key names."""
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        problems.add(node, "tasks takes a name and settings for each question set")
    if len(node.entries) > MAX_TASKS:
        problems.add(node, f"declares {len(node.entries):,} tasks; a budget has at most {MAX_TASKS}")
        return {}
    reader = _TaskReader(find, problems)
    declared: dict[str, Declared] = {}
    for name, settings in node.entries.items():
        known = {*metrics.limits(), *(kind.name for other in declared for kind in metrics.task_limits(other))}
        taken = [kind.name for kind in metrics.task_limits(name) if kind.name in known]
        if not TASK_NAME.fullmatch(name) or taken:
            why = f"its limit {taken[0]} already has a meaning" if taken else "use a-z, 0-9 and _"
            problems.add(settings, f"{name!r} cannot name a task: {why}")
            continue
        entry = replace(settings, value={}) if settings.value is None else settings
        declared[name] = (reader.harness if "harness" in entry.entries else reader.task)(name, entry)
    return declared


class _TaskReader:
    def __init__(self, find: FindFile, problems: Problems) -> None:
        self.find, self.problems = find, problems
        self.pools: dict[tuple[Path, str | None, bool], list[questions.Question]] = {}

    def fields(self, name: str, node: Marked, fields: Sequence[Field]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a task's keys say of how it is asked, and of how its limits are judged."""
        values = keys.read_fields(node, (*fields, *keys.JUDGING), f"task {name}", self.problems)
        judging = keys.judging(values)
        return {name: value for name, value in values.items() if name not in judging}, judging

    def task(self, name: str, node: Marked) -> Declared:
        """A set of questions with worked answers."""
        values, judging = self.fields(name, node, keys.TASK)
        path, shots_path = self.find(node, "file"), self.find(node, "shots_file")
        if "file" not in node.entries:
            path = file_of(name)
        values["file"], values["shots_file"] = (str(p) if p else None for p in (path, shots_path))
        if path is None and "file" not in node.entries and name not in questions.HUB_SETS:
            known, why = ", ".join(questions.HUB_SETS), others().why_not(name)
            self.problems.add(
                node,
                f"task {name!r} needs a `file`: only {known} have a set on the hub; `harness` names other tasks{why}",
            )
        if path is None and values["cluster"] is not None:
            self.problems.add(node.entries["cluster"], "cluster names a key of the task's own `file`")
        values["style"] = values["style"] or (name if name in styles() else "gsm8k")
        asked = values["questions"]
        if isinstance(asked, keys.Growth):
            values["start"], values["questions"] = asked.start, asked.max
        self.shots(name, node, values)
        total = values["questions"] or (questions.HUB_SIZES.get(name) if path is None else None)
        if path is not None and path.is_file() and (shots_path is None or shots_path.is_file()):
            total = self.question_file(node, path, shots_path, values)
        if total is not None and values.get("start", 0) >= total:
            self.problems.add(
                node.entries["questions"],
                f"start {values['start']} must be smaller than the {total:,} questions that there are",
            )
        return Declared(Task(name=name, **values), judging, total)

    def shots(self, name: str, node: Marked, values: dict[str, Any]) -> None:
        """How worked examples are chosen, and how many."""
        style = styles()[values["style"]]
        from_questions = values["file"] is not None and "shots_file" not in node.entries
        by_harness = bool(style.examples) or not from_questions
        if values["fewshot"] is None:
            values["fewshot"] = "harness" if by_harness else "fixed"
        elif values["fewshot"] == "harness" and not by_harness:
            self.problems.add(
                node.entries["fewshot"], "lm-evaluation-harness draws worked examples from a `shots_file` of their own"
            )
        by_harness = values["fewshot"] == "harness"
        if values["shots"] is None:
            values["shots"] = style.shots if by_harness else 0
        if by_harness and style.examples and values["shots"] > len(style.examples):
            self.problems.add(node.entries["shots"], f"{values['style']} has {len(style.examples)} worked examples")

    def question_file(self, node: Marked, path: Path, shots_path: Path | None, values: Mapping[str, Any]) -> int | None:
        """Check what the files hold; how many questions are asked at most."""
        drawn_shots = values["shots"] if shots_path is None and values["fewshot"] == "fixed" else 0
        try:
            pool = self.pool(path, values["cluster"], asked=True)
            shots = self.pool(shots_path, None, asked=False) if shots_path is not None else ()
            asked, _ = questions.draw(pool, values["questions"], drawn_shots, values["seed"])
            if shots_path is not None and values["shots"] > len(shots):
                held = len(shots)
                self.problems.add(
                    node, f"{values['shots']} shots are needed from {shots_path.name}, which holds {held:,}"
                )
            return len(asked)
        except BudgetError as error:
            self.problems.extend(error.problems)
        except ValueError as error:
            self.problems.add(node.entries.get("questions", node), f"{error} ({path.name})")
        return None

    def pool(self, path: Path, cluster: str | None, *, asked: bool) -> Sequence[questions.Question]:
        """The questions of a file, read once. Raises BudgetError."""
        key = path, cluster, asked
        if key not in self.pools:
            self.pools[key] = questions.read_file(path, cluster, asked=asked)
        return self.pools[key]

    def harness(self, name: str, node: Marked) -> Declared:
        """A task of lm-evaluation-harness."""
        if isinstance(node.entries.get("questions", node).value, dict) and "questions" in node.entries:
            why = "the harness asks all questions of a task at once: `questions` must be a whole number here"
            self.problems.add(node.entries["questions"], why)
            node = replace(node, value={k: v for k, v in node.entries.items() if k != "questions"})
        values, judging = self.fields(name, node, keys.HARNESS)
        if values["limit"] and values["questions"]:
            self.problems.add(
                node.entries["questions"], "`limit` takes the first, `questions` draws at random: give one of them"
            )
        named = str(values["harness"])
        if harness_file.is_file(named):
            path = self.find(node, "harness")
            values["harness"] = str(path or named)
            if path is not None and path.is_file():
                self.task_file(node, path)
        elif not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", named):
            self.problems.add(
                node.entries["harness"], f"harness {named!r} is neither a task's name nor the path of a YAML file"
            )
        task = Task(name=name, file=None, max_new_tokens=0, extract="strict", **values)
        return Declared(task, judging, task.limit or task.questions)

    def task_file(self, node: Marked, path: Path) -> None:
        """What a task file of the harness reaches for: that must lie where a budget may reach, too."""
        try:
            self.problems.extend(harness_file.described(path, self.find).problems)
        except (OSError, files.TooLarge) as error:
            self.problems.add(node.entries["harness"], f"harness: the file cannot be read: {error}")
