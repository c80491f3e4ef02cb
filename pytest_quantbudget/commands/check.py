"""`check`: read budgets as a run does, and say how many limits each holds."""

from __future__ import annotations

import argparse

from pytest_quantbudget.commands import reading
from pytest_quantbudget.core.problems import display_path

HELP = "check budget files, directories or globs"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    reading.add(parser)


def run(options: argparse.Namespace) -> None:
    """Read every budget; say how many limits each holds."""
    for budget in reading.budgets(options):
        limits = sum(len(method.all_limits) for method in budget.methods)
        print(f"{display_path(budget.path)}: {len(budget.methods)} methods, {limits} limits")
