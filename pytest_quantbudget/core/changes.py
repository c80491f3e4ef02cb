"""A limit on how much a figure may change for the worse from run to run: an entry of `max_change`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.problems import Columns

MAX_CHANGE = "max_change"
MEDIAN_OF = 5  # runs that a run is compared with, where the budget does not say
CONFIDENCE = 0.99  # of a bound: it is looked at in every run, and at 0.95 one run in twenty would be an alarm


@dataclass(frozen=True)
class ChangeLimit:
    """One entry of `max_change`: one test.

    `limit` is a limit on the figure without a value: it has the entry's place in the file, and how it is judged. The
    figure may get worse by at most `allowed`, in percent of what it was or in percentage points (`unit`), against the
    median of the last `median_of` comparable runs (1: the last); it is over once it has been so for `in_a_row` runs.
    Runs before `since` (ISO 8601, UTC) are not compared with.
    """

    limit: Limit
    allowed: float
    text: str
    unit: str
    median_of: int = MEDIAN_OF
    in_a_row: int = 1
    since: str = ""

    @property
    def name(self) -> str:
        """`max_change_tokens_per_s`: the last part of the test's id."""
        return f"{MAX_CHANGE}_{figure_of(self.limit.name)}"

    @property
    def file(self) -> Path:
        """Where it stands."""
        return self.limit.file

    @property
    def line(self) -> int:
        """Where it stands."""
        return self.limit.line

    @property
    def columns(self) -> Columns:
        """Where it stands."""
        return self.limit.columns


def figure_of(limit: str) -> str:
    """What a limit is on: its name without `min_` or `max_`."""
    return limit.removeprefix("min_").removeprefix("max_") if limit[:4] in ("min_", "max_") else limit
