"""The texts of a task's questions, from the files that they were drawn from: a report holds their numbers alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.tasks import questions
from pytest_quantbudget.tasks.questions import Question

MAX_BYTES = 200_000_000
SHIPPED = questions.resolve(questions.BUILTIN, Path())


@dataclass(frozen=True)
class Asked:
    """The questions of a task by number; none where `why` says why their texts are not at hand."""

    by_number: dict[int, Question] = field(default_factory=dict)
    why: str = ""


def asked(task: Task, results: list[TaskResult]) -> Asked:
    """The questions that these results answer.

    A report may come from anywhere, and names any file it likes: only one with the hash that the report has of it is
    shown, so that nothing gets onto a page that the report's author did not have.
    """
    if task.harness is not None:
        return Asked(why="lm-evaluation-harness asked them, and their texts are not kept")
    if task.file is None:
        return Asked(why="they come from the hub, and a report holds their numbers alone")
    states = {(result.source or "").split("+")[0] for result in results} - {""}
    if not states:
        return Asked(why="the report does not say which state of their file was asked")
    file = Path(task.file)
    # The package's own questions lie elsewhere on each machine.
    for path in (file, *([SHIPPED] if file.name == SHIPPED.name else [])):
        try:
            state = f"sha256:{hashlib.sha256(files.read(path, MAX_BYTES)).hexdigest()}"
            if states == {state}:
                return Asked({question.index: question for question in questions.read_file(path)})
        except (OSError, ValueError, BudgetError):
            continue
    return Asked(why=f"{file.name}, as it was when it was asked, is not on the machine that made this page")
