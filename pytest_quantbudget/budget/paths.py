"""The models and files that a budget names: where they lie, and which of them may not be read."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from pytest_quantbudget.core import fields
from pytest_quantbudget.core.files import BUILTIN_DIR, Roots, path_from
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.tasks import questions

NEARLY = 0.8  # so alike are names of which one may be the other misspelt
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")


def _misspelt(folder: Path) -> str | None:
    """The name of a model's directory beside one that is not there, if it is nearly the same."""
    try:
        names = [path.name for path in folder.parent.iterdir() if (path / "config.json").is_file()]
    except OSError:
        return None
    return next(iter(difflib.get_close_matches(folder.name, names, n=1, cutoff=NEARLY)), None)


class Paths:
    """Looks up what the keys of a budget name, and notes what cannot be used as problems.

    Where measuring was done `elsewhere`, models and files that are not on this machine are no mistake.
    """

    def __init__(self, roots: Roots, problems: Problems, *, elsewhere: bool) -> None:
        self.roots, self.problems, self.elsewhere = roots, problems, elsewhere

    def model(self, node: Marked, key: str) -> str | None:
        """The hub id or the absolute directory that a key names; None where it names none, also by mistake."""
        name, entry = self._text(node, key), node.entries.get(key)
        if name is None or entry is None:
            return None
        if name == questions.BUILTIN:
            return str(BUILTIN_DIR)
        hub_id = HUB_ID.fullmatch(name)
        beside = entry.file.resolve().parent
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
        if hub_id:
            near = _misspelt(folder) if "revision" not in node.entries and not self.elsewhere else None
            if near is not None:
                why = f"there is no directory {name!r}; did you mean {near!r}? (with a `revision` it is the hub's)"
                self.problems.add(entry, f"{key}: {why}")
            return name
        if not self.elsewhere:
            self.problems.add(entry, f"{key} {name!r} is neither a directory nor a hub id such as Qwen/Qwen3-8B")
        return str(folder.resolve())

    def file(self, node: Marked, key: str) -> Path | None:
        """The file that a key names; None where it names none, or none that may be read."""
        name, entry = self._text(node, key), node.entries.get(key)
        if name is None or entry is None:
            return None
        beside = entry.file.resolve().parent
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

    def _text(self, node: Marked, key: str) -> str | None:
        """The text of a key; None for anything else, which is a mistake that reading the keys has noted."""
        entry = node.entries.get(key)
        try:
            return None if entry is None else str(fields.TEXT.read(entry.value))
        except ValueError:
            return None
