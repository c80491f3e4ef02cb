"""How often bounds that promise 95 % hold: the paired score's exactly, the others' by simulation.

    python benchmarks/interval_coverage.py [--draws 4000] [--seed 0]

Prints Markdown, in about two minutes on one core. Each bound is one-sided and counted alone. For the paired score, all
counts of lost and won questions are enumerated with their multinomial probabilities; of a recovery, counts are drawn.
Newcombe's interval (1998, Statistics in Medicine 17, 2635-2650, method 10) also needs the questions that both models
had right: it is simulated.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.distributions import normal_quantile
from pytest_quantbudget.judge.intervals import Interval, Paired
from pytest_quantbudget.judge.recovery import Recovered

CONFIDENCE = 0.95
ACCURACY = 0.85  # of the baseline, for Newcombe's interval
SIZES = (20, 50, 100, 200, 500)
FLIPS = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0)  # percent
PARTS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # of the flips that the drop is

TAIL = math.exp(normal_quantile(0.99))  # of a log-normal distribution

Floats = NDArray[np.float64]


def binomial(n: int, share: float) -> list[float]:
    """Probabilities of 0 to n."""
    if share in (0.0, 1.0):
        return [float(k == n * share) for k in range(n + 1)]
    logs = (math.log(share), math.log1p(-share))
    whole = math.lgamma(n + 1)
    return [
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * logs[0] + (n - k) * logs[1])
        for k in range(n + 1)
    ]


def score(n: int, flips: float, drop: float) -> tuple[float, float]:
    """Coverage of the lower and of the upper bound, in percent, at a true drop."""
    z = normal_quantile(CONFIDENCE)
    lower = upper = 0.0
    for both, weight in enumerate(binomial(n, flips / 100)):
        if weight > 1e-12:
            for lost, chance in enumerate(binomial(both, (1 + drop / flips) / 2)):
                found = Paired(n, lost, both - lost).score(drop)
                lower += weight * chance * (found <= z)
                upper += weight * chance * (found >= -z)
    return 100 * lower, 100 * upper


def wilson(hits: Floats, n: int) -> tuple[Floats, Floats]:
    """Bounds of proportions (Wilson 1927, Journal of the American Statistical Association 22, 209-212)."""
    z, p = normal_quantile(CONFIDENCE), hits / n
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


def newcombe(rng: np.random.Generator, n: int, flips: float, drop: float, draws: int) -> tuple[float, float]:
    """The same of Newcombe's interval."""
    lost, won = (flips + drop) / 200, (flips - drop) / 200
    counts = rng.multinomial(n, [lost, won, ACCURACY - lost, 1 - ACCURACY - won], draws).astype(float)
    b, c, right, wrong = counts.T
    sides = [(right + b, *wilson(right + b, n)), (right + c, *wilson(right + c, n))]
    margins = (right + b) * (wrong + c) * (right + c) * (wrong + b)
    excess = right * wrong - b * c
    excess = np.where(excess > n / 2, excess - n / 2, np.where(excess < 0, excess, 0.0))
    phi = np.where(margins > 0, excess / np.sqrt(np.maximum(margins, 1.0)), 0.0)
    (x, low_x, high_x), (y, low_y, high_y) = ((hits / n, low, high) for hits, low, high in sides)
    reach = []
    for first, second in (((x - low_x), (high_y - y)), ((high_x - x), (y - low_y))):
        reach.append(np.sqrt(np.maximum(0.0, first**2 - 2 * phi * first * second + second**2)))
    found, true = (b - c) / n, drop / 100
    held = found - reach[0] <= true + 1e-12, found + reach[1] >= true - 1e-12
    return 100 * float(held[0].mean()), 100 * float(held[1].mean())


def paired(rng: np.random.Generator, draws: int) -> None:
    """Mean and worst coverage over flips and drops, by size."""
    print("Mean · worst of the lower and of the upper bound:\n")
    print("| questions | score, lower | score, upper | Newcombe, lower | Newcombe, upper |")
    print("| --- | --- | --- | --- | --- |")
    for n in SIZES:
        grid = [(flips, flips * part) for flips in FLIPS for part in PARTS]
        sides = [*zip(*(score(n, *at) for at in grid), strict=True)]
        sides += [*zip(*(newcombe(rng, n, *at, draws) for at in grid), strict=True)]
        cells = (f"{sum(side) / len(side):.1f} · {min(side):.1f}" for side in sides)
        print(f"| {n} | " + " | ".join(cells) + " |")
    print()


