"""How many questions verdicts take: the promises kept, counted exactly where that can be done."""

import math
from collections.abc import Sequence
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
from pytest_quantbudget.judge.intervals import Paired

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
    n = sample_size.asked_for(limit, flips, 0.95, undecided)

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
        assert failing(sample_size.asked_for(60, 10, 0.95, undecided), 10, 30, 60, undecided) <= 0.01


def test_what_questions_resolve_are_the_published_figures() -> None:
    """At 5 % flips, 95 % confidence and 80 % power: 2.49 * sqrt(flips / n) (docs/statistics.md)."""
    assert [round(sample_size.resolves(n, 5, 0.95), 1) for n in (200, 500, 1319)] == [3.9, 2.5, 1.5]
    assert sample_size.told_by(2.0, 5, 0.95) == math.ceil((1.6449 + 0.8416) ** 2 * 0.05 / 0.02**2) == 773


@quick
@given(st.floats(0.1, 50), st.floats(0.1, 50), st.sampled_from([0.8, 0.95, 0.999]))
def test_the_number_that_tells_a_drop_is_the_smallest_that_resolves_it(
    drop: float, flips: float, confidence: float
) -> None:
    n = sample_size.told_by(drop, flips, confidence)
    assert sample_size.resolves(n, flips, confidence) <= drop * (1 + 1e-9)
    assert n == 1 or sample_size.resolves(n - 1, flips, confidence) > drop * (1 - 1e-9)


def test_five_percent_errors_and_power_are_what_is_resolved() -> None:
    """At the drop that is resolved, 80 % of runs tell it from none; where there is none, 5 % do."""
    n = 500
    drop = sample_size.resolves(n, 5, 0.95)
    assert failing(n, 5, drop, 0, PASS) == pytest.approx(0.8, abs=0.02)
    assert failing(n, 5, 0, 0, PASS) == pytest.approx(0.05, abs=0.005)


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
    assert sum(spent) == pytest.approx(1 - confidence)
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
    reach = bounds.high - paired.drop if limit > paired.drop else paired.drop - bounds.low
    needed = sample_size.settled_by(n, reach, abs(limit - paired.drop))
    assert needed is not None

    def side(times: float) -> str:
        return Paired(round(n * times), round(b * times), round(c * times)).drop_interval(0.95).side("max", limit)

    assert side(1.15 * needed / n) != verdict.UNDECIDED  # "about"
    assert side(0.75 * needed / n) == verdict.UNDECIDED
    assert sample_size.settled_by(n, 1.0, 0.0) is None
    assert sample_size.settled_by(n, 1.0, 1e-9) is None


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
