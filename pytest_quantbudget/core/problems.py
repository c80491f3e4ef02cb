"""Mistakes in files, with file and line, collected so that one run shows all of them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pytest_quantbudget.core import files
from pytest_quantbudget.core.safetext import printable, width


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; a byte-order mark is skipped.

    Raises BudgetError where the file cannot be read as text.
    """
    try:
        raw = files.read(path, MAX_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BudgetError(Problem(path, 0, f"cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        raise BudgetError(Problem(path, raw[: error.start].count(b"\n") + 1, "is not UTF-8 text")) from None
    except files.TooLarge as error:
        raise BudgetError(Problem(path, 0, f"is {error}; a file of texts has at most {MAX_BYTES:,}")) from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut inside texts, at U+2028
        if line.strip():
            yield number, line


MAX_BYTES = 200_000_000  # of a file of texts, a line each
MAX_NAMES = 500  # that a word is compared with


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `word`, or all of them where none is close.

    Nothing where there are so many that comparing takes long.
    """
    names = [name for name in known if name != word]
    if len(names) > MAX_NAMES:
        return ""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    folded = [name for name in names if name.lower() == word.lower()]
    if folded or close:
        return f"; did you mean {(folded or close)[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


Columns = tuple[int, int]  # of a line: the first character, and the one after the last
ANYWHERE: Columns = (0, 0)
MAX_PROBLEMS = 50
MAX_MESSAGE = 1000
MAX_QUOTED = 10_000_000  # bytes of a file from which a line is quoted
MAX_LINE = 200  # characters of it that are shown
MAX_MARKED = 96  # of one with a mark under it, which is only there where the line is not wrapped
MORE = "\N{HORIZONTAL ELLIPSIS}"
COMMENT = re.compile(r"(^|\s)#.*")
BEFORE = 40  # of those, in front of what is marked in a longer line


class Place(Protocol):
    """Something that stands in a line of a file."""

    @property
    def file(self) -> Path:
        """The file."""

    @property
    def line(self) -> int:
        """Its line, from 1; 0 where it is the file as a whole."""

    @property
    def columns(self) -> Columns:
        """Where in the line; ANYWHERE where that is not known."""


@dataclass(frozen=True)
class Marked:
    """A YAML value with the file, line and columns it was written in: of a mapping's entry, those of key and value.

    A value that ends on another line has the columns of its key, or none.
    """

    value: object
    file: Path
    line: int
    columns: Columns = ANYWHERE

    @property
    def entries(self) -> Mapping[str, Marked]:
        """The entries of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Marked, ...]:
        """The items of a list; empty for anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def plain(self) -> object:
        """The value without positions, as `yaml.safe_load` would give it."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain for node in self.value]
        return self.value


@dataclass(frozen=True)
class Problem:
    """One mistake in one place; `line` is 0 where it is the file as a whole, which is shown as its first line."""

    file: Path
    line: int
    message: str
    columns: Columns = ANYWHERE

    def __str__(self) -> str:
        """`FILE:LINE: message`, the user's own line under it."""
        whole = ":1" if os.path.isfile(self.file) else ""  # noqa: PTH113  # no error where a folder may not be entered
        where = f"{display_path(self.file)}:{self.line}" if self.line else f"{display_path(self.file)}{whole}"
        message = printable(self.message)
        if len(message) > MAX_MESSAGE:  # it quotes what the user wrote, and what is wrong comes at the end
            message = f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"
        return "\n    ".join([f"{where}: {message}", *self.excerpt])

    @property
    def excerpt(self) -> list[str]:
        """The user's own line, and `^^^` under the place in it where more stands on it; nothing where there is none."""
        line = _line_of(self.file, self.line)
        indent = len(line) - len(line.lstrip())
        start, end = max(self.columns[0], indent), min(self.columns[1], len(line.rstrip()))
        others = line[:start] + COMMENT.sub("", line[end:])
        if start >= end or not any(map(str.isalnum, others)):
            return [printable(line.strip()[:MAX_LINE])] if line.strip() else []
        first = indent if end - indent < MAX_MARKED else max(indent, start - BEFORE)
        shown = printable(line[first:].rstrip())
        before, marked = shown[: start - first], shown[start - first : min(end - first, MAX_MARKED)]
        if first > indent:
            shown = MORE + shown[1:]
        if len(shown) > MAX_MARKED:
            shown = shown[: MAX_MARKED - 1] + MORE
        return [shown, " " * width(before) + "^" * width(marked)]


def at(place: Place, message: str) -> Problem:
    """A mistake at a place."""
    return Problem(place.file, place.line, message, place.columns)


class BudgetError(Exception):
    """A budget cannot be used. `problems` holds every mistake that was found, in the order of the file."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass
class Problems:
    """Collects mistakes, so that one run shows all of them; of very many, the first."""

    found: list[Problem] = field(default_factory=list)

    def add(self, place: Place, message: str) -> None:
        """Note a mistake at a place. Raises BudgetError where it is one too many."""
        self.extend([at(place, message)])

    def extend(self, problems: Sequence[Problem]) -> None:
        """Note mistakes. Raises BudgetError where they are too many."""
        self.found.extend(problems)
        if len(self.found) >= MAX_PROBLEMS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise BudgetError if anything was found."""
        if self.found:
            raise BudgetError(*sorted(dict.fromkeys(self.found), key=lambda p: (str(p.file), p.line)))


def display_path(path: Path) -> str:
    """The path as a user would type it from here, fit to be printed."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        relative = os.pardir
    return printable(str(path) if relative.startswith(os.pardir) else relative)


def _line_of(file: Path, line: int) -> str:
    if not line:
        return ""
    try:
        lines = files.read(file, MAX_QUOTED).decode("utf-8").splitlines()
    except (OSError, files.TooLarge, UnicodeDecodeError):
        return ""
    return lines[line - 1] if line <= len(lines) else ""
