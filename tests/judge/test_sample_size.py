"""How many questions verdicts take: the promises kept, counted exactly where that can be done."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantbudget.core import verdict
from pytest_quantbudget.core.limits import ESTIMATE, FAIL, PASS
from pytest_quantbudget.judge import intervals, sample_size, sequential
from pytest_quantbudget.judge.distributions import normal_quantile
from pytest_quantbudget.judge.intervals import Interval, Paired

quick = settings(max_examples=200, deadline=None, derandomize=True)
totals = st.integers(1, 20_000)


def failing(n: int, flips: float, drop: float, limit: float, undecided: str) -> float:
    """The probability that a test fails, from those of all likely counts. All rates in percent."""
    rate = max(flips, drop) / 100
    b, c = (rate + drop / 100) / 2, (rate - drop / 100) / 2
    z = normal_quantile(0.95)
    failed = 0.0
    for lost in range(*likely(n, b)):
        wons = np.arange(*likely(n - lost, c / (1 - b)))
        chances = scipy.stats.binom.pmf(lost, n, b) * scipy.stats.binom.pmf(wons, n - lost, c / (1 - b))
        if undecided == ESTIMATE:
            fails = 100 * (lost - wons) > limit * n
        else:
            scores = np.array([Paired(n, lost, won).score(limit) for won in wons.tolist()])
            fails = scores > z if undecided == PASS else scores > -z
        failed += chances[fails].sum()
    return failed


def likely(n: int, share: float) -> tuple[int, int]:
    """The range in which counts lie but for one in a million."""
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], n, share)
    return max(0, int(low)), int(high) + 1


@pytest.mark.parametrize("undecided", [ESTIMATE, FAIL, PASS])
@pytest.mark.parametrize(
    ("limit", "flips"), [(2, 2), (2, 5), (3, 5), (3, 1), (2, 1), (5, 8), (10, 2), (25, 5), (3, 12)]
)
def test_with_as_many_questions_as_are_asked_for_tests_seldom_err(limit: float, flips: float, undecided: str) -> None:
    n = sample_size.needed(limit, flips, 0.95, undecided, None)

    def errors(n: int) -> tuple[float, float]:
        alarms, hits = (failing(n, flips, drop, limit, undecided) for drop in (limit / 2, limit * 2))
        return alarms, 1 - hits

    alarms, misses = errors(n)
    assert alarms <= 0.01
    assert misses <= 0.05
    alarms, misses = errors(n // 2)
    assert alarms > 0.01 or misses > 0.05  # it does not ask for twice as many as it takes


def test_a_limit_of_which_there_is_no_double_asks_for_questions_too() -> None:
    for undecided in (ESTIMATE, FAIL, PASS):
        assert failing(sample_size.needed(60, 10, 0.95, undecided, None), 10, 30, 60, undecided) <= 0.01


@pytest.mark.parametrize(
    ("n", "drop", "flips", "limit", "undecided"),
    [(200, 1, 5, 2, ESTIMATE), (780, 1, 5, 2, FAIL), (500, 4, 2, 2, PASS), (37, 10, 25, 5, FAIL), (300, 0, 3, 1, PASS)],
)
def test_how_often_a_test_fails_is_counted(n: int, drop: float, flips: float, limit: float, undecided: str) -> None:
    """As with scipy, over all pairs of counts."""
    counted = sample_size.failing(n, drop, flips, limit, 0.95, undecided)
    assert counted == pytest.approx(failing(n, flips, drop, limit, undecided), abs=1e-4)


def test_a_drop_takes_flips() -> None:
    """At 0.5 % flips, a drop of 2 points is all losses, and 78 questions see it in one run of five."""
    assert sample_size.failing(78, 2, 0.5, 0, 0.95, PASS) == pytest.approx(0.2, abs=0.02)
    n = sample_size.told_by(2, 0.5, 0.95)
    assert 200 <= n <= 222
    assert failing(n, 0.5, 2, 0, PASS) >= 0.8
    assert sample_size.told_by(2.0, 5, 0.95) == pytest.approx(773, rel=0.05)  # Connor's formula


@pytest.mark.parametrize("confidence", [0.7, 0.95, 0.999])
@pytest.mark.parametrize(
    ("start", "undecided"), [(None, FAIL), (50, ESTIMATE), (50, FAIL), (1000, ESTIMATE), (1000, PASS)]
)
def test_the_number_that_is_named_keeps_the_promise(confidence: float, start: int | None, undecided: str) -> None:
    n = sample_size.needed(3, 5, confidence, undecided, start)
    level = sequential.confidence_at(n, start, n, confidence)
    growing = len(sequential.looks(start, n)) > 1
    assert sample_size.keeps(sample_size.errors(n, 3, 5, level, undecided), growing=growing)
    least = sample_size.least_limit(n, 5, level, undecided, growing=growing)
    assert least is not None
    assert 2 < least <= 3  # a test's own steps are coarse


@quick
@given(st.one_of(st.none(), st.integers(10, 3000)), totals)
def test_looks_grow_and_end_with_everything(start: int | None, total: int) -> None:
    looks = sequential.looks(start, total)
    assert looks[-1] == total
    assert looks[0] == (start if len(looks) > 1 else total)
    assert all(after >= before * sequential.SMALLEST_STEP for before, after in pairwise(looks))
    assert all(after <= before * 2 * sequential.SMALLEST_STEP for before, after in pairwise(looks))


@quick
@given(st.one_of(st.none(), st.integers(10, 3000)), totals, st.sampled_from([0.6, 0.95, 0.999]))
def test_all_looks_together_err_no_more_than_one_would(start: int | None, total: int, confidence: float) -> None:
    looks = sequential.looks(start, total)
    spent = [1 - sequential.confidence_at(n, start, total, confidence) for n in looks]
    assert sum(spent) <= 1 - confidence + 1e-12
    assert sum(spent[:-1]) <= sequential.EARLY + 1e-12  # a low confidence is for the last look
    assert spent[-1] == pytest.approx((1 - confidence) / (2 if len(looks) > 1 else 1))
    assert all(alpha > 0 for alpha in spent)


def test_a_true_drop_at_the_limit_is_seldom_decided_at_any_look() -> None:
    """By simulation: on either side, at most what one look may err (and 3 standard deviations)."""
    looks, draws, limit = sequential.looks(50, 800), 1500, 3.0
    steps = np.diff((0, *looks))
    rng = np.random.default_rng(1)
    counts = np.cumsum([rng.multinomial(step, [0.04, 0.01, 0.95], draws) for step in steps], axis=0)
    over, within = np.zeros(draws, bool), np.zeros(draws, bool)
    for n, (b, c, _) in zip(looks, counts.transpose(0, 2, 1), strict=True):
        z = normal_quantile(sequential.confidence_at(n, 50, 800, 0.95))
        scores = np.array([Paired(n, *pair).score(limit) for pair in zip(b.tolist(), c.tolist(), strict=True)])
        over |= scores > z
        within |= scores <= -z
    chance = 3 * math.sqrt(0.05 * 0.95 / draws)
    assert 0.01 < over.mean() <= 0.05 + chance
    assert 0.01 < within.mean() <= 0.05 + chance


@pytest.mark.parametrize(("b", "c", "n", "limit"), [(12, 4, 200, 3.0), (12, 4, 200, 6.0), (30, 20, 500, 1.0)])
def test_the_number_that_settles_a_limit_does_if_nothing_changes(b: int, c: int, n: int, limit: float) -> None:
    paired = Paired(n, b, c)
    bounds = paired.drop_interval(0.95)
    assert bounds.side("max", limit) == verdict.UNDECIDED

    def more(times: float) -> Interval:
        return replace(paired, design=1 / times).drop_interval(0.95)

    needed = sample_size.settled_by(n, more, "max", limit)
    assert needed is not None
    assert more(needed / n).side("max", limit) != verdict.UNDECIDED
    assert more(0.85 * needed / n).side("max", limit) == verdict.UNDECIDED
    assert sample_size.settled_by(n, more, "max", paired.drop) is None


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01, 0.001])
def test_the_fewest_repeats_are_the_first_that_bound_anything(alpha: float) -> None:
    def bounded(values: Sequence[float], paired: bool) -> bool:
        one = (
            intervals.ratio_interval(values, values, 1 - alpha)
            if paired
            else intervals.median_interval(values, 1 - alpha)
        )
        return math.isfinite(one.low)

    for paired in (False, True):
        n = sample_size.fewest_repeats(alpha, paired=paired)
        assert bounded([1.0 + i for i in range(n)], paired)
        assert not bounded([1.0 + i for i in range(n - 1)], paired)


def test_holms_p_values() -> None:
    """Four hypotheses; R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives the same. At 0.05, two are rejected."""
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.5]) == [1.0, 1.0]
    assert intervals.holm([0.2]) == [0.2]
    assert intervals.holm([]) == []


@quick
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_is_between_none_and_bonferronis(p_values: list[float]) -> None:
    adjusted = intervals.holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [q for _, q in pairs] == sorted(adjusted)
