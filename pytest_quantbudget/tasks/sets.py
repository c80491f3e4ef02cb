"""Sets of questions that other packages bring, with their way of asking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core import entry_points
from pytest_quantbudget.tasks.questions import HUB_SETS
from pytest_quantbudget.tasks.styles import STYLES, Style


@dataclass(frozen=True)
class TaskSet:
    """Questions under the name of a task: a `file` of JSON lines with `question` and `answer`, and how they are put.

    Without a `style` of their own they are asked as GSM8K's.
    """

    name: str
    file: Path
    style: Style | None = None


def others() -> entry_points.Added:
    """The sets of other packages: an entry point of `pytest_quantbudget.tasks` names a TaskSet."""
    return entry_points.added(entry_points.TASKS, TaskSet, tuple(HUB_SETS))


def file_of(name: str) -> Path | None:
    """The questions of a task of this name; None where no other package has one."""
    found: TaskSet | None = others().objects.get(name)
    return found.file if found is not None else None


def styles() -> Mapping[str, Style]:
    """All ways of asking, by name."""
    return {**STYLES, **{name: one.style for name, one in others().objects.items() if one.style is not None}}
