"""How many questions a verdict takes: what so many can tell, when to look, and several limits read together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_quantbudget.stats import normal_quantile

ESTIMATE, FAIL, PASS = "estimate", "fail", "pass"  # what an undecided limit's test does
FLIPS = 5.0  # percent, where neither the budget nor an earlier run tells
POWER = 0.8
# Tests that fail where the true drop is half the limit, and that pass where it is twice the limit: planned for less
# than 1 % and 5 %, because counts are whole and answers are looked at more than once (docs/results/verdicts.md).
FALSE_ALARMS, MISSES = 0.007, 0.04
SMALLEST_STEP = 1.25  # a last look that adds less than that is not worth its share


def resolves(questions: int, flips: float, confidence: float) -> float:
    """The drop, in points, that so many paired questions tell from none with a power of 80 %, at `flips` percent.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
    207-211, with the variance at no drop.
    """
    return 100 * _reach(confidence) * math.sqrt(flips / 100 / questions)


def told_by(drop: float, flips: float, confidence: float) -> int:
    """The number of questions that tell a drop of so many points from none: the inverse of `resolves`."""
    return math.ceil((100 * _reach(confidence) / drop) ** 2 * flips / 100)


def _reach(confidence: float) -> float:
    return normal_quantile(confidence) + normal_quantile(POWER)


def asked_for(limit: float, flips: float, confidence: float, undecided: str = ESTIMATE) -> int:
    """The number of questions with which a drop limit's test seldom errs, whatever it does when undecided.

    At most 1 % of tests fail where the true drop is half the limit (points), and at most 5 % pass where it is twice the
    limit. From the normal approximation: a test fails where the observed drop exceeds the limit by `shift`
    standard errors. Where the drop is larger than the expected flips, all flips are losses.
    """
    shift = {ESTIMATE: 0.0, PASS: 1.0, FAIL: -1.0}[undecided] * normal_quantile(confidence)
    half, twice = (_spread(drop, flips) for drop in (limit / 2, limit * 2))
    quiet = max(0.0, normal_quantile(1 - FALSE_ALARMS) - shift) * half / (limit / 2)
    sharp = max(0.0, normal_quantile(1 - MISSES) + shift) * twice / limit
    return max(1, math.ceil(max(quiet, sharp) ** 2))


def settled_by(observations: int, reach: float, gap: float) -> int | None:
    """How many observations, to two digits, would put a limit outside the bounds, if estimate and spread stay.

    `reach` is how far the bound on the limit's side is from the estimate now, `gap` how far the limit is. None where no
    number would do, or a million would not.
    """
    if gap <= 0 or observations * (reach / gap) ** 2 > 1e6:
        return None
    needed = max(observations + 1, math.ceil(observations * (reach / gap) ** 2))
    digit: int = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // digit) * digit


def fewest_repeats(alpha: float, *, paired: bool) -> int:
    """The smallest number of repeats (of each of two sides where they are `paired`) that bounds anything."""
    n = 1
    while (1 / math.comb(2 * n, n) if paired else 0.5**n) > alpha + 1e-12:
        n += 1
    return n


def _spread(drop: float, flips: float) -> float:
    """Standard deviation of one question's contribution to the drop, in points."""
    rate, mean = max(flips, drop, 0.01) / 100, drop / 100
    return 100 * math.sqrt(max(rate - mean * mean, 1e-9))


def looks(start: int | None, total: int) -> tuple[int, ...]:
    """After how many questions the answers are looked at: `start`, doubled, up to all of them."""
    found: list[int] = []
    step = start or total
    while step * SMALLEST_STEP <= total:
        found.append(step)
        step *= 2
    return (*found, total)


def confidence_at(questions: int, start: int | None, total: int, confidence: float) -> float:
    """The confidence of the bounds after so many questions, so that all looks together err no more than one would.

    Half of what may go wrong is kept for the last look, the rest is shared evenly by those before it: alpha spending
    (Lan and DeMets 1983, Biometrika 70, 659-663) by Bonferroni's inequality, so that it holds however the looks depend
    on each other. The bounds are repeated confidence intervals (Jennison and Turnbull 1989, JRSS B 51, 305-361): they
    hold for every limit at once and whatever made the questions end.
    """
    times = looks(start, total)
    if len(times) == 1:
        return confidence
    alpha = (1 - confidence) / 2
    return 1 - (alpha if questions >= total else alpha / (len(times) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that all below alpha are significant together at alpha.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
