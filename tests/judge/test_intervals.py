"""Intervals and tests: published examples, scipy's figures, and how often the bounds hold."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantbudget.core.verdict import OVER, UNDECIDED, WITHIN
from pytest_quantbudget.judge import distributions, intervals, sequential
from pytest_quantbudget.judge.intervals import Interval, Paired

quick = settings(max_examples=100, deadline=None, derandomize=True)
confidences = st.sampled_from([0.5001, 0.8, 0.9, 0.95, 0.975, 0.99, 0.99999])


@st.composite
def pairs(draw: Callable[..., Any]) -> Paired:
    """Any counts on up to a million questions, extremes among them."""
    n = draw(st.one_of(st.integers(1, 60), st.integers(1, 10**6)))
    b = draw(st.one_of(st.just(0), st.just(n), st.integers(0, n)))
    return Paired(n, b, draw(st.one_of(st.just(0), st.just(n - b), st.integers(0, n - b))))


@pytest.mark.parametrize(
    ("paired", "confidence", "low", "high"),
    [
        # Tango 1998, Statistics in Medicine 17, 891-908: the examples of sections 6.1 (90 %) and 6.2 (95 %, two-sided).
        (Paired(44, 0, 1), 0.95, -0.096, 0.037),
        (Paired(32, 9, 3), 0.975, -0.027, 0.390),
        # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, 2850-2875: airways, complete response.
        (Paired(21, 1, 7), 0.975, -0.517, -0.026),
        (Paired(161, 6, 16), 0.975, -0.124, -0.005),
        # Agresti and Min 2005, Statistics in Medicine 24, 729-740.
        (Paired(86, 16, 8), 0.975, -0.020, 0.207),
    ],
)
def test_bounds_of_a_drop_are_the_published_ones(paired: Paired, confidence: float, low: float, high: float) -> None:
    found = paired.drop_interval(confidence)
    assert (round(found.low / 100, 3), round(found.high / 100, 3)) == (low, high)


def test_outcomes_become_counts() -> None:
    told = intervals.pair([True, True, True, False, False], [True, False, False, True, False])
    assert told == Paired(5, 2, 1)
    assert (told.drop, told.flips) == (20.0, 60.0)
    for before, after in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match=f"{len(before)} and {len(after)} outcomes cannot be paired"):
            intervals.pair(before, after)


@quick
@given(pairs(), confidences)
def test_bounds_of_a_drop_enclose_it_never_collapse_and_do_not_depend_on_the_order(
    paired: Paired, confidence: float
) -> None:
    found = paired.drop_interval(confidence)
    assert -100 <= found.low <= paired.drop <= found.high <= 100
    assert found.low < found.high
    other = Paired(paired.n, paired.c, paired.b).drop_interval(confidence)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


@quick
@given(pairs(), st.lists(confidences, min_size=2, max_size=2, unique=True))
def test_more_confidence_is_wider(paired: Paired, two: Sequence[float]) -> None:
    for bounds in (paired.drop_interval, paired.flips_interval):
        inner, outer = (bounds(confidence) for confidence in sorted(two))
        assert outer.low <= inner.low
        assert inner.high <= outer.high
        assert outer.low < inner.low or inner.high < outer.high


@quick
@given(pairs(), confidences, st.floats(-99, 99))
def test_a_drop_is_on_the_side_on_which_its_score_is(paired: Paired, confidence: float, limit: float) -> None:
    """So the bounds, the p-value and simulations by score tell the same."""
    score, z = paired.score(limit), distributions.normal_quantile(confidence)
    if abs(abs(score) - z) > 1e-6:
        side = OVER if score > z else WITHIN if score < -z else UNDECIDED
        assert paired.drop_interval(confidence).side("max", limit) == side


@quick
@given(pairs())
def test_against_no_drop_it_is_mcnemars_test(paired: Paired) -> None:
    """McNemar 1947, Psychometrika 12, 153-157; the p-value is that of the normal distribution."""
    b, c = paired.b, paired.c
    z = (b - c) / math.sqrt(b + c) if b + c else 0.0
    assert paired.score(0) == pytest.approx(z, rel=1e-6, abs=1e-6)
    assert paired.p_over(0) == pytest.approx(scipy.stats.norm.sf(z), rel=1e-4, abs=1e-300)


def test_a_limit_is_judged_on_its_own_side() -> None:
    bounds = Interval(1.0, 2.0)
    assert [bounds.side("max", value) for value in (2.0, 1.5, 1.0, 0.9)] == [WITHIN, UNDECIDED, UNDECIDED, OVER]
    assert [bounds.side("min", value) for value in (1.0, 1.5, 2.0, 2.1)] == [WITHIN, UNDECIDED, UNDECIDED, OVER]
    assert Interval(-math.inf, math.inf).side("max", 1e9) == UNDECIDED


def score_coverage(n: int, flips: float, drop: float, z: float) -> tuple[float, float]:
    """How often the lower and the upper bound hold: all counts, each with its probability."""
    both = scipy.stats.binom.pmf(range(n + 1), n, flips / 100)
    lower = upper = 0.0
    for k in range(n + 1):
        if both[k] > 1e-10:
            chances = both[k] * scipy.stats.binom.pmf(range(k + 1), k, (1 + drop / flips) / 2)
            scores = np.array([Paired(n, b, k - b).score(drop) for b in range(k + 1)])
            lower += chances[scores <= z].sum()
            upper += chances[scores >= -z].sum()
    return lower, upper


@pytest.mark.parametrize("n", [30, 100, 200])
def test_bounds_of_a_drop_hold_about_as_often_as_they_say(n: int) -> None:
    """The worst of a finer grid is 90.7 % (docs/results/verdicts.md): where most flips are losses, and few."""
    grid = [(flips, flips * part) for flips in (1, 2, 3, 5, 8, 15) for part in (0, 0.4, 0.6, 0.8, 0.9, 1)]
    z = distributions.normal_quantile(0.95)
    held = np.array([score_coverage(n, *at, z) for at in grid])
    assert held.mean() >= 0.945
    assert held.min() >= 0.905


@pytest.mark.parametrize("n", [1, 2, 30, 1319, 10**6])
@pytest.mark.parametrize("confidence", [0.5001, 0.95, 0.99999])
def test_bounds_of_a_proportion_are_scipys(n: int, confidence: float) -> None:
    for hits in {0, 1, n // 1000, n // 2, n - 1, n}:
        found = intervals.proportion_interval(hits, n, confidence)
        theirs = scipy.stats.binomtest(hits, n).proportion_ci(2 * confidence - 1, method="exact")
        assert (found.low, found.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), rel=1e-6)
        assert found.low <= 100 * hits / n <= found.high


@pytest.mark.parametrize("freedom", [1, 2, 3.5, 10, 300, 10**6])
@pytest.mark.parametrize("confidence", [0.55, 0.95, 0.99999])
def test_quantiles_of_student_are_scipys(confidence: float, freedom: float) -> None:
    assert distributions.t_quantile(confidence, freedom) == pytest.approx(
        scipy.stats.t.ppf(confidence, freedom), rel=1e-6
    )


def test_a_mean_over_clusters_of_one_size_is_students_over_their_means() -> None:
    sums = [3.0, 4.5, 2.5, 7.0, 5.0, 4.0]
    means = [each / 10 for each in sums]
    test = scipy.stats.ttest_1samp(means, 0).confidence_interval(0.9)
    found = intervals.clustered_mean(sums, [10] * 6, 0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    # One size or not, a token counts like any other: the estimate is that of all tokens together.
    uneven = intervals.clustered_mean([1.0, 30.0, 2.0], [10, 100, 10], 0.95)
    assert (uneven.low + uneven.high) / 2 == pytest.approx(33 / 120)
    assert intervals.clustered_mean([3.0], [10], 0.95) == Interval(-math.inf, math.inf)


def test_a_share_of_tokens_counts_alike_answers_as_few_and_unlike_tokens_as_many() -> None:
    sizes = [50] * 40
    hits = np.random.default_rng(0).binomial(50, 0.9, 40).tolist()
    loose = intervals.clustered_proportion(hits, sizes, 0.95)
    alike = intervals.clustered_proportion([50] * 36 + [0] * 4, sizes, 0.95)
    independent = intervals.proportion_interval(sum(hits), 2000, 0.95)
    answers = intervals.proportion_interval(36, 40, 0.95)
    assert loose.high - loose.low == pytest.approx(independent.high - independent.low, rel=0.2)
    assert alike.high - alike.low == pytest.approx(answers.high - answers.low, rel=0.1)
    # Answers more alike than chance makes them do not make tokens count for more than one.
    even = intervals.clustered_proportion([45, 45, 46, 44] * 10, sizes, 0.95)
    assert even.high - even.low >= independent.high - independent.low
    # No difference between answers says nothing of how alike their tokens are: each answer is one observation.
    for each, size in ((50, 50), (7, 25), (0, 3)):
        same = intervals.clustered_proportion([each] * 40, [size] * 40, 0.95)
        assert same == intervals.proportion_interval(40 * (each / size), 40, 0.95)


def test_few_answers_count_for_less_as_korn_and_graubard_have_it() -> None:
    """Effective size: p (1 - p) / variance, times (normal quantile / Student's quantile) squared."""
    hits, sizes = [40, 31, 50, 12, 44, 28], [50, 40, 60, 30, 50, 40]
    p, m = sum(hits) / sum(sizes), len(sizes)
    residuals = [hit - p * size for hit, size in zip(hits, sizes, strict=True)]
    variance = m / (m - 1) * sum(each**2 for each in residuals) / sum(sizes) ** 2
    n = p * (1 - p) / variance * (scipy.stats.norm.ppf(0.95) / scipy.stats.t.ppf(0.95, m - 1)) ** 2
    found = intervals.clustered_proportion(hits, sizes, 0.95)
    assert found.low == pytest.approx(100 * scipy.stats.beta.ppf(0.05, n * p, n - n * p + 1))
    assert found.high == pytest.approx(100 * scipy.stats.beta.ppf(0.95, n * p + 1, n - n * p))


@pytest.mark.parametrize("n", [1, 4, 5, 6, 20, 101])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.999])
def test_bounds_of_a_median_are_those_of_the_sign_test(n: int, confidence: float) -> None:
    values = [float(i) for i in range(n)]
    found = intervals.median_interval(values[::-1], confidence)
    ends = [k for k in range(n) if scipy.stats.binom.cdf(k, n, 0.5) <= 1 - confidence]
    assert found == (Interval(ends[-1], n - 1 - ends[-1]) if ends else Interval(-math.inf, math.inf))


