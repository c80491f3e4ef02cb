"""What other packages add, by their entry points: kinds of methods, engines, metrics, sets of questions.

A group is `pytest_quantbudget.` and one of `GROUPS`; the name of an entry point is the name that budgets use.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.core.safetext import safe

METHODS, ENGINES, METRICS, TASKS = GROUPS = ("methods", "engines", "metrics", "tasks")
PREFIX = "pytest_quantbudget."


@dataclass(frozen=True)
class Added:
    """What a group gives, by name, and why some of it cannot be used."""

    objects: Mapping[str, Any] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, name: str) -> str:
        """Why what has this name cannot be used, as the end of a sentence; nothing where there is no such thing."""
        return f"; {self.unusable[name]}" if name in self.unusable else ""


@functools.cache
def added(group: str, kind: type, own: Collection[str]) -> Added:
    """What the installed packages add to a group: objects of a `kind` that are named as their entry point is.

    Names that this package has itself (`own`, a hashable collection) stay its own. A package whose objects cannot be
    imported costs only those budgets that name them.
    """
    objects: dict[str, Any] = {}
    unusable: dict[str, str] = {}
    for entry in importlib.metadata.entry_points(group=PREFIX + group):
        package = entry.dist.name if entry.dist is not None else entry.module
        if entry.name in own:
            unusable[entry.name] = f"that of {package} is not used, because this package has its own"
        elif entry.name in objects:
            unusable[entry.name] = f"that of {package} is not used, because another package has one, too"
        else:
            try:
                objects[entry.name] = _loaded(entry, kind)
            except Exception as error:  # noqa: BLE001  # whatever the import of another package raises
                words = safe(f"{type(error).__name__}: {error}", 300)
                unusable[entry.name] = f"that of {package} cannot be used: {words}"
    return Added(objects, unusable)


@functools.cache
def packages() -> dict[str, str]:
    """The versions of all packages that add something, by name: figures may depend on them."""
    points = (entry for group in GROUPS for entry in importlib.metadata.entry_points(group=PREFIX + group))
    return {entry.dist.name: entry.dist.version for entry in points if entry.dist is not None}


def _loaded(entry: importlib.metadata.EntryPoint, kind: type) -> Any:
    found: Any = entry.load()
    if not isinstance(found, kind):
        raise TypeError(f"{entry.value} is of type {type(found).__name__}, and no {kind.__name__}")
    name = getattr(found, "name", None)
    if name != entry.name:
        raise ValueError(f"{entry.value} is called {name!r}, and its entry point {entry.name!r}")
    return found
