"""Where a run's Markdown goes, and what GitHub Actions shows beside the lines of its budgets."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.core.problems import display_path
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import markdown
from pytest_quantbudget.report.annotations import lines, place
from pytest_quantbudget.report.document import Report

STEP = "GITHUB_STEP_SUMMARY"
STEP_NAME = "the step's summary"


@dataclass(frozen=True)
class Target:
    """A file that gets the Markdown, the name that users know it by, and whether they have asked for it."""

    path: Path
    name: str
    asked: bool
    write: Callable[[Report], bool]


def targets(options: Options, environ: Mapping[str, str]) -> Iterator[Target]:
    """What --quant-summary names, and the summary of the step of GitHub Actions that this run is part of."""
    named = environ.get(STEP) if options.for_github else None
    step = Path(named).absolute() if named else None
    file = options.summary
    if file is not None and file != step:
        yield Target(file, display_path(file), True, lambda report: _replace(file, report))
    if step is not None:
        yield Target(step, STEP_NAME, file == step, lambda report: _append(step, report))


def _replace(path: Path, report: Report) -> bool:
    text = markdown.text(report, markdown.COMMENT).encode()
    if path.exists() and not path.is_file():
        # A pipe, or /dev/stdout: it stays what it is.
        with path.open("ab") as file:
            file.write(text)
    else:
        files.write(path, text)
    return True


def _append(path: Path, report: Report) -> bool:
    """Add to the summary, which other commands of the step write as well. Raises OSError, also where it is full."""
    size = path.stat().st_size if path.exists() else 0
    before = "\n\n" if size else ""
    text = markdown.text(report, markdown.STEP - size - len(before))
    if not text:
        most, there = format_size(markdown.STEP), format_size(size)
        raise OSError(errno.EFBIG, f"GitHub shows {most} of a step, and {there} are there already")
    with path.open("ab") as file:
        file.write(f"{before}{text}".encode())
    return True


def commands(options: Options, session: Session, report: Report, environ: Mapping[str, str]) -> Iterator[str]:
    """The lines that make GitHub Actions annotate the budgets' lines; none elsewhere."""
    if not options.for_github or environ.get("GITHUB_ACTIONS") != "true":
        return
    workspace = Path(environ["GITHUB_WORKSPACE"]) if environ.get("GITHUB_WORKSPACE") else None
    found = {id_: place(*where, workspace) for id_, where in session.places().items()}
    yield from lines(report, {id_: where for id_, where in found.items() if where is not None})