@pytest.mark.parametrize(("m", "n"), [(3, 3), (5, 4), (7, 12), (20, 6)])
def test_bounds_of_a_ratio_are_the_factors_that_the_rank_sum_test_does_not_reject(m: int, n: int) -> None:
    rng = np.random.default_rng(m * n)
    own, base = rng.lognormal(0.5, 0.2, m), rng.lognormal(0, 0.2, n)
    found = intervals.ratio_interval(own.tolist(), base.tolist(), 0.95)

    def p(factor: float, side: str) -> float:
        return float(scipy.stats.mannwhitneyu(own / factor, base, alternative=side, method="exact").pvalue)

    assert p(found.low * (1 - 1e-9), "greater") <= 0.05 < p(found.low * (1 + 1e-9), "greater")
    assert p(found.high * (1 + 1e-9), "less") <= 0.05 < p(found.high * (1 - 1e-9), "less")
    assert intervals.ratio_interval(own.tolist()[:2], base.tolist(), 0.99999) == Interval(-math.inf, math.inf)


@pytest.mark.parametrize(("m", "n", "alpha"), [(21, 21, 0.05), (25, 40, 0.05), (60, 21, 0.005)])
def test_ends_of_many_repeats_are_close_to_scipys(m: int, n: int, alpha: float) -> None:
    """Beyond 20 against 20 they are approximate."""
    full, rest = divmod(intervals._rank_sum_ends(m, n, alpha), n)
    # Two samples of which so many pairs have the first's value above the second's.
    own = [i / m + at for i, at in enumerate([n] * full + [rest - 1] + [-2] * (m - full - 1))]
    found = scipy.stats.mannwhitneyu(own, range(n), alternative="less", method="exact")
    assert found.statistic == full * n + rest
    assert 0.9 * alpha < found.pvalue <= 1.01 * alpha


