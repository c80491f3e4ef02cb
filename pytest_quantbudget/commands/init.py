"""`init`: write a first budget for a model, whose limits a run fills in. Nothing is loaded, and no torch is needed."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pytest_quantbudget.budget.first import asked, cards, choice, text
from pytest_quantbudget.budget.first.wish import Wish
from pytest_quantbudget.budget.paths import HUB_ID
from pytest_quantbudget.budget.reader import REVISION, budget_of
from pytest_quantbudget.core import files
from pytest_quantbudget.core.budget import DEVELOPMENT, USES
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import BUILTIN_DIR, Roots
from pytest_quantbudget.core.limits import AUTO
from pytest_quantbudget.core.problems import BudgetError, nearest
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.checkpoint import ADAPTER_CONFIG
from pytest_quantbudget.models.survey import of_gguf, survey
from pytest_quantbudget.tasks.questions import BUILTIN

HELP = "write a first budget for a model"
SHORT = {"dev": DEVELOPMENT}
STDOUT = "-"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("model", help="hub id, directory, or `builtin`")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to; `-` prints it (default: NAME.yaml here)")
    parser.add_argument("--use", choices=[*USES, *SHORT], help="what a method is wanted for: which kinds, which limits")
    parser.add_argument("--methods", nargs="+", default=[], metavar="KIND", help="these kinds, such as nf4 gptq-int4")
    parser.add_argument(
        "--gpu",
        nargs="+",
        default=[],
        metavar="GPU",
        help="which GPUs, such as L4 or '24 GiB' (default: those here)",
    )
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="NAME", help="ready checkpoints or GGUF files")
    parser.add_argument("--adapter", metavar="NAME", help="the LoRA adapter of all methods")
    parser.add_argument("--questions", metavar="FILE", help="your own questions: JSON lines with question and answer")
    parser.add_argument("--calibration", metavar="FILE", help="texts on which GPTQ and AWQ are made")
    parser.add_argument("--revision", help="commit, branch or tag of a hub model")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def run(options: argparse.Namespace) -> None:
    """Write the budget, and say what comes next. Raises BudgetError, ValueError and OSError."""
    model = _model(options.model)
    target = _target(options, model)
    names = _Names(target)
    names.places[names.model(model)] = model
    wish = Wish(
        model=names.model(model),
        found=survey(model, options.revision),
        revision=_revision(options.revision, model),
        use=SHORT.get(options.use, options.use),
        methods=choice.kinds(options.methods),
        checkpoints=tuple(names.checkpoint(name) for name in options.checkpoint),
        calibration=names.file(options.calibration) or _own_texts(model),
        questions=names.file(options.questions),
        adapter=names.model(_local(options.adapter)) if options.adapter else None,
        cards=cards.named(options.gpu) or cards.of_machine(hardware.LocalGpus().usable),
        ram=hardware.machine().ram,
        places=names.places,
    )
    if wish.found.shipped and wish.calibration is None:
        wish = replace(wish, calibration=BUILTIN)
    _check_calibrated(wish)
    workload = asked.workload(wish)
    chosen = choice.Chooser(wish, workload).choose()
    commands = list(_commands(target, names, wish))
    written = text.text_of(wish, chosen, asked.task(wish), workload, commands)
    with _folder(target.parent):
        try:
            budget = budget_of(written, target, names.roots, Permissions(everything=True))
        except BudgetError as error:
            told = "; ".join(dict.fromkeys(problem.message for problem in error.problems))
            raise ValueError(f"the budget would not be read, and is not written: {told}") from None
        if options.output == STDOUT:
            sys.stdout.write(written)
            return
        _write(target, written, force=options.force)
    limits = [limit for method in budget.methods for limit in method.limits]
    open_ = sum(target.value is None for limit in limits for target in limit.targets)
    of = f"{len(budget.methods)} methods, {len(limits)} limits, {open_} values that read `{AUTO}`"
    print(f"wrote {printable(_shown(target))}: {of}")
    for name, why in chosen.left_out:
        print(printable(f"left out: {name}: {why}"))
    gone = sorted({package for each in chosen.planned for package in each.missing})
    if gone:
        print(f"not installed here: {methods.pip_command(*gone)}")
    for command, does in commands:
        print(f"  {command}\n      {does}")


def _model(named: str) -> str:
    """The hub id or the absolute directory that is meant. Raises ValueError."""
    if named == BUILTIN:
        return str(BUILTIN_DIR)
    if named.endswith(".gguf"):
        raise ValueError(of_gguf(named))
    found = _local(named)
    if not Path(found).is_absolute() and not HUB_ID.fullmatch(found):
        folder = Path(named).expanduser()
        there = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
        near = nearest(folder.name, there) if there else ""
        raise ValueError(f"{named!r} is neither a directory nor a hub id such as Qwen/Qwen3-8B{near}")
    return found


def _local(named: str) -> str:
    """An absolute path for a directory or file that is there; else the name as it is."""
    path = Path(named).expanduser()
    return str(path.resolve()) if path.exists() else named


def _revision(revision: str | None, model: str) -> str | None:
    if revision is None:
        return None
    if Path(model).is_absolute():
        raise ValueError("--revision is of a hub model, and this is a directory")
    if not REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"--revision {revision!r} is not a commit, branch or tag")
    return revision


def _own_texts(model: str) -> str | None:
    return BUILTIN if model == str(BUILTIN_DIR) else None


def _check_calibrated(wish: Wish) -> None:
    """Raise ValueError for methods that are made on texts, where there are none."""
    made = [name for name in wish.methods if methods.spec(name).quantize and methods.spec(name).calibrated]
    if made and wish.calibration is None:
        how = "--calibration FILE (JSON lines with `text`, or a text a line), or --checkpoint NAME for a ready one"
        raise ValueError(f"{' and '.join(made)}: made on texts of yours: {how}")


def _target(options: argparse.Namespace, model: str) -> Path:
    """The file to be written. Raises ValueError, and FileExistsError where it is there."""
    if options.output == STDOUT:
        return Path.cwd() / "budget.yaml"
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", Path(BUILTIN if model == str(BUILTIN_DIR) else model).name).strip("-.")
    path = Path(options.output) if options.output else Path(f"{plain.lower() or 'budget'}.yaml")
    if not path.name.endswith((".yaml", ".yml")):
        raise ValueError(f"a budget's file ends in .yaml: -o {path}.yaml")
    if printable(str(path)) != str(path):
        raise ValueError("the file's name holds what cannot be printed")
    if path.is_dir():
        raise ValueError(f"{path} is a directory")
    if not options.force and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; --force writes over it, and -o FILE names another")
    return path.absolute()


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


class _Names:
    """How the budget in the file `target` names what lies here; `outside` are folders that it must be allowed.

    `places` has what it calls checkpoints, and where they lie.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.outside: list[Path] = []
        self.places: dict[str, str] = {}

    @property
    def roots(self) -> Roots:
        """The folders that it names things in."""
        return Roots([Path.cwd(), self.target.parent, *self.outside])

    def model(self, name: str) -> str:
        """The model as the budget says it. Raises ValueError."""
        if name == str(BUILTIN_DIR):
            return BUILTIN
        return self._path(Path(name)) if Path(name).is_absolute() else name

    def file(self, name: str | None) -> str | None:
        """A file as the budget says it. Raises ValueError where there is none."""
        if name is None or name == BUILTIN:
            return name
        path = Path(name).expanduser()
        if not path.is_file():
            there = [each.name for each in path.parent.glob("*")] if path.parent.is_dir() else []
            raise ValueError(f"there is no file {name!r}{nearest(path.name, there) if there else ''}")
        return self._path(path.resolve())

    def checkpoint(self, name: str) -> str:
        """A ready checkpoint as the budget says it. Raises ValueError."""
        found = _local(name)
        if not Path(found).is_absolute() and (found.endswith(".gguf") or not HUB_ID.fullmatch(found)):
            raise ValueError(f"--checkpoint {name!r} is neither a file, nor a directory, nor a hub id")
        if (Path(found) / ADAPTER_CONFIG).is_file():
            raise ValueError(f"--checkpoint {name}: it holds an adapter ({ADAPTER_CONFIG}): that is --adapter {name}")
        if Path(found).is_dir() and not (Path(found) / "config.json").is_file():
            raise ValueError(f"--checkpoint {name}: it holds no model: there is no config.json")
        written = self.model(found)
        self.places[written] = found
        return written

    def _path(self, path: Path) -> str:
        """A path seen from the budget, or whole where it lies outside of the working directory."""
        if any(not character.isprintable() for character in str(path)):
            raise ValueError(f"{printable(str(path))}: a path with a line break or a control character is not written")
        near = [folder.resolve() for folder in (Path.cwd(), self.target.parent)]
        if any(path.is_relative_to(folder) for folder in near):
            relative = os.path.relpath(path, self.target.parent.resolve())
            return relative if relative.startswith(os.pardir) else f"./{relative}"
        self.outside.append(path if path.is_dir() else path.parent)
        return str(path)


