"""When the answers to a growing task are enough: every limit that waits for them is decided, or none can be."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from pytest_quantbudget import planning, stats
from pytest_quantbudget.measurement import TaskResult
from pytest_quantbudget.request import Request, Rule
from pytest_quantbudget.stats import UNDECIDED, Interval

CERTAIN = 0.99  # that too many answers are cut off, before the rest is given up


def bounds(relation: str, before: Sequence[bool], after: Sequence[bool], confidence: float) -> Interval:
    """Bounds of a task's figure (percent or points) from outcomes question by question, the baseline's `before`."""
    if not relation:
        return stats.proportion_interval(sum(after), len(after), confidence)
    paired = stats.pair(before, after)
    return paired.drop_interval(confidence) if relation == "drop" else paired.flips_interval(confidence)


def confidence(result: TaskResult, asked: float) -> float:
    """The confidence of bounds on what there is of a task, so that all looks at it together have the one `asked`."""
    return planning.confidence_at(len(result.answers), result.task.start, result.total, asked)


def stopped(request: Request, device: str, result: TaskResult, baseline: TaskResult | None) -> str:
    """Why no more questions of a task need to be asked; nothing where more of them may decide something.

    Where no rule of the request holds on this device, all questions are asked: nobody says what would be enough. So
    they are for a limit that reads `auto`.
    """
    task, n = result.task, len(result.answers)
    mine = [(rule, value) for rule in request.rules if rule.task == task.name for value in _values(rule, device)]
    if task.start is None or task.name in request.whole or not mine:
        return ""
    if stats.proportion_interval(result.cut_off, n, CERTAIN).low > task.max_truncated:
        return f"too many of the first {n:,} answers were cut off"
    before = baseline.correct[:n] if baseline is not None else ()
    for rule, value in mine:
        if value is None or (rule.relation and len(before) < n):
            return ""
        found = bounds(rule.relation, before, result.correct, confidence(result, rule.confidence))
        if found.side(rule.bound, value) == UNDECIDED:
            return ""
    return "its limit was decided" if len(mine) == 1 else "all its limits were decided"


def _values(rule: Rule, device: str) -> list[float | None]:
    """The value that holds for a device, if any."""
    pairs = zip(rule.patterns, rule.values, strict=True)
    return [value for pattern, value in pairs if fnmatch.fnmatchcase(device, pattern)][:1]
