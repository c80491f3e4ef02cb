"""Which files a `--quant-budget` names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_quantbudget.core import problems
from pytest_quantbudget.core.files import named_folder, path_from
from pytest_quantbudget.core.problems import BudgetError, Problem

SUFFIXES = (".yaml", ".yml")


def find_budgets(name: str, base: Path) -> list[Path]:
    """The files that one `--quant-budget` names: a file, a directory (searched through) or a glob.

    Raises BudgetError where there are none.
    """
    path = path_from(base, name)
    if path.is_file():
        return [path.resolve()]
    if path.is_dir():
        found = _files_in(path, (p for p in path.rglob("*") if p.suffix in SUFFIXES))
        if not found:
            raise BudgetError(Problem(path, 0, "this directory holds no budget (*.yaml, *.yml)"))
        return found
    anchor = Path(path.anchor)
    if any(c in name for c in "*?["):
        found = _files_in(named_folder(base, name), anchor.glob(str(path.relative_to(anchor))))
        if not found:
            raise BudgetError(Problem(base / name, 0, "this pattern matches no file"))
        return found
    names = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES or p.is_dir()]
    raise BudgetError(Problem(base / name, 0, f"there is no such budget{problems.nearest(path.name, names)}"))


def _files_in(folder: Path, found: Iterable[Path]) -> list[Path]:
    """The files among `found`, without links that lead out of the folder: nobody has named what they lead to."""
    real = folder.resolve()
    return sorted(p.resolve() for p in found if p.resolve().is_relative_to(real) and p.is_file())
