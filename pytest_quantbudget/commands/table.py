"""`table`: the table of a report, with the replies, without torch or GPU."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_quantbudget.report import document, layout
from pytest_quantbudget.report import table as report_table

HELP = "print the table of a JSON report"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("report", type=Path)


def run(options: argparse.Namespace) -> None:
    """Print the table."""
    on_terminal = sys.stdout.isatty()
    room = layout.room(on_terminal=on_terminal)
    for line in report_table.lines(document.read(options.report), replies=True, room=room):
        print(
            f"== {line.text} =="
            if line.title
            else "\n".join(layout.wrapped(line.text, room) if on_terminal else [line.text])
        )
