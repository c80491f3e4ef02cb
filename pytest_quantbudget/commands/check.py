"""`check`: read budgets as a run does, and say how many limits each holds, or which methods one of them has."""

from __future__ import annotations

import argparse
import json

from pytest_quantbudget.commands import reading
from pytest_quantbudget.core.problems import display_path

HELP = "check budget files, directories or globs"
LINES, JSON = "lines", "json"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    reading.add(parser)
    parser.add_argument(
        "--methods",
        nargs="?",
        choices=[LINES, JSON],
        const=LINES,
        help="print the names of one budget's methods that have limits, a line each or as a JSON list: one a job",
    )


def run(options: argparse.Namespace) -> None:
    """Read every budget; say how many limits each holds. Raises ValueError where methods of several are asked for."""
    budgets = list(reading.budgets(options))
    if options.methods is not None:
        if len(budgets) != 1:
            raise ValueError(f"--methods lists those of one budget, and {len(budgets)} were named")
        names = [method.name for method in budgets[0].methods if method.all_limits]
        print(json.dumps(names) if options.methods == JSON else "\n".join(names))
        return
    for budget in budgets:
        limits = sum(len(method.all_limits) for method in budget.methods)
        print(f"{display_path(budget.path)}: {len(budget.methods)} methods, {limits} limits")
