"""A report as one CSV table: a row a limit and a row a figure, in base units (bytes, seconds, percent, points)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.report import figures
from pytest_quantbudget.report.document import BudgetReport, Report
from pytest_quantbudget.report.table import CpuOf

LONGEST = 1000
COLUMNS = (
    *("row", "created", "commit", "budget", "machine", "model", "revision", "method", "device", "name"),
    *("value", "low", "high", "confidence", "unit", "n", "of"),
    *("limit", "limit_text", "outcome", "decision", "anomalous", "inside_noise", "line", "message"),
)
# What a spreadsheet takes for the beginning of a formula, in full width, too
# (https://owasp.org/www-community/attacks/CSV_Injection).
FORMULA = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)

Row = dict[str, object]


def text(report: Report) -> str:
    """The table, with a line of heads; a text that a spreadsheet would run as a formula begins with `'`."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(COLUMNS)
    for budget in report.budgets:
        for row in (*_limits(budget), *_figures(budget, report.cpu_of)):
            whole = {**_run(report, budget), **row, "device": _device(budget, str(row["method"]))}
            writer.writerow([_cell(whole.get(column)) for column in COLUMNS])
    return written.getvalue()


def _run(report: Report, budget: BudgetReport) -> Row:
    return {
        "created": report.created,
        "commit": report.commit.sha if report.commit else None,
        "budget": Path(budget.file).as_posix(),
        "machine": budget.machine or report.machine.cpu,
        "model": budget.model,
        "revision": budget.revision,
    }


def _device(budget: BudgetReport, method: str) -> str | None:
    record = budget.measured.get(method)
    return record.device.name if record is not None and record.device is not None else None


def _limits(budget: BudgetReport) -> Iterator[Row]:
    for limit in (*(limit for method in budget.methods for limit in method.limits), *budget.uses):
        yield _of_limit(limit)


def _of_limit(limit: LimitReport) -> Row:
    verdict = limit.verdict
    return {
        "row": "limit",
        "method": limit.method,
        "name": limit.name,
        "value": verdict.measured,
        "low": verdict.low,
        "high": verdict.high,
        "confidence": verdict.confidence,
        "unit": figures.base_of(verdict.unit),
        "n": verdict.n,
        "of": verdict.of,
        "limit": verdict.limit,
        "limit_text": verdict.limit_text,
        "outcome": verdict.outcome,
        "decision": verdict.decision,
        "anomalous": verdict.anomalous,
        "inside_noise": verdict.inside_noise,
        "line": limit.line,
        "message": verdict.message,
    }


def _figures(budget: BudgetReport, cpu_of: CpuOf) -> Iterator[Row]:
    for taken in figures.figures(budget, cpu_of):
        figure = taken.figure
        yield {
            "row": "figure",
            "method": taken.method,
            "name": taken.name,
            "value": figure.value,
            "low": taken.low,
            "high": taken.high,
            "confidence": figure.confidence if figure.bounds is not None else None,
            "unit": taken.unit,
            "n": figure.n or None,
            "of": figure.of,
            "message": figure.detail,
        }


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else str(value).lower() if isinstance(value, bool) else value
    shown = safe(value, LONGEST).strip()
    return f"'{shown}" if shown.startswith(FORMULA) else shown
