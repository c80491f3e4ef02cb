"""How many questions a verdict takes: what so many can tell, when to look, and several limits read together."""

from __future__ import annotations

import math

from pytest_quantbudget.core.limits import ESTIMATE, FAIL, PASS
from pytest_quantbudget.judge.distributions import normal_quantile
from pytest_quantbudget.judge.intervals import deviation

FLIPS = 5.0  # percent, where neither the budget nor an earlier run tells
POWER = 0.8


# Tests that fail where the true drop is half the limit, and that pass where it is twice the limit. 0.01 is promised of
# the first: the rest is kept for the earlier looks at a growing task (docs/results/verdicts.md).
FALSE_ALARMS, MISSES = 0.0075, 0.05


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
    limit; `flips` in percent. Where the drop is larger than the flips, all flips are losses. Of a growing task,
    `confidence` is that of its last look. docs/results/verdicts.md says how well it holds.
    """
    shift = {ESTIMATE: 0.0, PASS: 1.0, FAIL: -1.0}[undecided] * normal_quantile(confidence)
    quiet = _apart(limit, limit / 2, flips, normal_quantile(1 - FALSE_ALARMS), -shift)
    sharp = _apart(limit, limit * 2, flips, normal_quantile(1 - MISSES), shift) if limit < 50 else 0.0
    return max(1, math.ceil(max(quiet, sharp)))


def _apart(limit: float, drop: float, flips: float, z: float, shift: float) -> float:
    """With how many questions the line between passing and failing is `z` deviations away from a true drop.

    The line is `shift` standard errors beyond the limit, seen from that drop. The deviations are those of skewed counts
    (Cornish and Fisher 1938, Revue de l'Institut International de Statistique 5, 307-320, first term), and counts are
    whole, so half a question is added.
    """
    true, supposed, rate = drop / 100, limit / 100, max(flips, drop) / 100
    variance = rate - true**2
    skewness = (true - 3 * true * rate + 2 * true**3) / variance  # the third moment over the second
    reach = z * math.sqrt(variance) + shift * deviation((rate + true) / 2, (rate - true) / 2, supposed)
    more = math.copysign((z**2 - 1) / 6, supposed - true) * skewness + 0.5
    gap = abs(supposed - true)
    # The line is reached where gap * n = reach * sqrt(n) + more.
    root = (reach + math.sqrt(max(0.0, reach**2 + 4 * gap * more))) / (2 * gap)
    return max(0.0, root) ** 2


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
