"""The files that a run is going to write, as its options name them: what is wrong with one is said before measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_quantbudget.core.problems import display_path


def file(option: str, named: str | None) -> Path | None:
    """The file that an option names, which the run will write. Raises ValueError for a directory."""
    path = Path(named).absolute() if named else None
    if path is not None and path.is_dir():
        raise ValueError(f"{option}: {display_path(path)} is a directory")
    return path


def page(named: str | None, others: Mapping[str, Sequence[str | None]]) -> Path | None:
    """The file that --quant-html names. Raises ValueError, also where what the page is made with is not installed."""
    path = apart("--quant-html", named, others)
    if path is not None:
        from pytest_quantbudget.report.page import render

        try:
            render.check_installed()
        except ImportError as error:
            raise ValueError(f"--quant-html: {error}") from None
    return path


def apart(option: str, named: str | None, others: Mapping[str, Sequence[str | None]]) -> Path | None:
    """The file that an option names, which is none of those of other options. Raises ValueError."""
    path = file(option, named)
    for other, names in others.items():
        taken = [Path(name).absolute().resolve() for name in names if name]
        if path is not None and path.resolve() in taken:
            raise ValueError(f"{option} and {other} name the same file")
    return path
