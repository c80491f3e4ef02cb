"""Scores for a model's page on the Hugging Face hub: the `model-index` of its card, or a file of `.eval_results/`.

After https://github.com/huggingface/hub-docs, `modelcard.md` and `docs/hub/eval-results.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import nearest
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.figures import Taken, figures
from pytest_quantbudget.tasks.questions import HUB_SETS

GENERATION = "text-generation"
DIGITS = 4
SPLIT = "test"


def text(report: Report, method: str | None = None, benchmarks: Mapping[str, str] | None = None) -> str:
    """The front matter of a model card with the scores of all methods, or of one.

    `benchmarks` say of tasks which data set on the hub has their leaderboard, and what they are called there:
    `DATASET:TASK`. With them the text is a file of `.eval_results/` in place of a card. Raises ValueError where the
    report has no such method or task, or no score, and where benchmarks are asked for of several methods.
    """
    chosen = [*_chosen(report, method)]
    if benchmarks:
        if len({each.name for _, each in chosen}) > 1:
            names = ", ".join(dict.fromkeys(each.name for _, each in chosen))
            raise ValueError(f"a model on the hub is one method: --method says which of {names}")
        return _dump(_entries(report, chosen, benchmarks))
    index = [entry for budget, each in chosen if (entry := _indexed(report, budget, each, alone=method is not None))]
    if not index:
        raise ValueError("the report has no score of a task, and no perplexity")
    return f"---\n{_dump({'model-index': index})}---\n"


def _chosen(report: Report, method: str | None) -> Iterator[tuple[BudgetReport, MethodReport]]:
    found = [(budget, each) for budget in report.budgets for each in budget.methods if each.measurement is not None]
    names = [each.name for _, each in found]
    if method is not None and method not in names:
        known = f"{nearest(method, names)}; it has {', '.join(dict.fromkeys(names))}" if names else ""
        raise ValueError(safe(f"the report has no measured method {method!r}{known}"))
    yield from (pair for pair in found if method in (None, pair[1].name))


def _indexed(report: Report, budget: BudgetReport, method: MethodReport, *, alone: bool) -> dict[str, Any] | None:
    results = [*_scores(report, budget, method), *_perplexities(method.measurement)]
    name = _model(budget, method)
    return {"name": name if alone else f"{name} ({safe(method.name)})", "results": results} if results else None


def _model(budget: BudgetReport, method: MethodReport) -> str:
    """A hub id, or of a directory its name."""
    checkpoint = method.measurement.subject.checkpoint if method.measurement is not None else None
    name = checkpoint or budget.model
    return safe(Path(name).name if Path(name).is_absolute() else name)


def _scores(report: Report, budget: BudgetReport, method: MethodReport) -> Iterator[dict[str, Any]]:
    for task, taken in _scored(report, budget, method):
        yield {
            "task": {"type": GENERATION},
            "dataset": _dataset(task),
            "metrics": [
                {
                    "type": "accuracy",
                    "value": _rounded(taken.figure.value),
                    "name": "accuracy, percent",
                    "args": _made_of(taken),
                }
            ],
        }


def _scored(report: Report, budget: BudgetReport, method: MethodReport) -> Iterator[tuple[Task, Taken]]:
    """The tasks with a score that a limit could be judged on."""
    taken = {each.name: each for each in figures(budget, report.cpu_of, method.name)}
    for task in budget.tasks:
        if task.name in taken:
            yield task, taken[task.name]


def _dataset(task: Task) -> dict[str, Any]:
    shots = {"args": {"num_few_shot": task.shots}} if task.shots is not None else {}
    if task.file is None and task.harness is None and task.name in HUB_SETS:
        id_, config = HUB_SETS[task.name]
        return {"type": id_, "name": task.name, "config": config, "split": SPLIT, **shots}
    source = Path(task.harness or task.file or task.name).stem
    return {"type": safe(source), "name": safe(task.name), **shots}


def _made_of(taken: Taken) -> dict[str, Any]:
    bounds = {"low": taken.low, "high": taken.high, "confidence": taken.figure.confidence}
    known = {name: _rounded(value) for name, value in bounds.items() if value is not None and taken.figure.bounds}
    return {"questions": taken.figure.n, **known}


def _perplexities(record: Measurement | None) -> Iterator[dict[str, Any]]:
    for each in record.perplexities if record is not None else ():
        name = safe(Path(each.text.file).stem)
        yield {
            "task": {"type": GENERATION},
            "dataset": {"type": name, "name": name},
            "metrics": [
                {
                    "type": "perplexity",
                    "value": _rounded(each.value),
                    "name": "perplexity of a token",
                    "args": {"window": each.text.window, "stride": each.text.stride, "tokens": each.tokens},
                }
            ],
        }


def _entries(
    report: Report, chosen: Sequence[tuple[BudgetReport, MethodReport]], benchmarks: Mapping[str, str]
) -> list[dict[str, Any]]:
    scored = {
        task.name: (task, taken, method) for budget, method in chosen for task, taken in _scored(report, budget, method)
    }
    found = []
    for name, benchmark in benchmarks.items():
        if name not in scored:
            raise ValueError(safe(f"the report has no score of a task {name!r}{nearest(name, list(scored))}"))
        dataset, given, id_ = benchmark.partition(":")
        if not given or not dataset or not id_:
            raise ValueError(f"{benchmark!r} is not DATASET:TASK, such as openai/gsm8k:gsm8k")
        task, taken, method = scored[name]
        notes = [f"{method.name} by pytest-quantbudget", f"{taken.figure.n:,} questions"]
        notes += [f"{task.shots}-shot"] if task.shots is not None else []
        if taken.low is not None and taken.high is not None:
            notes.append(f"{100 * taken.figure.confidence:g} % bounds {taken.low:.2f} to {taken.high:.2f}")
        found.append(
            {
                "dataset": {"id": dataset, "task_id": id_},
                "value": _rounded(taken.figure.value),
                "date": safe(report.created),
                "notes": safe(", ".join(notes)),
            }
        )
    return found


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def _dump(data: object) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=False, width=120)
