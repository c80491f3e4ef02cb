"""Reads `baseline`: the method of the file, or of a stored report, that the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_quantbudget.budget import keys
from pytest_quantbudget.budget.paths import Paths
from pytest_quantbudget.core.budget import StoredBaseline
from pytest_quantbudget.core.fields import TEXT
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.core.request import Part

Found = tuple[str | None, StoredBaseline | None]


def read_baseline(
    node: Marked | None, names: Sequence[str], own: Path, parts: Sequence[Part], paths: Paths, problems: Problems
) -> Found:
    """The name of the baseline, and what is stored of it where it is no method of the file.

    `names` are the file's methods, and `parts` what it measures; `own` is the file. Mistakes are added to `problems`.
    """
    if node is None:
        return None, None
    if isinstance(node.value, dict):
        return _stored(node, own, parts, paths, problems)
    try:
        name = str(TEXT.read(node.plain))
    except ValueError as error:
        problems.add(node, f"baseline: {error}; it is a method of this file, or of a report: {{report: FILE}}")
        return None, None
    if name not in names:
        report = "; a report's would be `{report: FILE}`" if name.endswith(".json") else nearest(name, names)
        problems.add(node, f"the baseline {name!r} is not among the methods{report}")
        return None, None
    return name, None


def _stored(node: Marked, own: Path, parts: Sequence[Part], paths: Paths, problems: Problems) -> Found:
    """The baseline in a stored report."""
    from pytest_quantbudget.report import baseline

    values = keys.read_fields(node, keys.BASELINE, "baseline", problems)
    if "report" not in node.entries:
        problems.add(node, "baseline needs the `report` of an earlier run (a file that --quant-report wrote)")
        return None, None
    path = paths.file(node, "report")
    if path is None:
        return None, None
    try:
        found = baseline.read(path, own.name, values["budget"], values["method"], parts)
    except baseline.Unnamed as error:
        problems.add(node.entries.get(error.key, node), f"baseline: {error}")
        return None, None
    except (ValueError, OSError, ArithmeticError, RecursionError) as error:
        why = f"{path.name} cannot be read: {error.strerror or error}" if isinstance(error, OSError) else error
        problems.add(node.entries["report"], f"report: {why}")
        return None, None
    return found.name, found
