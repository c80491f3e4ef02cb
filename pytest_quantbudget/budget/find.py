"""Finds the budget files of a run, and reads each of them once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.budget.yaml import MAX_BYTES
from pytest_quantbudget.core import files, problems
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.files import EVERYWHERE, Roots, named_folder, path_from
from pytest_quantbudget.core.problems import BudgetError, Problem

SUFFIXES = (".yaml", ".yml")
SURROGATE = re.compile("[\ud800-\udfff]")  # what Python makes of a byte in a name that is not UTF-8


@dataclass
class Budgets:
    """The budgets of a run, by resolved path.

    `roots` are the folders that budgets may refer to; `named` adds those of the files that it finds. `load_format`
    replaces that of the files. Where measuring was done `elsewhere`, models and files need not be on this machine.
    `texts` are the files' bytes as they were read. `odd` are those that pytest cannot be given as arguments, by the
    names that their tests' ids begin with.
    """

    roots: Roots = EVERYWHERE
    load_format: str | None = None
    elsewhere: bool = False
    loaded: dict[Path, Budget] = field(default_factory=dict)
    texts: dict[Path, bytes] = field(default_factory=dict)
    odd: dict[str, Path] = field(default_factory=dict)

    def named(self, name: str, base: Path) -> list[Path]:
        """The files that the command line or the ini file names, whose folder they may refer to. Raises BudgetError."""
        self.roots = self.roots.with_folder(named_folder(base, name))
        return find_budgets(name, base)

    def load(self, path: Path) -> Budget:
        """The budget in a file, read once. Raises BudgetError."""
        if path not in self.loaded:
            path = path.resolve()
            if SURROGATE.search(str(path)):
                raise BudgetError(Problem(path, 0, f"its path is not UTF-8 ({escaped(str(path))}); rename it"))
        if path not in self.loaded:
            self.loaded[path] = load_budget(path, self.roots, self.load_format, elsewhere=self.elsewhere)
            self.texts[path] = files.read(path, MAX_BYTES)
        return self.loaded[path]

    def check_id(self, argument: str) -> None:
        """Raise BudgetError, with the nearest right name, for an id `FILE::METHOD::LIMIT` that names nothing."""
        file, *parts = argument.split("::")
        path = Path(file)
        budget = self.load(path)
        names = [method.name for method in budget.methods]
        if parts and parts[0] not in names:
            raise BudgetError(Problem(path, 0, f"has no method {parts[0]!r}{problems.nearest(parts[0], names)}"))
        if len(parts) > 1:
            limits = [limit.name for limit in budget.method(parts[0]).limits]
            if parts[1] not in limits:
                near = problems.nearest(parts[1], limits)
                raise BudgetError(Problem(path, 0, f"{parts[0]} has no limit {parts[1]!r}{near}"))


def is_odd(path: str) -> bool:
    """Whether pytest would take a part of a path for something else, or show it as it is where it must not be."""
    return "[" in path or escaped(path) != path


def escaped(path: str) -> str:
    """A path as it is shown in tests' ids: without `::`, control characters, and what steers a CI runner."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path)
    return plain.replace("::", ":\\x3a").replace("##", "#\\x23")


def find_budgets(name: str, base: Path) -> list[Path]:
    """The files that one `--quant-budget` names: a file, a directory (searched recursively) or a glob.

    Raises BudgetError where there are none.
    """
    path = path_from(base, name)
    if path.is_file():
        return [path.resolve()]
    if path.is_dir():
        paths = _files_in(path, (p for p in path.rglob("*") if p.suffix in SUFFIXES))
        if not paths:
            raise BudgetError(Problem(path, 0, "this directory holds no budget (*.yaml, *.yml)"))
        return paths
    anchor = Path(path.anchor)
    if any(c in name for c in "*?["):
        paths = _files_in(named_folder(base, name), anchor.glob(str(path.relative_to(anchor))))
        if not paths:
            raise BudgetError(Problem(base / name, 0, "this pattern matches no file"))
        return paths
    names = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES or p.is_dir()]
    shipped = files.SHIPPED_BUDGETS / path.name
    if shipped.is_file():
        hint = f"; the package ships {shipped}, which `extends: {path.name}` in a file of your own builds on"
    else:
        hint = problems.nearest(path.name, names)
    raise BudgetError(Problem(base / name, 0, f"there is no such budget{hint}"))


def _files_in(folder: Path, candidates: Iterable[Path]) -> list[Path]:
    """The files among `candidates`, without links that lead out of the folder: their targets were not named."""
    real = folder.resolve()
    return sorted(path for path in map(Path.resolve, candidates) if path.is_relative_to(real) and path.is_file())
