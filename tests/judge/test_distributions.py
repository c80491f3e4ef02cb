"""Quantiles against scipy's, far out too; and roots of functions that are no friend of secants."""

import math
from collections.abc import Callable

import pytest
from scipy import stats

from pytest_quantbudget.judge.distributions import beta_quantile, root, t_quantile


@pytest.mark.parametrize("a", [0.15, 1.0, 3.5, 450.0, 40_000.0])
@pytest.mark.parametrize("b", [0.5, 2.0, 21.0, 1_300.0])
@pytest.mark.parametrize("probability", [1e-6, 0.025, 0.5, 0.975, 1 - 1e-6])
def test_quantiles_of_the_beta_distribution(a: float, b: float, probability: float) -> None:
    assert beta_quantile(probability, a, b) == pytest.approx(stats.beta.ppf(probability, a, b), rel=1e-8)


@pytest.mark.parametrize("freedom", [1.0, 4.0, 38.5, 9_999.0])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.975, 0.9999])
def test_quantiles_of_students_t(freedom: float, confidence: float) -> None:
    assert t_quantile(confidence, freedom) == pytest.approx(stats.t.ppf(confidence, freedom), rel=1e-8)


@pytest.mark.parametrize("at", [1e-9, 0.3, 0.999999])
@pytest.mark.parametrize(
    "falling",
    [
        lambda x: 1.0 if x < 0 else -1.0,
        lambda x: math.inf if x < 0 else -math.inf,
        lambda x: -(x**3),
        lambda x: -1e300 * x,
        lambda x: -x if x < 0 else -1e-9 * x,
    ],
    ids=["a step", "an infinite step", "flat at the root", "steep", "steep on one side"],
)
def test_a_root_is_found_to_the_last_digits_in_few_steps(at: float, falling: Callable[[float], float]) -> None:
    asked = []

    def told(x: float) -> float:
        asked.append(x)
        return falling(x - at)

    assert root(told, 0.0, 1.0) == pytest.approx(at, rel=1e-9)
    assert len(asked) < 302


def test_an_end_stands_for_a_root_that_is_beyond_it() -> None:
    assert root(lambda x: -1 - x, 0.0, 1.0) == 0.0
    assert root(lambda x: 2 - x, 0.0, 1.0) == 1.0
