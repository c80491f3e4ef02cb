"""What there is in the interpreter that runs this: its Python, modules, and versions of libraries."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from pytest_quantbudget.core import codec, versions


@dataclass(frozen=True)
class Wanted:
    """What is asked for: modules, by their top names, and the versions of libraries."""

    modules: tuple[str, ...]
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """An interpreter's Python, those of the wanted modules that are there, versions, and where modules are looked for.

    `python` is its version, with the implementation in front where that is not CPython. `builds` are as in
    `versions.builds`.
    """

    python: str
    modules: tuple[str, ...]
    libraries: dict[str, str]
    folders: tuple[str, ...]
    builds: dict[str, str] = field(default_factory=dict)


def main(wanted: Wanted, tell: Connection, log: Connection) -> None:
    """Tell what was found."""
    tell.send_bytes(json.dumps({"found": codec.to_builtins(look(wanted)), "done": True}).encode())


def look(wanted: Wanted) -> Found:
    """What there is in this interpreter. Imports none of the modules."""
    return Found(
        python_version(),
        tuple(name for name in wanted.modules if versions.is_there(name)),
        versions.installed(wanted.libraries),
        tuple(folder for folder in sys.path if folder),
        versions.builds(),
    )


def python_version() -> str:
    """This Python's version, with the implementation in front where that is not CPython."""
    name = platform.python_implementation()
    return platform.python_version() if name == "CPython" else f"{name} {platform.python_version()}"
