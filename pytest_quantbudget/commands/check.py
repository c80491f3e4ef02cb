"""`check`: read budgets as a run does, and say how many limits each holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import Roots, named_folder
from pytest_quantbudget.core.problems import display_path

HELP = "check budget files, directories or globs"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("budget", nargs="+")
    parser.add_argument(
        "--allow-path",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let budgets name what lies in DIR, besides the working directory and their own; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Read every budget; say how many limits each holds."""
    for name in options.budget:
        roots = Roots([Path.cwd(), *options.allow_path, named_folder(Path.cwd(), name)])
        for path in find_budgets(name, Path.cwd()):
            budget = load_budget(path, roots, permissions=Permissions(everything=True))
            limits = sum(len(method.limits) for method in budget.methods)
            print(f"{display_path(path)}: {len(budget.methods)} methods, {limits} limits")
