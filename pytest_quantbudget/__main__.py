"""`python -m pytest_quantbudget`: what needs no model. Check budgets, print a report's table, print the schemas."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_quantbudget.commands import check, explain, export, history, init, schema, table
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.safetext import printable

COMMANDS = {
    "init": init,
    "explain": explain,
    "check": check,
    "schema": schema,
    "table": table,
    "export": export,
    "history": history,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 4 is the exit code of a mistake in a file, as it is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m pytest_quantbudget", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add(own)
        own.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except BudgetError as error:
        print(*(f"ERROR: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 4
    except BrokenPipeError:
        # Who reads has enough, as `head` has; what is left in the buffer must not be written at the end, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # Its own text begins with a number that only programmers know.
        told = ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
        print(f"ERROR: {printable(told)}", file=sys.stderr)
        return 4
    except (ValueError, ArithmeticError, RecursionError) as error:
        print(f"ERROR: {printable(str(error))}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