@pytest.mark.parametrize("n", [5, 8, 20, 30, 31, 60])
def test_chance_orders_are_as_likely_as_kendall_says(n: int) -> None:
    rng = np.random.default_rng(n)
    for trend in (0.0, 0.1, 1.0, -2.0):
        values = (rng.normal(size=n) + trend * np.arange(n)).tolist()
        theirs = scipy.stats.kendalltau(range(n), values, method="exact" if n <= 30 else "asymptotic")
        score = round(theirs.statistic * n * (n - 1) / 2)
        assert intervals._kendall_p(n, score) == pytest.approx(theirs.pvalue, rel=1e-6)


def test_ties_make_no_order_less_likely_than_it_is() -> None:
    values = (1, 1, 2, 3, 4)
    scores = [
        sum((y > x) - (y < x) for i, x in enumerate(order) for y in order[i + 1 :])
        for order in itertools.permutations(values)
    ]
    for score in set(scores):
        assert intervals._kendall_p(5, score) >= sum(abs(s) >= abs(score) for s in scores) / len(scores) - 1e-12


def test_repeats_that_rise_have_drifted_and_those_that_vary_have_not() -> None:
    assert intervals.drift([100, 101, 103, 104, 107, 108]) == pytest.approx(107 / 101 - 1)
    assert intervals.drift([108, 107, 104, 103, 101, 100]) == pytest.approx(101 / 107 - 1)
    assert intervals.drift([100, 107, 101, 108, 99, 104]) is None  # no order
    assert intervals.drift([100, 100.1, 100.2, 100.3, 100.4, 100.5]) is None  # less than 2 %
    assert intervals.drift([1, 2, 3, 4]) is None  # too few to tell