def recovery(rng: np.random.Generator, draws: int) -> None:
    """Mean and worst coverage of the bounds of a recovery, over flips and drops, by baseline's score and size."""
    z = normal_quantile(CONFIDENCE)
    print("Of a recovery, mean · worst over flips of 1 to 20 % and drops of none to all of them:\n")
    print("| questions | baseline's score | lower | upper |")
    print("| --- | --- | --- | --- |")
    for n, score_of in ((n, each) for n in SIZES[1:] for each in (0.3, 0.6, 0.9)):
        held = []
        for flips, part in ((f, p) for f in (1.0, 2.0, 5.0, 10.0, 20.0) for p in (0.0, 0.5, 1.0)):
            lost, won = flips * (1 + part) / 200, flips * (1 - part) / 200
            shares = [score_of - lost, lost, won, 1 - score_of - won]
            if min(shares) < 0:
                continue
            true = (score_of - lost + won) / score_of
            # Many draws are alike: each set of counts is judged once.
            each, times = np.unique(rng.multinomial(n, shares, draws)[:, :3], axis=0, return_counts=True)
            scores = np.array([Recovered(*map(int, counts)).score(true) for counts in each])
            held.append([100 * float(times[side].sum()) / draws for side in (scores <= z, scores >= -z)])
        cells = (f"{sum(side) / len(side):.1f} · {min(side):.1f}" for side in zip(*held, strict=True))
        print(f"| {n} | {100 * score_of:g} % | " + " | ".join(cells) + " |")
    print()


def lengths(rng: np.random.Generator, n: int, spread: float) -> Interval:
    """Bounds of a ratio of lengths whose true value is 1: log-normal between questions, and between the two models."""
    base, own = (rng.lognormal(4.5, 0.6, n) * rng.lognormal(0, spread, (2, n))).round() + 1
    return intervals.clustered_ratio(own.astype(int).tolist(), base.astype(int).tolist(), CONFIDENCE)


def tokens(rng: np.random.Generator, share: float, alike: float, m: int) -> Interval:
    """Bounds of a share of tokens: `m` answers of 20 to 99 tokens, whose intraclass correlation is `alike`."""
    sizes = rng.integers(20, 100, m)
    each = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), m) if alike else share
    return intervals.clustered_proportion(rng.binomial(sizes, each).tolist(), sizes.tolist(), CONFIDENCE)


def mean(rng: np.random.Generator, m: int) -> Interval:
    """Bounds of a mean over tokens, of which each answer's is drawn from an exponential distribution of mean 1."""
    sizes = rng.integers(20, 100, m)
    return intervals.clustered_mean((sizes * rng.exponential(1.0, m)).tolist(), sizes.tolist(), CONFIDENCE)


def tail(rng: np.random.Generator, m: int, alike: float) -> Interval:
    """Bounds of percentile 99 over `m` answers of 50 tokens, log-normal, whose logarithms are correlated by `alike`."""
    logs = math.sqrt(alike) * rng.normal(0, 1, (m, 1)) + math.sqrt(1 - alike) * rng.normal(0, 1, (m, 50))
    return intervals.clustered_quantile_interval(np.exp(logs).tolist(), 0.99, CONFIDENCE)


def median(rng: np.random.Generator, n: int) -> Interval:
    """Bounds of the median of `n` repeats around 1."""
    return intervals.median_interval(rng.lognormal(0, 0.1, n).tolist(), CONFIDENCE)


def ratio(rng: np.random.Generator, n: int) -> Interval:
    """Bounds of the factor between `n` repeats and `n` others of the same median."""
    own, base = rng.lognormal(0, 0.1, (2, n)).tolist()
    return intervals.ratio_interval(own, base, CONFIDENCE)


def others(rng: np.random.Generator, draws: int) -> None:
    """Coverage of the remaining bounds, one setting a row."""
    settings: list[tuple[str, float, Callable[[], Interval]]] = []
    for m in (50, 200):
        for share, alike in ((0.9, 0.02), (0.99, 0.0), (0.99, 0.02), (0.99, 0.2), (0.999, 0.02)):
            words = f"{100 * share:g} % of the tokens of {m} answers, correlation {alike:g}"
            settings.append((words, 100 * share, partial(tokens, rng, share, alike, m)))
    settings += [
        (f"mean over the tokens of {m} answers, exponential", 1.0, partial(mean, rng, m)) for m in (10, 50, 200)
    ]
    settings += [(f"median of {n} repeats, log-normal", 1.0, partial(median, rng, n)) for n in (5, 10, 20)]
    settings += [(f"{n} repeats against {n}, log-normal", 1.0, partial(ratio, rng, n)) for n in (3, 5, 10)]
    settings += [
        (f"tokens of {n} answers against {n}, log-normal", 1.0, partial(lengths, rng, n, 0.5)) for n in (20, 50, 200)
    ]
    settings += [
        (f"percentile 99 over {m} answers, log-normal, correlation {alike:g}", TAIL, partial(tail, rng, m, alike))
        for m, alike in ((20, 0.0), (20, 0.2), (40, 0.5))
    ]
    print("| bounds of | lower | upper |")
    print("| --- | --- | --- |")
    for words, true, one in settings:
        found = [one() for _ in range(draws)]
        lower, upper = sum(i.low <= true for i in found), sum(i.high >= true for i in found)
        print(f"| {words} | {100 * lower / draws:.1f} | {100 * upper / draws:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count how often bounds hold.")
    parser.add_argument("--draws", type=int, default=4_000, help="simulated samples of each kind (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    paired(rng, 5 * options.draws)
    recovery(rng, options.draws)
    others(rng, options.draws)


if __name__ == "__main__":
    main()
