"""What a budget's limits can tell with the questions and repeats that they have: said before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.budget import Basis, Budget, Method
from pytest_quantbudget.core.limits import ESTIMATE, PASS, Judging, Limit
from pytest_quantbudget.core.problems import Problem, at
from pytest_quantbudget.core.request import DUMMY, Task
from pytest_quantbudget.core.units import digits_apart, format_value
from pytest_quantbudget.core.verdict import OVER, WITHIN
from pytest_quantbudget.judge import sample_size, sequential
from pytest_quantbudget.judge.metrics import metric_of


@dataclass(frozen=True)
class FlipRate:
    """How many percent of questions a method may flip, by its last measurement, and when that was (ISO 8601, UTC)."""

    percent: float
    at: str


@dataclass(frozen=True)
class FlipRates:
    """Those of all methods, models and tasks that were measured with one cache."""

    rates: dict[str, FlipRate]


NONE_KNOWN = FlipRates({})


def pointless(limit: Limit, name: str, basis: Basis, totals: Mapping[str, int]) -> str:
    """Why a limit's test has only one outcome, whatever is measured, in words; nothing where it has two."""
    judging = limit.judging
    values = [target.value for target in limit.targets if target.value is not None]
    if judging.undecided == ESTIMATE or not values:
        return ""
    found = metric_of(limit.kind).extremes(limit.kind, basis, totals, judging.confidence)
    if found is None:
        return ""
    passes = judging.undecided == PASS
    bounds, wanted = (found.worst, OVER) if passes else (found.best, WITHIN)
    if all(bounds.side(limit.kind.bound, value) == wanted for value in values):
        return ""
    level, many = f"{100 * judging.confidence:g} %", f"{found.n:,} {found.of}"
    if found.enough:
        why = f"{many} give no bound at {level} ({found.enough} do)"
    else:
        ends, unit = (bounds.low, bounds.high), limit.kind.unit
        digits = max(digits_apart(value, ends, unit) for value in values)
        low, high = (format_value(end, unit, digits, show_unit=False) for end in ends)
        why = f"with {many}, even the {'worst' if passes else 'best'} outcome has {level} bounds of {low} to {high}"
    then = "`undecided: pass` lets through" if passes else "`undecided: fail` fails"
    return f"{name}: {limit.name} cannot {'fail' if passes else 'pass'}: {why}, and {then} what is not decided"


def doubts(budget: Budget, known: FlipRates = NONE_KNOWN) -> Iterator[Problem]:
    """Each drop limit whose test errs more often with its questions than promised: how often, and what would do.

    Also each limit on a percentile that its requests cannot bound, where the estimate alone decides.
    """
    for method in budget.methods:
        for limit in method.limits:
            if limit.kind.percentile is not None and limit.judging.undecided == ESTIMATE:
                unbound = _unbound(budget, method, limit)
                yield from [at(limit, unbound)] if unbound else []
            total = budget.totals.get(limit.kind.task)
            values = [target.value for target in limit.targets if target.value is not None]
            asks = method.subject.load_format != DUMMY  # which answers nothing
            if limit.kind.relation == "drop" and asks and total is not None and values:
                said = _doubt(budget, method, limit, min(values), total, known)
                if said:
                    yield at(limit, said)


def _unbound(budget: Budget, method: Method, limit: Limit) -> str:
    """That a percentile has no bounds with so few requests; nothing where it has."""
    level = limit.judging.confidence
    found = metric_of(limit.kind).extremes(limit.kind, budget.basis_of(method.name), budget.totals, level)
    if found is None or not found.enough:
        return ""
    why = f"{found.n:,} {found.of} give no bounds at {100 * level:g} % ({found.enough:,} do)"
    return f"{method.name}: {limit.name}: {why}, so that the estimate alone decides"


def _doubt(budget: Budget, method: Method, limit: Limit, value: float, total: int, known: FlipRates) -> str:
    task, judging = budget.tasks[limit.kind.task], limit.judging
    flips, whence = expected_flips(method, task, judging, known)
    confidence = sequential.confidence_at(total, task.start, total, judging.confidence)
    growing = len(sequential.looks(task.start, total)) > 1
    rate = f"at {format_value(flips, '%')} flips, {whence}"
    points = format_value(value, "points")
    head = f"{method.name}: {limit.name}"
    if value == 0:
        return f"{head}: no number of questions tells {points} from more ({rate})"
    errs = sample_size.errors(total, value, flips, confidence, judging.undecided)
    if sample_size.keeps(errs, growing=growing):
        return ""
    alarms, misses = (f"{100 * share:.2g} %" if share >= 0.001 else "less than 0.1 %" for share in errs)
    enough = sample_size.needed(value, flips, judging.confidence, judging.undecided, task.start)
    least = sample_size.least_limit(total, flips, confidence, judging.undecided, growing=growing)
    other = f", and so does a limit of {format_value(least, 'points')} with these" if least is not None else ""
    told = sample_size.told_by(value, flips, judging.confidence)
    if total < told:
        other += f"; {told:,} tell it from no drop"
    return (
        f"{head}: with {total:,} questions, {alarms} of methods that lose half of {points} fail, and {misses} of those "
        f"that lose twice as much pass; {enough:,} questions keep that to 1 % and 5 %{other} ({rate})"
    )


def expected_flips(method: Method, task: Task, judging: Judging, known: FlipRates) -> tuple[float, str]:
    """How many percent of a task's questions a method is expected to flip, and who says so."""
    if judging.expected_flips is not None:
        return judging.expected_flips, "`expected_flips`"
    remembered = known.rates.get(flip_key(method, task))
    if remembered is not None:
        return remembered.percent, f"as measured {remembered.at}"
    return sample_size.FLIPS, "assumed"


def flip_key(method: Method, task: Task) -> str:
    """Other options, another question set: another rate. How many questions, and drawn by which seed, is no matter."""
    return codec.key_of([codec.to_builtins(method.subject), task.name, task.file, task.style, task.harness])
