"""`schema`: the JSON Schema of a budget or of a report, as it ships in the package."""

from __future__ import annotations

import argparse
import json

from pytest_quantbudget.budget import schema
from pytest_quantbudget.report import document

HELP = "print a JSON Schema"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("which", choices=["budget", "report"])


def run(options: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(schema.budget_schema() if options.which == "budget" else document.schema(), indent=2))
