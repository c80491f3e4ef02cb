"""Columns of text side by side: how wide they are on a terminal, and which stay where there is little room."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_quantbudget.core.safetext import width

LOG_COLUMNS = 100  # where there is no terminal
GAP = "  "
SHORT_HEAD = 12
MORE = "\N{HORIZONTAL ELLIPSIS}"


def room(*, on_terminal: bool) -> int:
    """How many columns there are: the terminal's, or those of the environment's COLUMNS."""
    known = on_terminal or os.environ.get("COLUMNS")
    return shutil.get_terminal_size((LOG_COLUMNS, 1)).columns if known else LOG_COLUMNS


@dataclass(frozen=True)
class Cells:
    """A column: its head, a cell a row, and how long it stays where room is short; None for as long as there is any."""

    head: str
    cells: Sequence[str]
    stays: int | None = None

    @property
    def width(self) -> int:
        """Of its widest cell, in columns of a terminal."""
        return max(map(width, (self.head, *self.cells)))


def clipped(text: str, room: int) -> str:
    """The text, or as much of it as there is room for."""
    if width(text) <= room:
        return text
    kept = text
    while kept and width(kept) >= room:
        kept = kept[:-1]
    return kept + MORE


def fit(columns: Sequence[Cells], room: float) -> tuple[list[Cells], list[Cells]]:
    """The columns that stay in so many columns of a terminal, and those that are left out.

    First long heads are clipped. Then the column goes that stays the shortest, of equals the last.
    """
    kept = list(columns)
    gone: list[Cells] = []
    if total(kept) <= room:
        return kept, gone
    kept = [replace(c, head=clipped(c.head, max(SHORT_HEAD, *map(width, c.cells), 0))) for c in kept]
    while total(kept) > room:
        going = [column for column in reversed(kept) if column.stays is not None]
        if not going:
            break
        first = min(going, key=lambda column: column.stays or 0)
        kept.remove(first)
        gone.append(first)
    return kept, gone


def total(columns: Sequence[Cells]) -> int:
    """The width of all of them side by side."""
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def rows(columns: Sequence[Cells]) -> Iterator[str]:
    """The head line, then a line a row; the first and the last column stand at the left, the others at the right."""
    for line in zip(*((column.head, *column.cells) for column in columns), strict=True):
        cells = []
        for i, (cell, column) in enumerate(zip(line, columns, strict=True)):
            space = " " * (column.width - width(cell))
            cells.append(cell + space if i in (0, len(columns) - 1) else space + cell)
        yield GAP.join(cells).rstrip()


def wrapped(text: str, room: int) -> list[str]:
    """The text in lines of so many columns, cut between words, all but the first indented."""
    if width(text) <= room:
        return [text]
    # A wide character counts as much as two letters.
    lines = textwrap.wrap(text, room * len(text) // width(text), subsequent_indent=GAP, break_on_hyphens=False)
    return lines or [text]
