"""Quantiles and tails of the normal, Student's t and beta distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

EPSILON = 2.0**-52  # between 1 and the next number
MOST_STEPS = 300
LOW, HIGH = -1, 1
TINY = 1e-300  # keeps a fraction that is continued from dividing by 0


def beyond(z: float) -> float:
    """The probability of more than `z` standard deviations above the mean, exact far out too."""
    return math.erfc(z / math.sqrt(2)) / 2


def normal_quantile(confidence: float) -> float:
    """How many standard deviations a one-sided bound of that confidence is away."""
    # Not at the top: reading a budget does not need it, and it is slow to import.
    from statistics import NormalDist

    return NormalDist().inv_cdf(confidence)


def t_quantile(confidence: float, freedom: float) -> float:
    """How many standard errors a one-sided bound is away, with Student's t of so many degrees of freedom."""

    def short(t: float) -> float:
        return confidence - 1 + _beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5) / 2

    high = 1.0
    while short(high) > 0:
        high *= 2
    return root(short, 0.0, high)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The quantile of the beta distribution with the parameters `a` and `b`."""
    return root(lambda x: probability - _beta_cdf(x, a, b), 0.0, 1.0)


def at_least(hits: int, n: int, share: float) -> float:
    """The binomial probability of at least so many hits."""
    return 1.0 if hits <= 0 else _beta_cdf(share, hits, n - hits + 1)


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (DLMF, https://dlmf.nist.gov/8.17.E22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or TINY)
    value = d
    for m in range(1, 10_000):  # Lentz's method
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + factor * d or TINY)
            c = 1 + factor / c or TINY
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value / a


def root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from `low` to `high` passes 0; an end where it does not.

    By secants, where an end that stays counts half (the Illinois method: Dowell and Jarratt 1971, BIT 11, 168-174), and
    halves where these are slow. The last digit may be another.
    """
    at_low, at_high = falling(low), falling(high)
    if at_low <= 0:
        return low
    if at_high >= 0:
        return high
    moved = 0
    for step in range(MOST_STEPS):
        middle = (low + high) / 2
        # So far beside the end that is next to the root, the next value is on the other side of it.
        beside = 2 * EPSILON * max(abs(low), abs(high))
        if high - low <= 2 * beside or not low < middle < high:
            break
        if step % 4 != 3 and math.isfinite(at_low - at_high):
            secant = low + (high - low) * at_low / (at_low - at_high)
            middle = min(max(secant, low + beside), high - beside)
        value = falling(middle)
        if value > 0:
            at_high /= 2 if moved == LOW else 1
            low, at_low, moved = middle, value, LOW
        else:
            at_low /= 2 if moved == HIGH else 1
            high, at_high, moved = middle, value, HIGH
    return (low + high) / 2
