"""`python -m pytest_quantbudget`: what needs no model. Check budgets, print a report's table, print the schemas."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_quantbudget.budget import schema
from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import Roots, named_folder
from pytest_quantbudget.core.problems import BudgetError, display_path
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.report import document, layout
from pytest_quantbudget.report import table as report_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 4 is the exit code of a mistake in a file, as it is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m pytest_quantbudget", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check_ = commands.add_parser("check", help="check budget files, directories or globs")
    check_.add_argument("budget", nargs="+")
    check_.add_argument(
        "--allow-path",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let budgets name what lies in DIR, besides the working directory and their own; may be repeated",
    )
    check_.set_defaults(run=check)
    table_ = commands.add_parser("table", help="print the table of a JSON report")
    table_.add_argument("report", type=Path)
    table_.set_defaults(run=table)
    schema_ = commands.add_parser("schema", help="print a JSON Schema")
    schema_.add_argument("which", choices=["budget", "report"])
    schema_.set_defaults(run=print_schema)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except BudgetError as error:
        print(*(f"ERROR: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 4
    except (ValueError, OSError, ArithmeticError, RecursionError) as error:
        print(f"ERROR: {printable(str(error))}", file=sys.stderr)
        return 4
    return 0


def check(options: argparse.Namespace) -> None:
    """Read every budget; say how many limits each holds."""
    for name in options.budget:
        roots = Roots([Path.cwd(), *options.allow_path, named_folder(Path.cwd(), name)])
        for path in find_budgets(name, Path.cwd()):
            budget = load_budget(path, roots, permissions=Permissions(everything=True))
            limits = sum(len(method.limits) for method in budget.methods)
            print(f"{display_path(path)}: {len(budget.methods)} methods, {limits} limits")


def table(options: argparse.Namespace) -> None:
    """The table of a report, with the replies."""
    on_terminal = sys.stdout.isatty()
    room = layout.room(on_terminal=on_terminal)
    for line in report_table.lines(document.read(options.report), replies=True, room=room):
        print(
            f"== {line.text} =="
            if line.title
            else "\n".join(layout.wrapped(line.text, room) if on_terminal else [line.text])
        )


def print_schema(options: argparse.Namespace) -> None:
    """The schema on standard output, as it ships in the package."""
    print(text_of(options.which))


def text_of(which: str) -> str:
    """One of the schemas as text."""
    return json.dumps(schema.budget_schema() if which == "budget" else document.schema(), indent=2)


if __name__ == "__main__":
    sys.exit(main())
