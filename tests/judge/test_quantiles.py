"""Bounds of percentiles: counted out exactly, compared with scipy, and how often they hold."""

import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantbudget.judge import intervals

quick = settings(max_examples=200, deadline=None, derandomize=True)
shares = st.integers(1, 99).map(lambda percentile: percentile / 100)
confidences = st.sampled_from([0.8, 0.9, 0.95, 0.975, 0.99, 0.9999])
values = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@quick
@given(values, shares)
def test_a_quantile_is_numpys(observed: list[float], share: float) -> None:
    assert intervals.quantile(observed, share) == pytest.approx(float(np.percentile(observed, 100 * share)))


@pytest.mark.parametrize(
    ("observed", "share", "found"), [((1.0, math.inf), 0.0, 1.0), ((1.0, math.inf), 0.5, math.inf)]
)
def test_a_quantile_next_to_what_has_no_end_has_none(observed: tuple[float, ...], share: float, found: float) -> None:
    assert intervals.quantile(observed, share) == found


@quick
@given(st.integers(1, 400), shares, confidences)
def test_the_ranks_are_the_innermost_that_a_binomial_count_allows(n: int, share: float, confidence: float) -> None:
    found = intervals.quantile_interval(range(1, n + 1), share, confidence)
    below = scipy.stats.binom(n, share)
    # The value of a rank is at most the quantile where at least so many values lie below it.
    lows = [rank for rank in range(1, n + 1) if below.sf(rank - 1) >= confidence - 1e-12]
    highs = [rank for rank in range(1, n + 1) if below.cdf(rank - 1) >= confidence - 1e-12]
    assert (found.low, found.high) == (max(lows, default=-math.inf), min(highs, default=math.inf))


@quick
@given(shares, confidences)
def test_as_many_as_are_said_to_be_enough_are_and_one_less_is_not(share: float, confidence: float) -> None:
    for bound in ("min", "max"):
        n = intervals.fewest_for_quantile(share, confidence, bound)
        ends = [intervals.quantile_interval(range(many), share, confidence) for many in (n, n - 1) if many]
        assert [math.isfinite(end.low if bound == "min" else end.high) for end in ends] == [True, False][: len(ends)]


@quick
@given(values, shares, confidences)
def test_bounds_of_more_alike_are_never_wider(observed: list[float], share: float, confidence: float) -> None:
    once = intervals.quantile_interval(observed, share, confidence)
    often = intervals.quantile_interval(observed, share, confidence, 16.0)
    assert intervals.quantile_interval(observed * 16, share, confidence) == often
    assert often.high <= once.high


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.95, 100), (0.95, 200), (0.99, 500)])
def test_each_bound_of_a_percentile_holds_as_often_as_promised(share: float, n: int) -> None:
    drawn, true, runs = random.Random(1), -math.log(1 - share), 1000
    found = [intervals.quantile_interval([drawn.expovariate(1) for _ in range(n)], share, 0.95) for _ in range(runs)]
    # Two standard deviations of so many runs.
    least = 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)
    assert sum(bounds.low <= true for bounds in found) / runs >= least
    assert sum(true <= bounds.high for bounds in found) / runs >= least


def alike(drawn: random.Random, count: int, size: int) -> list[list[float]]:
    """Waits of requests each of which has a pace of its own: logarithms are a sum of two normal values."""
    paces = (drawn.gauss(0, 1) for _ in range(count))
    return [[math.exp(pace + drawn.gauss(0, 1)) for _ in range(size)] for pace in paces]


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_bounds_of_waits_hold_where_those_of_a_request_are_alike_and_plain_ones_do_not(share: float) -> None:
    true = math.exp(math.sqrt(2) * float(scipy.stats.norm.ppf(share)))
    drawn, runs = random.Random(2), 150
    groups = [alike(drawn, 60, 15) for _ in range(runs)]
    clustered = [intervals.clustered_quantile_interval(each, share, 0.95) for each in groups]
    plain = [intervals.quantile_interval([v for one in each for v in one], share, 0.95) for each in groups]
    for told, least, most in ((clustered, 0.91, 1.0), (plain, 0.0, 0.88)):
        assert least <= sum(bounds.low <= true for bounds in told) / runs <= most
        assert least <= sum(true <= bounds.high for bounds in told) / runs <= most


def test_waits_of_one_request_bound_nothing() -> None:
    for clusters in ([[1.0, 2.0, 3.0]], [[], [1.0], []]):
        assert intervals.clustered_quantile_interval(clusters, 0.5, 0.95) == intervals.Interval(-math.inf, math.inf)


def test_equal_waits_of_many_requests_are_their_own_bound() -> None:
    found = intervals.clustered_quantile_interval([[0.02, 0.02]] * 100, 0.5, 0.95)
    assert found == intervals.Interval(0.02, 0.02)
