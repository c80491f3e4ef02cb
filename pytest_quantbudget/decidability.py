"""What a budget's drop limits can tell with the questions that they have: said before anything is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pytest_quantbudget import planning, records, stats
from pytest_quantbudget.budget import Budget, Method
from pytest_quantbudget.limits import Limit
from pytest_quantbudget.measurement import Measurement
from pytest_quantbudget.request import DUMMY, Task
from pytest_quantbudget.store import ISO, now
from pytest_quantbudget.units import format_value
from pytest_quantbudget.yamlfile import Problem

FEWEST = 50  # questions from which a rate of flips is remembered


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
    remembered = known.rates.get(_key(method, task))
    confidence = planning.confidence_at(total, task.start, total, judging.confidence)
    if judging.expected_flips is not None:
        flips, whence = judging.expected_flips, "`expected_flips`"
    elif remembered is not None:
        flips, whence = remembered.percent, f"as measured {remembered.at}"
    else:
        flips, whence = planning.FLIPS, "assumed"
    resolved = planning.resolves(total, flips, confidence)
    if resolved <= value:
        return ""
    points = format_value(value, "points")
    head = f"{method.name}: {limit.name}: {points} cannot be told from 0"
    have = f"{total:,} questions (they resolve {format_value(resolved, 'points', show_unit=False)})"
    rate = f"at {format_value(flips, '%')} flips, {whence}"
    if value == 0:
        return f"{head} with any number of questions; {have}, {rate}"
    needed = planning.told_by(value, flips, confidence)
    firm = planning.asked_for(value, flips, confidence, judging.undecided)
    errs = f"{firm:,} keep false alarms at half the limit below 1 % and misses at twice it below 5 %"
    return f"{head} with {have}; {needed:,} would, and {errs} ({rate})"


def remembered(folder: Path) -> FlipRates:
    """What earlier runs with this cache have measured; nothing where that cannot be read."""
    try:
        return records.from_builtins(FlipRates, records.read_json(_file(folder).read_bytes()))
    except (OSError, ValueError):
        return NONE_KNOWN


def remember(folder: Path, budgets: Iterable[Budget], measured: Mapping[str, Measurement]) -> None:
    """Keep the rates of flips of a run. A cache that takes nothing costs only that."""
    found = {key: rate for budget in budgets for key, rate in _measured(budget, measured)}
    if not found:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{_file(folder)}.lock"):
            records.write_json(_file(folder), FlipRates({**remembered(folder).rates, **found}))


def _file(folder: Path) -> Path:
    return folder / "flips.json"


def _key(method: Method, task: Task) -> str:
    """Other options, another question set: another rate. How many questions, and drawn by which seed, is no matter."""
    return records.key_of([records.to_builtins(method.subject), task.name, task.file, task.style, task.harness])


def _measured(budget: Budget, measured: Mapping[str, Measurement]) -> Iterator[tuple[str, FlipRate]]:
    base = measured.get(budget.method(budget.baseline).subject.key) if budget.baseline is not None else None
    for method in budget.methods:
        own = measured.get(method.subject.key)
        if base is None or own is None or own is base:
            continue
        for task in budget.tasks.values():
            before, after = base.task(task), own.task(task)
            if before is None or after is None or len(after.answers) < FEWEST:
                continue
            n = len(after.answers)
            if [a.question for a in before.answers[:n]] == [a.question for a in after.answers]:
                paired = stats.pair(before.correct[:n], after.correct)
                # One more than was seen: no flips so far does not mean that there are none.
                percent = 100 * (paired.b + paired.c + 1) / (n + 1)
                yield _key(method, task), FlipRate(percent, now().strftime(ISO))
