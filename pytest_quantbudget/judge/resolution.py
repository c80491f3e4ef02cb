"""What a budget's drop limits can tell with the questions that they have: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.problems import Problem
from pytest_quantbudget.core.request import DUMMY, Task
from pytest_quantbudget.core.units import format_value
from pytest_quantbudget.judge import sample_size, sequential


@dataclass(frozen=True)
class FlipRate:
    """How many percent of questions a method flipped when it was last measured, and when (ISO 8601, UTC)."""

    percent: float
    at: str


@dataclass(frozen=True)
class FlipRates:
    """Those of all methods, models and tasks that were measured with one cache."""

    rates: dict[str, FlipRate]


NONE_KNOWN = FlipRates({})


def doubts(budget: Budget, known: FlipRates = NONE_KNOWN) -> Iterator[Problem]:
    """Each drop limit that is too small for its questions: what they can tell, and how many would do."""
    for method in budget.methods:
        for limit in method.limits:
            total = budget.totals.get(limit.kind.task)
            values = [target.value for target in limit.targets if target.value is not None]
            asks = method.subject.load_format != DUMMY  # which answers nothing
            if limit.kind.relation == "drop" and asks and total is not None and values:
                said = _doubt(budget, method, limit, min(values), total, known)
                if said:
                    yield Problem(limit.file, limit.line, said)


def _doubt(budget: Budget, method: Method, limit: Limit, value: float, total: int, known: FlipRates) -> str:
    task, judging = budget.tasks[limit.kind.task], limit.judging
    remembered = known.rates.get(flip_key(method, task))
    confidence = sequential.confidence_at(total, task.start, total, judging.confidence)
    if judging.expected_flips is not None:
        flips, whence = judging.expected_flips, "`expected_flips`"
    elif remembered is not None:
        flips, whence = remembered.percent, f"as measured {remembered.at}"
    else:
        flips, whence = sample_size.FLIPS, "assumed"
    resolved = sample_size.resolves(total, flips, confidence)
    if resolved <= value:
        return ""
    points = format_value(value, "points")
    head = f"{method.name}: {limit.name}: {points} cannot be told from 0"
    have = f"{total:,} questions (they resolve {format_value(resolved, 'points', show_unit=False)})"
    rate = f"at {format_value(flips, '%')} flips, {whence}"
    if value == 0:
        return f"{head} with any number of questions; {have}, {rate}"
    needed = sample_size.told_by(value, flips, confidence)
    firm = sample_size.asked_for(value, flips, confidence, judging.undecided)
    errs = f"{firm:,} keep false alarms at half the limit below 1 % and misses at twice it below 5 %"
    return f"{head} with {have}; {needed:,} would, and {errs} ({rate})"


def flip_key(method: Method, task: Task) -> str:
    """Other options, another question set: another rate. How many questions, and drawn by which seed, is no matter."""
    return codec.key_of([codec.to_builtins(method.subject), task.name, task.file, task.style, task.harness])
