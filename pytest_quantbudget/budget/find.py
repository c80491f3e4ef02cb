"""Finds the budget files of a run, and reads each of them once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.budget.yaml import MAX_BYTES, read_yaml
from pytest_quantbudget.core import files, problems
from pytest_quantbudget.core.budget import USE, Budget
from pytest_quantbudget.core.engines import NO_PERMISSIONS, Permissions
from pytest_quantbudget.core.files import EVERYWHERE, Roots, named_folder, path_from
from pytest_quantbudget.core.problems import BudgetError, Problem

SUFFIXES = (".yaml", ".yml")
NEARLY = 0.8  # so alike is a misspelt `methods`, whose file must not be passed over in silence
METHODS_LINE = re.compile(rb"^[\"']?methods[\"']?[ \t]*:", re.MULTILINE)
SURROGATE = re.compile("[\ud800-\udfff]")  # what Python makes of a byte in a name that is not UTF-8


@dataclass
class Budgets:
    """The budgets of a run, by resolved path.

    `roots` are the folders that budgets may refer to; `named` adds those of the files that it finds. `load_format`
    replaces that of the files; `permissions` say what they may start and reach. Where measuring was done `elsewhere`,
    models and files need not be on this machine. `texts` are the files' bytes as they were read. `odd` are those that
    pytest cannot be given as arguments, by the names that their tests' ids begin with.
    """

    roots: Roots = EVERYWHERE
    load_format: str | None = None
    elsewhere: bool = False
    permissions: Permissions = NO_PERMISSIONS
    loaded: dict[Path, Budget] = field(default_factory=dict)
    texts: dict[Path, bytes] = field(default_factory=dict)
    odd: dict[str, Path] = field(default_factory=dict)

    def named(self, name: str, base: Path) -> list[Path]:
        """The files that the command line or the ini file names, whose folder they may refer to. Raises BudgetError."""
        self.roots = self.roots.with_folder(named_folder(base, name))
        return find_budgets(name, base)

    def all_named(self, names: Iterable[str], base: Path) -> list[Path]:
        """The files of several names, each once. Raises BudgetError."""
        found: dict[Path, Path] = {}
        for path in (path for name in names for path in self.named(name, base)):
            found.setdefault(path.resolve(), path)
        return list(found.values())

    def load(self, path: Path) -> Budget:
        """The budget in a file, read once. Raises BudgetError."""
        if path not in self.loaded:
            named, path = as_named(path), path.resolve()
            if SURROGATE.search(f"{named}{path}"):
                raise BudgetError(Problem(named, 0, f"its path is not UTF-8 ({escaped(str(named))}); rename it"))
        if path not in self.loaded:
            self.loaded[path] = load_budget(
                named, self.roots, self.load_format, elsewhere=self.elsewhere, permissions=self.permissions
            )
            self.texts[path] = files.read(path, MAX_BYTES)
        return self.loaded[path]

    def check_id(self, argument: str) -> None:
        """Raise BudgetError, with the nearest right name, for an id `FILE::METHOD::LIMIT` that names nothing."""
        file, *parts = argument.split("::")
        path = Path(file)
        budget = self.load(path)
        known = {method.name: [limit.name for limit in method.all_limits] for method in budget.methods}
        if budget.uses:
            known[USE] = [use.name for use in budget.uses]
        names = list(known)
        if parts and parts[0] not in names:
            raise BudgetError(Problem(path, 0, f"has no method {parts[0]!r}{problems.nearest(parts[0], names)}"))
        if len(parts) > 1:
            # In brackets stands one of several kinds of machine.
            limits, name = known[parts[0]], parts[1].partition("[")[0]
            if name not in limits:
                near = problems.nearest(name, limits)
                raise BudgetError(Problem(path, 0, f"{parts[0]} has no limit {parts[1]!r}{near}"))


def looks_like_budget(path: Path) -> bool:
    """Whether a YAML file is for us: at its top stands a mapping `methods` (or one misspelt), or `extends` with a file.

    One that is no YAML is, where a line begins with `methods:`, and so is one whose text cannot be had: its error has
    to be told.
    """
    try:
        root = read_yaml(path)
    except BudgetError:
        try:
            with files.opened(path) as file:
                # In UTF-16, which is refused, every second byte is zero.
                return METHODS_LINE.search(file.read(MAX_BYTES).replace(b"\0", b"")) is not None
        except OSError:
            return True
    extends = root.entries.get("extends")
    if extends is not None and str(extends.value).endswith(SUFFIXES):
        return True
    mappings = [key for key, node in root.entries.items() if node.value is None or isinstance(node.value, dict)]
    return bool(difflib.get_close_matches("methods", mappings, n=1, cutoff=NEARLY))


def is_odd(path: str) -> bool:
    """Whether pytest would take a part of a path for something else, or show it as it is where it must not be."""
    return "[" in path or escaped(path) != path


def escaped(path: str) -> str:
    """A path as it is shown in tests' ids: without `::`, control characters, and what steers a CI runner."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path)
    return plain.replace("::", ":\\x3a").replace("##", "#\\x23")


