"""`history`: the trends of the figures that a history holds, with sparklines."""

from __future__ import annotations

import argparse
import sys

from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.report import history, trends

HELP = "print the trends of a history of runs"


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("place", help="the directory or URL that --quant-history names")
    parser.add_argument("--budget", default="*", help="only of budgets of this name (`*` and `?` allowed)")
    parser.add_argument("--method", default="*", help="only of methods of this name")
    parser.add_argument(
        "--limit",
        help="only of figures with this limit or name (min_tokens_per_s, tokens_per_s), also where they have no limit",
    )
    parser.add_argument("--last", type=_number, metavar="N", help="only the last N runs of each trend")


def _number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def run(options: argparse.Namespace) -> None:
    """Print the trends. Raises ValueError where there are none."""
    try:
        past = history.read(options.place)
    except ImportError as error:  # the package of a URL
        raise ValueError(str(error)) from None
    place = safe(options.place)
    for note in past.notes:
        print(note, file=sys.stderr)
    if not past.runs:
        raise ValueError(f"{place} holds no runs: --quant-history adds them")
    found = trends.trends(past, options.budget, options.method, options.limit)
    if not found:
        budgets, methods = (sorted({getattr(run, what) for run in past.runs}) for what in ("budget", "method"))
        raise ValueError(f"{place} holds nothing of that: budgets {', '.join(budgets)}; methods {', '.join(methods)}")
    count = len({run.at for run in past.runs})
    print(f"{place}: {count:,} run{'s' if count > 1 else ''}, {past.runs[0].at} to {past.runs[-1].at}")
    for line in trends.lines(found, options.last, trends.BARS if _knows(trends.BARS) else trends.PLAIN):
        print(line)


def _knows(text: str) -> bool:
    """Whether the output can show a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
