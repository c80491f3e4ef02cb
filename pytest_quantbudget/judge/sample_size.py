"""How many questions a verdict takes: what so many can tell, when to look, and several limits read together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from pytest_quantbudget.core.limits import ESTIMATE, FAIL, PASS
from pytest_quantbudget.core.verdict import UNDECIDED
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.judge.distributions import at_least, normal_quantile
from pytest_quantbudget.judge.intervals import Interval, Paired, deviation

FLIPS = 5.0  # percent, where neither the budget nor an earlier run tells
POWER = 0.8
# Tests that fail where the true drop is half the limit, and that pass where it is twice the limit.
FALSE_ALARMS, MISSES = 0.01, 0.05
# Of a growing task, as the last look may have them: the rest is kept for those before it (docs/results/verdicts.md).
LAST_FALSE_ALARMS, LAST_MISSES = 0.0075, 0.045
SPREAD = 5.0  # standard deviations of the number of flips beyond which nothing is counted
MOST_COUNTED = 20_000  # questions: the approximation is good there, and counting takes long
FINER = 0.1  # points: so exactly are limits and drops named


@functools.lru_cache(maxsize=4096)
def failing(questions: int, drop: float, flips: float, limit: float, confidence: float, undecided: str) -> float:
    """The probability that a drop limit's test fails, counted over all outcomes that are likely.

    `drop` is the true one (points), `flips` the share of questions that change sides (percent); where the drop is
    larger, all flips are losses. Given a number of flips, a test fails from some number of losses on.
    """
    rate = max(flips, drop) / 100
    losses = (rate + drop / 100) / (2 * rate) if rate else 0.0
    spread = SPREAD * math.sqrt(questions * rate * (1 - rate)) + SPREAD
    low, high = max(0, math.floor(questions * rate - spread)), min(questions, math.ceil(questions * rate + spread))
    z = {ESTIMATE: 0.0, PASS: 1.0, FAIL: -1.0}[undecided] * normal_quantile(confidence)

    def fails(lost: int, flipped: int) -> bool:
        paired = Paired(questions, lost, flipped - lost)
        # Rounding must not make a drop at the limit one above it.
        return paired.drop > limit + 1e-9 if undecided == ESTIMATE else paired.score(limit) > z

    total, fewest = 0.0, 0
    for flipped in range(low, high + 1):
        # With one more flip, it takes as many losses as before, or one more.
        while fewest <= flipped and not fails(fewest, flipped):
            fewest += 1
        if fewest <= flipped:
            total += _chance(flipped, questions, rate) * at_least(fewest, flipped, losses)
    return min(1.0, total)


def _chance(hits: int, n: int, share: float) -> float:
    """The binomial probability of so many hits."""
    if share in (0.0, 1.0):
        return float(hits == round(n * share))
    logs = math.lgamma(n + 1) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    return math.exp(logs + hits * math.log(share) + (n - hits) * math.log1p(-share))


def errors(questions: int, limit: float, flips: float, confidence: float, undecided: str) -> tuple[float, float]:
    """How often a drop limit's test errs with so many questions: shares of false alarms and of misses.

    A false alarm fails where the true drop is half the limit (points), a miss passes where it is twice the limit;
    `flips` in percent. Of a growing task, `confidence` is that of its last look.
    """
    alarms = failing(questions, limit / 2, flips, limit, confidence, undecided)
    missed = 1 - failing(questions, limit * 2, flips, limit, confidence, undecided) if limit <= 50 else 0.0
    return alarms, missed


def keeps(errs: tuple[float, float], *, growing: bool) -> bool:
    """Whether errors are as seldom as promised."""
    most = (LAST_FALSE_ALARMS, LAST_MISSES) if growing else (FALSE_ALARMS, MISSES)
    return errs[0] <= most[0] and errs[1] <= most[1]


def least_limit(
    questions: int, flips: float, confidence: float, undecided: str = ESTIMATE, *, growing: bool = False
) -> float | None:
    """The smallest drop limit (points) with which so many questions keep the promise; None where none does."""
    low, high = 0, round(50 / FINER)  # in steps of FINER

    def kept(step: int) -> bool:
        return keeps(errors(questions, step * FINER, flips, confidence, undecided), growing=growing)

    if not kept(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return round(high * FINER, 1)


def told_by(drop: float, flips: float, confidence: float) -> int:
    """The number of questions that tell a drop of so many points from none with a power of 80 %, at `flips` percent.

    A drop takes flips: of one that is larger than the flips, all are losses. Counted; the approximation is that of
    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43,
    207-211.
    """
    reach = normal_quantile(confidence) + normal_quantile(POWER)
    about = (100 * reach / drop) ** 2 * max(flips, drop) / 100
    return _enough(about, lambda n: failing(n, drop, flips, 0.0, confidence, PASS) >= POWER)


def needed(limit: float, flips: float, confidence: float, undecided: str, start: int | None) -> int:
    """The number of questions with which a drop limit's test errs as seldom as promised, whatever it does undecided.

    Of a growing task, `start` is how many are asked first: the bounds of its last look have another confidence.
    """

    def last(n: int) -> tuple[float, bool]:
        return sequential.confidence_at(n, start, n, confidence), len(sequential.looks(start, n)) > 1

    def kept(n: int) -> bool:
        level, growing = last(n)
        return keeps(errors(n, limit, flips, level, undecided), growing=growing)

    about = _asked_for(limit, flips, last(10**9)[0], undecided)
    return max(_enough(about, kept), (start or 0) + 1)


def _enough(about: float, holds: Callable[[int], bool]) -> int:
    """The first number from the one that it is `about` on, within 1 %, with which something holds.

    With the next few too: counts are whole, so that a single number may be lucky.
    """
    low, high = 0, max(1, math.ceil(about))
    if high > MOST_COUNTED:
        return high
    while not holds(high):
        low, high = high, math.ceil(1.2 * high)
    while high - low > high / 100 + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    while not all(holds(high + more) for more in (0, math.ceil(high / 100), math.ceil(high / 50))):
        high += math.ceil(high / 100)
    return high


def _asked_for(limit: float, flips: float, confidence: float, undecided: str = ESTIMATE) -> int:
    """About the number that `needed` finds, without counting: arguments as there.

    `confidence` is that of the last look. Where the drop is larger than the flips, all flips are losses.
    """
    shift = {ESTIMATE: 0.0, PASS: 1.0, FAIL: -1.0}[undecided] * normal_quantile(confidence)
    quiet = _apart(limit, limit / 2, flips, normal_quantile(1 - LAST_FALSE_ALARMS), -shift)
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


def settled_by(
    observations: int, more: Callable[[float], Interval], bound: str, value: float, most: int = 1_000_000
) -> int | None:
    """How many observations, to two digits, would put a limit outside the bounds, if they stay as they are.

    `more` gives the bounds of so many times the observations. None where `most` of them would not do.
    """
    low, high = 1.0, 2.0
    while more(high).side(bound, value) == UNDECIDED:
        low, high = high, 2 * high
        if observations * low > most:
            return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if more(middle).side(bound, value) == UNDECIDED else (low, middle)
    count = max(observations + 1, math.ceil(observations * high))
    digit: int = 10 ** max(0, len(str(count)) - 2)
    count = -(-count // digit) * digit
    return count if count <= most else None


def fewest_repeats(alpha: float, *, paired: bool) -> int:
    """The smallest number of repeats (of each of two sides where they are `paired`) that bounds anything."""
    n = 1
    while (1 / math.comb(2 * n, n) if paired else 0.5**n) > alpha + 1e-12:
        n += 1
    return n
