"""How many answers each method flipped when it was last measured, kept in the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import counterparts
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.units import ISO
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.resolution import NONE_KNOWN, FlipRate, FlipRates, flip_key

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement

FEWEST = 50  # questions from which a rate of flips is remembered
CONFIDENCE = 0.95  # of the upper bound that is remembered


def remembered(folder: Path) -> FlipRates:
    """What earlier runs with this cache have measured; nothing where that cannot be read."""
    try:
        return codec.from_builtins(FlipRates, codec.read_json(_file(folder).read_bytes()))
    except (OSError, ValueError):
        return NONE_KNOWN


def remember(folder: Path, budgets: Iterable[Budget], measured: Mapping[str, Measurement]) -> None:
    """Keep the rates of flips of a run. A cache that cannot be written costs only that."""
    from filelock import FileLock

    found = {key: rate for budget in budgets for key, rate in _measured(budget, measured)}
    if not found:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{_file(folder)}.lock"):
            codec.write_json(_file(folder), FlipRates({**remembered(folder).rates, **found}))


def _file(folder: Path) -> Path:
    return folder / "flips.json"


def _measured(budget: Budget, measured: Mapping[str, Measurement]) -> Iterator[tuple[str, FlipRate]]:
    from pytest_quantbudget.measure.store import now

    by_name = budget.measured(measured)
    base = by_name.get(budget.baseline) if budget.baseline is not None else None
    for method in budget.methods:
        own = by_name.get(method.name)
        if base is None or own is None or own is base:
            continue
        for task in budget.tasks.values():
            before, after = base.task(task), own.task(task)
            if before is None or after is None or len(after.answers) < FEWEST:
                continue
            pairs = [pair for pair in counterparts(before, after) if pair is not None]
            if len(pairs) == len(after.answers):
                paired = intervals.pair(after.right(pairs), after.correct)
                # Few questions tell little of the rate, and a higher one asks for more of them.
                percent = paired.flips_interval(CONFIDENCE).high
                yield flip_key(method, task), FlipRate(percent, now().strftime(ISO))