DRAWS = 300


def tokens(rng: np.random.Generator) -> Interval:
    sizes = rng.integers(20, 100, 50)
    hits = rng.binomial(sizes, rng.beta(0.95 * 49, 0.05 * 49, 50))
    return intervals.clustered_proportion(hits.tolist(), sizes.tolist(), 0.95)


def losses(rng: np.random.Generator) -> Interval:
    sizes = rng.integers(20, 100, 40)
    return intervals.clustered_mean((sizes * rng.normal(1, 0.5, 40)).tolist(), sizes.tolist(), 0.95)


def repeats(rng: np.random.Generator) -> Interval:
    return intervals.median_interval(rng.lognormal(0, 0.1, 7).tolist(), 0.95)


def ratios(rng: np.random.Generator) -> Interval:
    own, base = rng.lognormal(0, 0.1, (2, 5)).tolist()
    return intervals.ratio_interval(own, base, 0.95)


@pytest.mark.parametrize(
    ("one", "true", "most"), [(tokens, 95.0, 0.99), (losses, 1.0, 0.98), (repeats, 1.0, 1.0), (ratios, 1.0, 0.98)]
)
def test_bounds_hold_as_often_as_they_say(one: Callable[[Any], Interval], true: float, most: float) -> None:
    """Each bound 95 % of the time, but for chance (3 standard deviations); never much more where they can be sharp."""
    rng = np.random.default_rng(5)
    found = [one(rng) for _ in range(DRAWS)]
    for held in (sum(i.low <= true for i in found), sum(i.high >= true for i in found)):
        assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / DRAWS) <= held / DRAWS <= most


# Questions that come in clusters


def test_questions_of_one_cluster_count_as_fewer() -> None:
    alone = [str(i) for i in range(200)]
    fives = [str(i // 5) for i in range(200)]
    values = [float(i % 20 < 5) for i in range(200)]  # whole clusters are alike
    assert intervals.design_effect(values, alone, 0.95) == pytest.approx(1, abs=0.02)
    assert intervals.design_effect(values, fives, 0.95) == pytest.approx(5, rel=0.1)
    assert intervals.design_effect([0.0] * 200, fives, 0.95) == 5  # how alike they are is not known
    assert intervals.design_effect(values, ["one"] * 200, 0.95) == 200
    mixed = [float(i % 5 == 0) for i in range(200)]  # clusters differ less than questions do
    assert intervals.design_effect(mixed, fives, 0.95) == 1


def test_bounds_of_clustered_questions_hold() -> None:
    """Flips that come in clusters of five: correlation 0.3, 5 %; the bounds of 1,000 questions, 300 times."""
    rng = np.random.default_rng(0)
    held = plain = 0
    clusters = [str(i // 5) for i in range(1000)]
    for _ in range(300):
        shared = np.repeat(rng.random(200) < 0.05, 5)
        own = rng.random(1000) < 0.05
        lost = np.where(rng.random(1000) < np.sqrt(0.3), shared, own).tolist()
        before, after = [True] * 1000, [not each for each in lost]
        bounds = sequential.bounds("drop", before, after, 0.95, clusters)
        held += bounds.low <= 5 <= bounds.high
        alone = sequential.bounds("drop", before, after, 0.95)
        plain += alone.low <= 5 <= alone.high
    assert held / 300 >= 0.87, "each of both bounds at 95 %, within three standard errors"
    assert plain / 300 < 0.87, "without the clusters they would not hold"