def _commands(target: Path, names: _Names, wish: Wish) -> Iterator[tuple[str, str]]:
    """What to call next, and what it does."""
    name = shlex.quote(_shown(target))
    allowed = " ".join(shlex.quote(str(folder)) for folder in dict.fromkeys(names.outside))
    more = " --quant-trust-remote-code" * wish.found.code + " --quant-allow-pickle" * wish.found.pickled
    if allowed:
        more += f" -o {shlex.quote(f'quant_allow_paths={allowed}')}"
    outside = "".join(f" --allow-path {shlex.quote(str(folder))}" for folder in dict.fromkeys(names.outside))
    yield f"pytest --quant-budget {name} --quant-update{more}", "measures, and writes the limits into it"
    yield f"pytest --quant-budget {name}{more}", "tests them from then on"
    explains = "says what it measures, loads and downloads, how long about, and what its limits can tell"
    yield f"python -m pytest_quantbudget explain {name}{outside}", explains
    if allowed:
        yield f"quant_allow_paths = {allowed}", "as a line of the ini file, saves the option `-o`"


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """The folder of the file, made where there is none; it goes again where nothing is written."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def _write(path: Path, written: str, *, force: bool) -> None:
    """Write the file whole."""
    if force:
        files.write(path.resolve(), written.encode())
        return
    try:
        files.write_new(path, written.encode())
    except FileExistsError:
        raise FileExistsError(f"{_shown(path)} has come into being meanwhile, and is left as it is") from None
