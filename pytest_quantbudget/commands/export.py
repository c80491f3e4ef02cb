"""`export`: a report in the format of another program."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.report import document, markdown
from pytest_quantbudget.report.document import Report
from pytest_quantbudget.report.exports import csv, ctrf, mlflow, model_card
from pytest_quantbudget.report.page import render

HELP = "write a JSON report as Markdown, HTML, CSV, CTRF or a model card, or log it with MLflow"


@dataclass(frozen=True)
class Export:
    """A format: what it is for, the text of a report in it, and options of its own; `written` to a file or shown."""

    help: str
    text: Callable[[Report, argparse.Namespace], str]
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    written: bool = True


def _of_model_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", metavar="NAME", help="the one method that the model on the hub is")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="TASK=DATASET:ID",
        help="in place of a card, write a file of .eval_results/ for the leaderboard of this data set, such as "
        "gsm8k=openai/gsm8k:gsm8k; may be repeated",
    )


def _of_mlflow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tracking-uri", metavar="URI", help="where to (default: MLFLOW_TRACKING_URI)")
    parser.add_argument("--experiment", default=mlflow.EXPERIMENT, metavar="NAME", help="default: %(default)s")


def _model_card(report: Report, given: argparse.Namespace) -> str:
    pairs = [text.partition("=") for text in given.benchmark]
    wrong = next(
        (text for text, (_, sign, rest) in zip(given.benchmark, pairs, strict=True) if not sign or not rest), None
    )
    if wrong is not None:
        raise ValueError(f"--benchmark {wrong}: it is not TASK=DATASET:ID, such as gsm8k=openai/gsm8k:gsm8k")
    return model_card.text(report, given.method, {task: benchmark for task, _, benchmark in pairs})


EXPORTS = {
    "markdown": Export("Markdown for a pull request", lambda report, given: markdown.text(report)),
    "html": Export("one HTML page", lambda report, given: render.render(report)),
    "csv": Export("a table of limits and figures in base units", lambda report, given: csv.text(report)),
    "ctrf": Export("the Common Test Report Format", lambda report, given: ctrf.text(report)),
    "model-card": Export("scores for a model's page on the Hugging Face hub", _model_card, _of_model_card),
    "mlflow": Export(
        "runs of MLflow",
        lambda report, given: mlflow.log(report, given.report, given.tracking_uri, given.experiment),
        _of_mlflow,
        written=False,
    ),
}


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    formats = parser.add_subparsers(required=True, metavar="FORMAT", dest="format")
    for name, export in EXPORTS.items():
        own = formats.add_parser(name, help=export.help, description=f"Write a JSON report as {export.help}.")
        own.add_argument("report", type=Path)
        if export.written:
            own.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
        export.options(own)


def run(options: argparse.Namespace) -> None:
    """Write the report in the format."""
    export = EXPORTS[options.format]
    report = document.read(options.report)
    try:
        text = export.text(report, options).rstrip("\n") + "\n"
    except ImportError as error:
        raise ValueError(str(error)) from None
    output = options.output if export.written else None
    if output is None:
        print(text, end="")
        return
    if output.resolve() == options.report.resolve():
        raise ValueError(f"{output} is the report itself")
    if output.is_dir():
        raise ValueError(f"{output} is a directory; name a file in it")
    try:
        files.write(output, text.encode())
    except OSError as error:
        # The error names the file's unfinished double, which nobody asked for.
        raise ValueError(f"{output} cannot be written: {error.strerror or error}") from None
    print(f"written to {output}", file=sys.stderr)
