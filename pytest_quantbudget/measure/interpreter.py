"""What the interpreter of a method has: asked there once a run, and again when something is installed there."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from pytest_quantbudget.core import codec, versions
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.measure import elsewhere, probe, process
from pytest_quantbudget.measure.probe import Found, Wanted
from pytest_quantbudget.models import engines, methods

LIMIT_S = 60.0  # for an interpreter on a slow disk to say what it has
OLDEST = ".".join(map(str, elsewhere.OLDEST))


class Unusable(Exception):
    """An interpreter that can measure nothing; the message says why. `missing` where it is only not there."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass
class Interpreters:
    """The interpreters of a run, each asked once."""

    limit_s: float = LIMIT_S
    _known: dict[str, tuple[tuple[float, ...], Found]] = field(default_factory=dict)
    _broken: dict[str, Unusable] = field(default_factory=dict)

    def find(self, python: str | None, deadline: float = math.inf) -> Found:
        """What there is in an interpreter; None for this one. Raises Unusable.

        It has to say so until the monotonic clock reads `deadline`.
        """
        if python is None:
            return here()
        check(python)
        if python in self._broken:
            # What hung once is not tried again.
            raise self._broken[python]
        state, found = self._known.get(python, ((), None))
        if found is None or state != _state(python, found):
            try:
                found = ask(python, min(self.limit_s, max(0.0, deadline - time.monotonic())))
            except Unusable as error:
                self._broken[python] = error
                raise
            self._known[python] = (_state(python, found), found)
        return found


def check(python: str) -> None:
    """Raise Unusable where no program stands at a path; starts nothing."""
    path = Path(python)
    if not os.path.lexists(path):
        raise Unusable(f"the interpreter {python} does not exist", missing=True)
    if not path.exists():
        raise Unusable(f"the interpreter {python} is a link to {path.readlink()}, which does not exist", missing=True)
    if path.is_dir():
        raise Unusable(f"the interpreter {python} is a directory{_hint(path)}")
    if not os.access(path, os.X_OK):
        raise Unusable(f"the interpreter {python} is not executable")


def _hint(folder: Path) -> str:
    """The interpreter of an environment that was named instead."""
    inner = [path for path in (folder / "bin" / "python", folder / "python") if path.is_file()]
    return f"; did you mean {inner[0]}?" if inner else ""


def here() -> Found:
    """What there is in this interpreter."""
    return probe.look(_wanted())


def outdated(subject: Subject, found: Found) -> str | None:
    """What of another interpreter's libraries is too old or too new for this package, with the command, or None."""
    if engines.measured_in(subject) is None:
        return None
    wanted = _requirements()
    unfit = {}
    for name in engines.imported(subject):
        asked = wanted.get(canonicalize_name(versions.DISTRIBUTIONS.get(name, name)))
        if asked is not None and name in found.libraries and not _fits(found.libraries[name], asked.specifier):
            unfit[f"{asked.name} {found.libraries[name]}"] = f"'{asked.name}{asked.specifier}'"
    if not unfit:
        return None
    command = f"{shlex.quote(str(subject.python))} -m pip install {' '.join(unfit.values())}"
    return f"{subject.method} finds {', '.join(unfit)} in {subject.python}: {command}"


def _fits(version: str, asked: SpecifierSet) -> bool:
    try:
        return asked.contains(Version(version), prereleases=True)
    except InvalidVersion:
        # Of a distribution that is half removed, for example.
        return False


@functools.cache
def _requirements() -> dict[str, Requirement]:
    """What this package says of the versions that it needs, by distribution; nothing where it was not installed."""
    try:
        lines = importlib.metadata.requires("pytest-quantbudget") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {canonicalize_name(asked.name): asked for asked in map(Requirement, lines) if asked.specifier}


def _wanted() -> Wanted:
    packages = {name for spec in map(engines.spec, engines.names()) for name in (*spec.packages, *spec.serving)}
    libraries = dict.fromkeys((*methods.library_names(), *engines.libraries()))
    return Wanted(tuple(sorted({*packages, *methods.packages(), methods.PEFT})), tuple(libraries))


def _state(python: str, found: Found) -> tuple[float, ...]:
    """When the interpreter, or a folder of its modules, was last changed: what is installed there has changed then."""
    return tuple(map(_changed, (python, *found.folders)))


def _changed(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except (OSError, ValueError):
        # What an interpreter told need be no path.
        return 0.0


def ask(python: str, limit_s: float = LIMIT_S) -> Found:
    """What there is in another interpreter, found by running it once. Raises Unusable."""
    heard: dict[str, Any] = {}

    def hear(message: Mapping[str, Any]) -> None:
        heard.update(message)

    ends = time.monotonic() + limit_s
    try:
        outcome = process.run(
            elsewhere.Context(python), probe.main, (_wanted(),), hear, name="quantbudget-probe", until=ends
        )
        if "found" in heard:
            return codec.from_builtins(Found, heard["found"])
    except process.NotStarted as error:
        raise Unusable(f"the interpreter {python} cannot be started: {error}") from None
    except (ValueError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise Unusable(f"{python} is no Python interpreter: it sent what cannot be read ({error})") from None
    if "too_old" in heard:
        raise Unusable(f"{python} is Python {safe(str(heard['too_old']), 20)}; measuring needs {OLDEST} or later")
    if "unreadable" in heard:
        raise Unusable(
            f"{python} cannot read this package in {elsewhere.PACKAGE}: {safe(str(heard['unreadable']), 200)}"
        )
    last = outcome.tail.splitlines()[-1:]
    said = f"; it printed {last[0]!r}" if last else " and printed nothing"
    if outcome.code is None:
        raise Unusable(f"the interpreter {python} did not say what it has within {format_time(limit_s)}{said}")
    raise Unusable(f"{python} did not run as a Python interpreter: it {outcome.death}{said}")
