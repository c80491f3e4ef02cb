"""What one limit can tell with the questions and repeats that it has, in words, before anything is measured."""

from __future__ import annotations

import math

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.core.units import format_value
from pytest_quantbudget.judge import intervals, sample_size, sequential
from pytest_quantbudget.judge.distributions import beyond, normal_quantile
from pytest_quantbudget.judge.intervals import Paired
from pytest_quantbudget.judge.margin import RATE
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.base import COUNTED, FACTOR, ONCE, RANGE
from pytest_quantbudget.judge.resolution import NONE_KNOWN, FlipRates, expected_flips

FOUND = 0.95  # of runs that find a loss
STEP = 0.1  # points, in which such losses are named


def tells(budget: Budget, method: Method, limit: Limit, known: FlipRates = NONE_KNOWN) -> str:
    """What a limit can tell: how its figure varies with nothing changed, and what it finds.

    `known` are rates of flips as last measured.
    """
    metric, kind = metric_of(limit.kind), limit.kind
    if not metric.numeric and not kind.task:
        return "is read off the layers as loaded: the same in every run"
    if kind.task:
        return _of_task(budget, method, limit, known)
    if metric.margin == COUNTED:
        return "is counted: the same in every run, so that any change is told"
    if metric.margin == ONCE:
        return "is one time, of when the checkpoint was made, which is kept: there are no bounds"
    if metric.margin == RANGE:
        return "is a peak that is counted: repeats on one machine agree to the byte, or nearly"
    level = f"{100 * limit.judging.confidence:g} %"
    found = metric.extremes(kind, budget.basis_of(method.name), budget.totals, limit.judging.confidence)
    if found is not None and found.enough:
        return f"{found.n:,} {found.of} give no bounds at {level} ({found.enough:,} do): the estimate alone decides"
    parts = metric.parts(budget.basis_of(method.name), kind)
    if any(isinstance(part, Load) for part in parts):
        of = f"{method.load.requests:,} requests a level" if method.load is not None else "the requests"
        return f"has bounds by {of}; how runs differ is not in them"
    if metric.margin == FACTOR:
        timed = any(isinstance(part, Workload) for part in parts)
        of = f"a median of {budget.workload.repeats:,} repeats, with bounds at {level}" if timed else "one time"
        return f"is {of}; how much runs differ, which is often more, `--quant-noise` tells"
    return f"has bounds at {level} by the answers that it is taken on: how wide they are is known once it is measured"


def tells_change(change: ChangeLimit) -> str:
    """The same of a limit on how much a figure may change from run to run."""
    before = f"the median of the last {change.median_of:,} comparable runs" if change.median_of > 1 else "the last run"
    level = f"{100 * change.limit.judging.confidence:g} %"
    again = f", {change.in_a_row:,} runs in a row" if change.in_a_row > 1 else ""
    return f"is told against {before}{again}, with bounds at {level} by how runs of the history differ"


def _of_task(budget: Budget, method: Method, limit: Limit, known: FlipRates) -> str:
    """Of a limit on a task."""
    kind, judging = limit.kind, limit.judging
    total, task = budget.totals.get(kind.task), budget.tasks[kind.task]
    if total is None:
        return "how many questions the task has is known once it is loaded"
    confidence = sequential.confidence_at(total, task.start, total, judging.confidence)
    asked = f"{'at most ' * (task.start is not None)}{total:,} questions"
    values = [target.value for target in limit.targets if target.value is not None]
    value = min(values) if values else None
    if kind.relation == "drop" and total <= sample_size.MOST_COUNTED:
        return f"with {asked} {_drop(budget, method, limit, value, total, confidence, known)}"
    if kind.relation in ("", "flips"):
        share, what = (50.0, "a share of half") if value is None else (value, f"a share of {format_value(value, '%')}")
        bounds = intervals.proportion_interval(total * share / 100, total, confidence)
        low, high = (format_value(end, "%", show_unit=False) for end in (bounds.low, bounds.high))
        return f"with {asked} {what} has {100 * judging.confidence:g} % bounds of {low} to {high} %"
    return f"has bounds by {asked}: how wide they are is known once it is measured"


def _drop(
    budget: Budget, method: Method, limit: Limit, value: float | None, total: int, confidence: float, known: FlipRates
) -> str:
    """Which losses fail how often; of a limit that reads `auto`, which it would be where nothing was lost."""
    flips, whence = expected_flips(method, budget.tasks[limit.kind.task], limit.judging, known)
    rate = f"at {format_value(flips, '%')} flips, {whence}"
    undecided = limit.judging.undecided
    if value is None:
        half = round(total * flips / 200)
        level = 1 - beyond(math.sqrt(2) * normal_quantile(1 - RATE))
        value = max(STEP, Paired(total, half, half).drop_interval(level).high)
        begins = f"`auto` writes what is lost and a margin of about {format_value(value, 'points')}"
        lost = 0.0
    elif value == 0:
        return f"nothing tells 0.0 points from more ({rate})"
    else:
        at, little = (_share(sample_size.failing(total, drop, flips, value, confidence, undecided))
                      for drop in (value, value / 2))  # fmt: skip
        begins = f"a method that loses {format_value(value, 'points')} fails {at}, one that loses half of that {little}"
        lost = value
    found = _found(total, flips, value, confidence, undecided, lost)
    least = "no loss is sure to be found" if found is None else (
        f"a loss of {format_value(found, 'points')} is found in {100 * FOUND:g} % of runs"
    )  # fmt: skip
    return f"{begins}; {least} ({rate})"


def _found(total: int, flips: float, value: float, confidence: float, undecided: str, least: float) -> float | None:
    """The smallest true drop (points, in steps) that fails in so many runs; None where none up to 100 does."""

    def enough(step: int) -> bool:
        return sample_size.failing(total, min(100.0, step * STEP), flips, value, confidence, undecided) >= FOUND

    low, high = math.floor(least / STEP), round(100 / STEP)
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * STEP


def _share(share: float) -> str:
    """`21 %`."""
    if share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"
