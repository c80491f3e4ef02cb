"""A report as runs of MLflow: one with the verdicts and the report, and below it one a method with its figures."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.report import markdown
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.exports import csv
from pytest_quantbudget.report.figures import Taken, figures
from pytest_quantbudget.report.ranked import ranked

if TYPE_CHECKING:
    from mlflow import MlflowClient

MISSING = "runs are logged with MLflow, which is not installed: pip install 'pytest-quantbudget[mlflow]'"
EXPERIMENT = "pytest-quantbudget"
# What MLflow takes in a name, of one text, and at once.
ODD = re.compile(r"[^\w\-. /]", re.ASCII)
LONGEST_NAME, LONGEST = 200, 500
AT_ONCE = 100
PARENT, RUN_NAME, NOTE = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"


def log(report: Report, file: Path, tracking_uri: str | None = None, experiment: str = EXPERIMENT) -> str:
    """Log a report, which is the `file`; what was logged where, in words.

    `tracking_uri` None means what MLflow itself takes then, `MLFLOW_TRACKING_URI` first. Raises ValueError where MLflow
    is not installed or refuses, and what it raises where a server cannot be reached.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        return _log(MlflowClient(tracking_uri), report, file, experiment)
    except (MlflowException, ImportError) as error:
        # A store in a database needs more of MLflow than a client has.
        raise ValueError(f"MLflow: {safe(str(error))}") from None


def _log(client: MlflowClient, report: Report, file: Path, experiment: str) -> str:
    known = client.get_experiment_by_name(experiment)
    id_ = known.experiment_id if known is not None else client.create_experiment(experiment)
    at = int(datetime.datetime.fromisoformat(report.created).timestamp() * 1000)
    name = ", ".join(dict.fromkeys(Path(budget.file).stem for budget in report.budgets))
    tags = {RUN_NAME: _text(name), NOTE: _text(markdown.headline(report)), **_tags(report)}
    parent = client.create_run(id_, start_time=at, tags=tags).info.run_id
    status = "FAILED"
    try:
        states = Counter(each.state for budget in report.budgets for each in ranked(budget))
        _batch(client, parent, {f"limits {state}": float(count) for state, count in states.items()}, {}, at)
        client.log_artifact(parent, str(file))
        client.log_text(parent, markdown.text(report), "summary.md")
        client.log_text(parent, csv.text(report), "figures.csv")
        count = sum(_method(client, id_, parent, at, report, *each) for each in _measured(report))
        status = "FINISHED"
    finally:
        client.set_terminated(parent, status, at)
    return (
        f"logged run {parent} and {count} below it, one a method, in experiment {experiment} of {client.tracking_uri}"
    )


def _measured(report: Report) -> Iterator[tuple[BudgetReport, MethodReport, Subject]]:
    for budget in report.budgets:
        for method in budget.methods:
            if method.measurement is not None:
                yield budget, method, method.measurement.subject


def _method(
    client: MlflowClient, experiment: str, parent: str, at: int, report: Report, budget: BudgetReport,
    method: MethodReport, subject: Subject,
) -> int:  # fmt: skip
    """Log one method; 1, for the one run that there is more."""
    outcomes = {f"limit {limit.name}": limit.verdict.outcome for limit in method.limits}
    tags = {RUN_NAME: _text(method.name), PARENT: parent, **_tags(report)}
    run = client.create_run(experiment, start_time=at, tags=tags).info.run_id
    values: dict[str, float] = {}
    for taken in figures(budget, report.cpu_of, method.name):
        values |= _values(taken)
    record = budget.measured[method.name]
    params = {
        "budget": Path(budget.file).as_posix(),
        "machine": budget.machine,
        "model": budget.model,
        "revision": record.revision or subject.revision or "",
        "method": method.name,
        "checkpoint": subject.checkpoint or "",
        "engine": subject.engine,
        "device": record.device.name if record.device is not None else "",
        **{f"option {name}": str(value) for name, value in (subject.options or {}).items()},
    }
    _batch(client, run, values, {**params, **outcomes}, at)
    client.set_terminated(run, "FINISHED", at)
    return 1


def _values(taken: Taken) -> dict[str, float]:
    """A figure and its bounds, under names that say the unit where the limit's name does not."""
    unit = {"B": " bytes", "s": " seconds", "%": " percent", "points": " points"}.get(taken.unit, "")
    found = {"": taken.figure.value, " low": taken.low, " high": taken.high}
    return {f"{taken.name}{unit}{end}": float(value) for end, value in found.items() if value is not None}


def _tags(report: Report) -> dict[str, str]:
    commit = {"commit": report.commit.sha} if report.commit is not None else {}
    gpus = {"gpus": ", ".join(gpu.name for gpu in report.machine.gpus)} if report.machine.gpus else {}
    return {name: _text(value) for name, value in {"cpu": report.machine.cpu, **gpus, **commit}.items()}


def _batch(client: MlflowClient, run: str, values: dict[str, float], params: dict[str, str], at: int) -> None:
    from mlflow.entities import Metric, Param

    metrics: list[Any] = [Metric(_name(name), value, at, 0) for name, value in values.items()]
    texts: list[Any] = [Param(_name(name), _text(value)) for name, value in params.items() if value]
    for i in range(0, max(len(metrics), len(texts)), AT_ONCE):
        client.log_batch(run, metrics[i : i + AT_ONCE], texts[i : i + AT_ONCE])


def _name(name: str) -> str:
    return ODD.sub("_", safe(name, LONGEST_NAME).strip()) or "_"


def _text(text: str) -> str:
    return safe(text, LONGEST)