def find_budgets(name: str, base: Path) -> list[Path]:
    """The files that one `--quant-budget` names: a file, a directory (searched recursively) or a glob.

    A file that is named is taken as it is; of what a directory or a glob finds, only what looks like a budget. Each
    file is found once, under the name that stands there: that of a link, not of what it leads to.

    Raises BudgetError where there are none.
    """
    path = path_from(base, name)
    if path.is_file():
        return [as_named(path)]
    if path.is_dir():
        return _budgets_among(_files_below(as_named(path)), path, "this directory holds no budget (*.yaml, *.yml)")
    if any(c in name for c in "*?["):
        folder, anchor = as_named(named_folder(base, name)), Path(path.anchor)
        matches = map(as_named, anchor.glob(str(path.relative_to(anchor))))
        found = [match for match in matches if _lies_in(match, folder) and _is_meant(match, folder, Path(name).parts)]
        return _budgets_among(found, base / name, "this pattern matches no file")
    names = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES or p.is_dir()]
    shipped = files.SHIPPED_BUDGETS / path.name
    if shipped.is_file():
        hint = f"; the package ships {shipped}, which `extends: {path.name}` in a file of your own builds on"
    else:
        hint = problems.nearest(path.name, names)
    raise BudgetError(Problem(base / name, 0, f"there is no such budget{hint}"))


def as_named(path: Path) -> Path:
    """An absolute path in which links keep their names, so that ids do not change with where these lead."""
    plain = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow them
    return plain if plain.resolve() == path.resolve() else path.resolve()


def _budgets_among(found: Iterable[Path], where: Path, nothing: str) -> list[Path]:
    """Those of the files that look like budgets, each once. Raises BudgetError where there are none."""
    files_: dict[Path, Path] = {}
    # Of several names of one file, the first that is no link.
    for path in sorted(found, key=lambda path: (path.resolve() != path, path)):
        if path.is_file():
            files_.setdefault(path.resolve(), path)
    budgets = sorted(path for path in files_.values() if looks_like_budget(path))
    if not budgets and files_:
        count = "1 file" if len(files_) == 1 else f"{len(files_)} files"
        nothing = f"no budget among {count}: a budget has a mapping `methods` at its top, or `extends` another file"
    if not budgets:
        raise BudgetError(Problem(where, 0, nothing))
    return budgets


def _files_below(folder: Path) -> Iterator[Path]:
    """The YAML files in a folder and in those below it, links to folders inside followed; each folder once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        inside = (here / name for name in folders if _lies_in(here / name, folder) and not _is_skipped(here / name))
        # A folder under its own name rather than under that of a link.
        folders[:] = [path.name for path in sorted(inside, key=lambda path: (path.is_symlink(), path))]
        yield from (here / name for name in names if name.endswith(SUFFIXES) and _lies_in(here / name, folder))


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path leads to something in the folder: what a link outside leads to was not named."""
    return path.resolve().is_relative_to(folder.resolve())


def _is_meant(match: Path, folder: Path, pattern: Sequence[str]) -> bool:
    """Whether a match of a pattern lies in no folder that is skipped, other than those that the pattern names."""
    parents = match.parents[: len(match.relative_to(folder).parts) - 1] if match.is_relative_to(folder) else ()
    return all(parent.name in pattern or not _is_skipped(parent) for parent in parents)


def _is_skipped(folder: Path) -> bool:
    """Whether nobody keeps budgets there: in hidden folders, environments and `node_modules`."""
    return folder.name.startswith(".") or folder.name == "node_modules" or _is_environment(folder)


def _is_environment(folder: Path) -> bool:
    """Whether Python packages are installed there (PEP 405), or conda's."""
    return any((folder / mark).is_file() for mark in ("pyvenv.cfg", "conda-meta/history"))
