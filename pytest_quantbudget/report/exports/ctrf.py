"""A report in the Common Test Report Format (https://ctrf.io, specification 0.1.0): a test a limit."""

from __future__ import annotations

import datetime
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, WITHIN, LimitReport
from pytest_quantbudget.report import figures
from pytest_quantbudget.report.document import BudgetReport, Report

SPECIFICATION = "0.1.0"
NAME = "pytest-quantbudget"
LONGEST = 2000
# What was selected and never judged makes a run fail, so it does so here.
STATUS = {WITHIN: "passed", OVER: "failed", FAILED: "failed", NOT_RUN: "failed", SKIPPED: "skipped"}
STATUSES = ("passed", "failed", "skipped", "pending", "other")
# A test has the same id in every report, whoever writes it.
TESTS = uuid.uuid5(uuid.NAMESPACE_URL, NAME)


def text(report: Report) -> str:
    """The document as JSON.

    A report says when it was written, and not when the run began: that is start and stop. A limit takes no time of its
    own, since a method is measured once for all of its limits.
    """
    written = _milliseconds(report.created)
    tests = [test for budget in report.budgets for test in _tests(budget)]
    states = Counter(test["status"] for test in tests)
    summary = {"tests": len(tests), **{status: states[status] for status in STATUSES}}
    release = report.machine.libraries.get(NAME)
    tool = {"name": NAME, **({"version": safe(release)} if release else {})}
    document = {
        "reportFormat": "CTRF",
        "specVersion": SPECIFICATION,
        "timestamp": safe(report.created),
        "generatedBy": NAME,
        "results": {
            "tool": tool,
            "summary": {**summary, "suites": len(report.budgets), "start": written, "stop": written},
            "tests": tests,
            "environment": _environment(report),
        },
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _tests(budget: BudgetReport) -> Iterator[dict[str, Any]]:
    for limit in (*(limit for method in budget.methods for limit in method.limits), *budget.uses):
        record = budget.measured.get(limit.method)
        device = record.device.name if record is not None and record.device is not None else ""
        file = safe(Path(budget.file).as_posix(), LONGEST)
        test = {
            "id": str(uuid.uuid5(TESTS, f"{budget.machine}{limit.id}".encode(errors="replace").decode())),
            "name": safe(f"{limit.method}::{limit.name}", LONGEST),
            "status": STATUS.get(limit.verdict.outcome, "other"),
            "rawStatus": safe(limit.verdict.outcome),
            "duration": 0,
            "suite": [safe(budget.heading, LONGEST), safe(limit.method, LONGEST) or "-"],
            "message": safe(limit.verdict.message, LONGEST),
            "trace": safe(limit.verdict.detail, LONGEST, lines=True),
            "line": limit.line,
            "filePath": file,
            "device": safe(device),
            "labels": _labels(limit),
        }
        yield {name: value for name, value in test.items() if value not in ("", {})}


def _labels(limit: LimitReport) -> dict[str, Any]:
    """The figures of a verdict in base units, and what is known of them."""
    verdict = limit.verdict
    labels = {
        "measured": verdict.measured,
        "low": verdict.low,
        "high": verdict.high,
        "confidence": verdict.confidence,
        "limit": verdict.limit,
        "unit": safe(figures.base_of(verdict.unit)),
        "n": verdict.n,
        "of": safe(verdict.of),
        "decision": safe(verdict.decision),
        "anomalous": verdict.anomalous or None,
        "insideNoise": verdict.inside_noise or None,
    }
    known = {name: value for name, value in labels.items() if value not in (None, "")}
    return {n: value for n, value in known.items() if not isinstance(value, float) or math.isfinite(value)}


def _environment(report: Report) -> dict[str, Any]:
    machine = report.machine
    extra = {
        "cpu": safe(machine.cpu),
        "cores": machine.cores,
        "gpus": [safe(gpu.name) for gpu in machine.gpus],
        "python": safe(machine.python),
        "libraries": {safe(name): safe(found) for name, found in machine.libraries.items()},
    }
    models = ", ".join(dict.fromkeys(safe(budget.model) for budget in report.budgets))
    found = {
        "appName": models,
        "osPlatform": safe(machine.platform),
        "commit": safe(report.commit.sha) if report.commit else "",
        "extra": extra,
    }
    return {name: value for name, value in found.items() if value}


def _milliseconds(at: str) -> int:
    """Since 1970. Raises ValueError where a report says no time."""
    return int(datetime.datetime.fromisoformat(at).timestamp() * 1000)
