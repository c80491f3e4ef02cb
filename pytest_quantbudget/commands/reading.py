"""The budgets that a command is given: files, directories and globs, read as a run reads them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import Roots, named_folder


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments that name budgets."""
    parser.add_argument("budget", nargs="+")
    parser.add_argument(
        "--allow-path",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let budgets name what lies in DIR, besides the working directory and their own; may be repeated",
    )


def budgets(options: argparse.Namespace) -> Iterator[Budget]:
    """The budgets, one after the other. Raises BudgetError."""
    for name in options.budget:
        roots = Roots([Path.cwd(), *options.allow_path, named_folder(Path.cwd(), name)])
        for path in find_budgets(name, Path.cwd()):
            yield load_budget(path, roots, permissions=Permissions(everything=True))
