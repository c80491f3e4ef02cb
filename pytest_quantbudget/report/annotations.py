"""What GitHub shows beside the lines of a pull request: a workflow command for each limit that failed its test.

The form of a command, and what is escaped in it, are those of the toolkit's `core.error`
(https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, UNDECIDED
from pytest_quantbudget.report.document import Report
from pytest_quantbudget.report.ranked import Ranked, ranked

# GitHub shows so many errors, and as many warnings, of one step.
MOST = 10
LONGEST = 1000
ANOMALOUS = "anomalous"
ERROR, WARNING = "error", "warning"
ESCAPED = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
ESCAPED_IN_PROPERTIES = (*ESCAPED, (":", "%3A"), (",", "%2C"))


@dataclass(frozen=True)
class Place:
    """A line of a file, whose path is relative to the repository."""

    file: str
    line: int


def lines(report: Report, places: Mapping[str, Place]) -> Iterator[str]:
    """An error for each limit that is over, failed or was not run; a warning for what passed undecided or anomalous.

    `places` are those of the limits, by the ids of their tests; one that has none is said without. Where there are more
    than GitHub shows, the last says how many.
    """
    limits = [each for budget in report.budgets for each in ranked(budget)]
    errors = [each for each in limits if each.state in (OVER, FAILED, NOT_RUN)]
    yield from _of_one_kind(ERROR, errors, places, "are not within")
    doubtful = [each for each in limits if each.passed and (each.state == UNDECIDED or each.limit.verdict.anomalous)]
    yield from _of_one_kind(WARNING, doubtful, places, "passed with a doubt")


def _of_one_kind(kind: str, limits: Sequence[Ranked], places: Mapping[str, Place], what: str) -> Iterator[str]:
    shown = len(limits) if len(limits) <= MOST else MOST - 1
    for each in limits[:shown]:
        state = ANOMALOUS if each.limit.verdict.anomalous else each.state
        where = f" on {each.limit.machine}" if each.limit.machine else ""
        title = f"{each.method} {each.limit.name} {state}{where}"
        yield _command(kind, title, each.limit.verdict.message, places.get(each.limit.id))
    more = len(limits) - shown
    if more:
        names = ", ".join(f"{each.method} {each.limit.name}" for each in limits[shown:][:LONGEST])
        yield _command(kind, f"{more:,} more limits {what}", names, None)


def _command(kind: str, title: str, message: str, place: Place | None) -> str:
    properties = {"file": safe(place.file, LONGEST), "line": str(place.line)} if place is not None else {}
    properties["title"] = safe(title, LONGEST)
    told = ",".join(f"{name}={_escaped(value, ESCAPED_IN_PROPERTIES)}" for name, value in properties.items())
    return f"::{kind} {told}::{_escaped(safe(message, LONGEST, lines=True), ESCAPED)}"


def _escaped(text: str, codes: Sequence[tuple[str, str]]) -> str:
    for character, instead in codes:
        text = text.replace(character, instead)
    return text


def place(path: Path, line: int, workspace: Path | None) -> Place | None:
    """Where GitHub shows something about a line of a file; None for a file that is in no repository.

    Paths are relative to the repository that is checked out in the job's `workspace`, or in a folder of it: the
    outermost one, for a pull request knows nothing of a submodule's lines.
    """
    file = path.resolve()
    folders = [folder for folder in file.parents if workspace is None or folder.is_relative_to(workspace.resolve())]
    roots = [folder for folder in folders if (folder / ".git").exists()]
    if not roots:
        return None
    root = roots[0] if workspace is None else roots[-1]
    return Place(file.relative_to(root).as_posix(), line)
