"""How much of a limit is used up: one scale for all limits, so that they stand under each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_quantbudget.report.ranked import Ranked

MOST = 4 / 3  # times the limit; what is more stands at the edge


@dataclass(frozen=True)
class Usage:
    """Places from 0 to 100 on a scale that ends at `MOST`; those of the bounds are None where there are none.

    `beyond` says that the figure itself is not on the scale.
    """

    at: float
    low: float | None
    high: float | None
    limit: float = 100 / MOST
    beyond: bool = False


def usage(each: Ranked) -> Usage | None:
    """Of a `max_` limit the measured value over the limit, of a `min_` limit the limit over the value.

    None where one of them is no number above 0, so that there is no such share.
    """
    verdict = each.limit.verdict
    measured, limit = verdict.measured, verdict.limit
    if measured is None or limit is None or not 0 < limit < math.inf or not math.isfinite(measured):
        return None
    upper = each.limit.name.startswith("max_")

    def share(value: float) -> float:
        return value / limit if upper else limit / value if value > 0 else math.inf

    ends = [None if end is None or math.isnan(end) else _place(share(end)) for end in (verdict.low, verdict.high)]
    low, high = ends if upper else reversed(ends)
    return Usage(_place(share(measured)), low, high, beyond=share(measured) > MOST)


def _place(share: float) -> float:
    return round(100 * min(max(share, 0.0), MOST) / MOST, 2)
