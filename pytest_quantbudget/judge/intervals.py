"""Paired comparison of answers, and intervals for everything that is judged on more than one observation.

Every interval is two one-sided bounds, each of which holds with the confidence that is asked for: a limit is on one
side, so 0.95 means that at most 5 % of verdicts are wrong, in either direction. scipy has none for paired
proportions and statsmodels has none either; the bare install needs no numpy for the rest, which is short
(tests/judge/test_intervals.py compares it with scipy).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.verdict import OVER, UNDECIDED, WITHIN
from pytest_quantbudget.judge.distributions import at_least, beta_quantile, beyond, normal_quantile, root, t_quantile


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that all below alpha are significant together at alpha.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


@dataclass(frozen=True)
class Interval:
    """Lower and upper bound of a figure, in its unit; infinite where the observations bound nothing."""

    low: float
    high: float

    def side(self, bound: str, value: float) -> str:
        """On which side of a limit (`max` or `min`) all of it lies; `undecided` where it lies on both."""
        if bound == "max":
            return WITHIN if self.high <= value else OVER if self.low > value else UNDECIDED
        return WITHIN if self.low >= value else OVER if self.high < value else UNDECIDED


@dataclass(frozen=True)
class Paired:
    """Discordant counts of two models on `n` questions: `b` went from right to wrong, `c` from wrong to right.

    With the `design` effect, so many questions tell as much as one that has nothing to do with the others.
    """

    n: int
    b: int
    c: int
    design: float = 1.0

    @property
    def drop(self) -> float:
        """Loss of accuracy in percentage points; negative where the second model is better."""
        return 100 * (self.b - self.c) / self.n

    @property
    def flips(self) -> float:
        """Percent of questions whose outcome changed, in either direction.

        Dutta et al. 2024, "Accuracy is Not All You Need", arXiv 2407.09141, section 3: quantized models of equal
        accuracy may answer many questions differently.
        """
        return 100 * (self.b + self.c) / self.n

    def score(self, drop: float) -> float:
        """How many standard errors the observed drop is above a supposed one of `drop` points.

        Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 17, 891-908.
        """
        n, supposed = self.n, drop / 100
        difference = (self.b - self.c) / n - supposed
        error = deviation(self.b / n, self.c / n, supposed) / math.sqrt(n / self.design)
        if error == 0:
            return 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return difference / error

    def drop_interval(self, confidence: float) -> Interval:
        """Bounds of the drop, in points: the supposed drops that the score does not contradict (Tango 1998)."""
        z = normal_quantile(confidence)
        low = root(lambda drop: self.score(drop) - z, -100.0, self.drop)
        return Interval(low, root(lambda drop: self.score(drop) + z, self.drop, 100.0))

    def flips_interval(self, confidence: float) -> Interval:
        """Bounds of the share of flips, in percent."""
        return proportion_interval((self.b + self.c) / self.design, self.n / self.design, confidence)

    def p_over(self, drop: float) -> float:
        """How likely at least the observed drop would be, were the true one `drop` points."""
        return beyond(self.score(drop))

    def p_gain(self) -> float:
        """How likely at least the observed gain would be, were both models equally good."""
        return beyond(-self.score(0.0))


def pair(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Counts over question-by-question outcomes in the same order. Raises ValueError for unequal or no questions."""
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} outcomes cannot be paired")
    b = sum(x and not y for x, y in zip(before, after, strict=True))
    c = sum(y and not x for x, y in zip(before, after, strict=True))
    return Paired(len(before), b, c)


def deviation(b: float, c: float, drop: float) -> float:
    """Standard deviation of what one question adds to the drop, were the true drop `drop`; all are shares of 1.

    Of `b` questions that were lost and `c` that were won, the rate of the won ones (`q`) is taken at its most likely
    value given that drop (Tango 1998, equation 3). So it is not 0 where nothing flipped.
    """
    if drop < 0:  # the same the other way round, and without cancellation
        return deviation(c, b, -drop)
    linear = (2 - b + c) * drop - b - c
    won = max(0.0, math.sqrt(linear * linear + 8 * c * drop * (1 - drop)) - linear) / 4
    return math.sqrt(2 * won + drop * (1 - drop))


def proportion_interval(hits: float, n: float, confidence: float) -> Interval:
    """Exact bounds of a proportion, in percent.

    Clopper and Pearson 1934, Biometrika 26, 404-413, through quantiles of the beta distribution; so `hits` and `n` may
    be fractions, as effective sample sizes are.
    """
    low = 0.0 if hits <= 0 else beta_quantile(1 - confidence, hits, n - hits + 1)
    high = 1.0 if hits >= n else beta_quantile(confidence, hits + 1, n - hits)
    return Interval(100 * low, 100 * high)


def design_effect(values: Sequence[float], clusters: Sequence[str], confidence: float) -> float:
    """How many questions tell as much as one that is independent, where those of one cluster are alike.

    The variance of the mean between clusters (Cochran 1977, "Sampling Techniques", section 2.11) over that of as many
    independent questions (Kish 1965, "Survey Sampling", section 8.2), with the wider t quantile of few clusters; at
    least 1. Where no question differs from another, how alike they are is not known, and each cluster counts as one.
    """
    sums: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
        sizes[cluster] = sizes.get(cluster, 0) + 1
    n, m, mean = len(values), len(sizes), sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    if m < 2 or not squares:
        return n / m
    error = _ratio_error(list(sums.values()), list(sizes.values()))
    wider = t_quantile(confidence, m - 1) / normal_quantile(confidence) if confidence > FLAT else 1.0
    return max(1.0, error**2 * n * (n - 1) / squares * wider**2)


FLAT = 0.51  # a confidence below which quantiles are too near to 0 for their ratio


def clustered_proportion(hits: Sequence[int], sizes: Sequence[int], confidence: float, times: float = 1.0) -> Interval:
    """Bounds of a proportion of tokens that come in clusters (answers), in percent; of `times` as many alike.

    Tokens of one answer are alike, so they count as fewer: Korn and Graubard 1998, "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey Methodology 24,
    193-201. Where no cluster differs from another, how alike they are is not known, and each counts as one observation.
    """
    tokens, clusters = sum(sizes), len(sizes)
    share = sum(hits) / tokens
    error = _ratio_error(hits, sizes)
    effective = float(clusters)
    if error > 0 and clusters > 1:
        effective = min(tokens, share * (1 - share) / error**2)
        effective *= (normal_quantile(confidence) / t_quantile(confidence, clusters * times - 1)) ** 2
    effective *= times
    return proportion_interval(share * effective, effective, confidence)


def clustered_mean(sums: Sequence[float], sizes: Sequence[int], confidence: float, times: float = 1.0) -> Interval:
    """Bounds of a mean over tokens that come in clusters, from each cluster's sum and size; of `times` as many alike.

    Cochran 1977, "Sampling Techniques", section 2.11: the variance of a ratio of two sums; with Student's t.
    """
    if len(sizes) < 2:
        return Interval(-math.inf, math.inf)
    mean = sum(sums) / sum(sizes)
    reach = t_quantile(confidence, len(sizes) * times - 1) * _ratio_error(sums, sizes) / math.sqrt(times)
    return Interval(mean - reach, mean + reach)


def clustered_ratio(own: Sequence[int], base: Sequence[int], confidence: float, times: float = 1.0) -> Interval:
    """Bounds of the ratio of two totals over clusters that both have, from each cluster's parts; of `times` as many.

    On the logarithm, whose standard error is that of the ratio over the ratio (the delta method; Cochran 1977,
    section 2.11), with Student's t. Infinite where nothing is known: of one cluster, or where one side has nothing.
    Where no cluster differs from another, by how much one may is not known: as if one had as much again.
    """
    if len(own) < 2 or not sum(own) or not sum(base):
        return Interval(0.0, math.inf)
    ratio = sum(own) / sum(base)
    error = _ratio_error(own, base) / ratio or 1 / len(own)
    reach = t_quantile(confidence, len(own) * times - 1) * error / math.sqrt(times)
    return Interval(ratio * math.exp(-reach), ratio * math.exp(min(reach, 700.0)))


def _ratio_error(sums: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard error of sum(sums) / sum(sizes) over clusters."""
    m, whole, total = len(sizes), sum(sums), sum(sizes)
    if m < 2:
        return 0.0
    # Not divided before the squares are summed: of counts, equal clusters differ by exactly 0.
    squares = sum((part * total - whole * size) ** 2 for part, size in zip(sums, sizes, strict=True))
    return math.sqrt(m / (m - 1) * squares) / total**2


def median_interval(values: Sequence[float], confidence: float) -> Interval:
    """Bounds of the median, whatever the distribution: two of the observed values, chosen by the sign test.

    Conover 1999, "Practical Nonparametric Statistics", section 3.2. Fewer than 5 values give no bound at 0.95.
    """
    ordered, n = sorted(values), len(values)
    ends, tail = -1, 0.0  # how many values at each end can be left out
    while ends + 1 < (n + 1) // 2 and (tail := tail + math.comb(n, ends + 1) / 2**n) <= 1 - confidence + 1e-12:
        ends += 1
    return Interval(ordered[ends], ordered[n - 1 - ends]) if ends >= 0 else Interval(-math.inf, math.inf)


def ratio_interval(own: Sequence[float], base: Sequence[float], confidence: float) -> Interval:
    """Bounds of the factor between two sets of repeats: two of all the ratios between one and the other.

    Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", section 4.3, on logarithms: the factors that
    the rank sum test (Mann and Whitney 1947) does not contradict. Fewer than 3 against 3 give no bound at 0.95.
    """
    ratios = sorted(x / y for x in own for y in base)
    ends = _rank_sum_ends(len(own), len(base), 1 - confidence)
    return Interval(ratios[ends], ratios[-1 - ends]) if ends >= 0 else Interval(-math.inf, math.inf)


def _rank_sum_ends(m: int, n: int, alpha: float) -> int:
    """How many of the m * n ordered ratios can be left out at each end; -1 where not even none can."""
    if min(m, n) > 20:  # where counting would take long, and the normal approximation is good
        spread = math.sqrt(m * n * (m + n + 1) / 12)
        return math.floor(m * n / 2 - normal_quantile(1 - alpha) * spread - 0.5)
    # Counts of arrangements by U: the coefficients of the Gaussian binomial, factor by factor.
    counts = [1] + [0] * (m * n)
    for i in range(1, min(m, n) + 1):
        up = max(m, n) + i
        for u in range(m * n, up - 1, -1):
            counts[u] -= counts[u - up]
        for u in range(i, m * n + 1):
            counts[u] += counts[u - i]
    ends, tail, total = -1, 0, math.comb(m + n, m)
    while (tail := tail + counts[ends + 1]) <= total * (alpha + 1e-12):
        ends += 1
    return ends


def drift(values: Sequence[float]) -> float | None:
    """How much repeats rose (or fell) from their first half to their last, as a share; None where chance explains it.

    Kendall's tau against the order of measuring, two-sided at 5 % (Mann 1945, Econometrica 13, 245-259); changes below
    2 % are none.
    """
    from statistics import median

    n = len(values)
    if n < 5:
        return None
    rises = sum(y > x for i, x in enumerate(values) for y in values[i + 1 :])
    falls = sum(y < x for i, x in enumerate(values) for y in values[i + 1 :])
    change = median(values[-(n // 2) :]) / median(values[: n // 2]) - 1
    return change if abs(change) >= 0.02 and _kendall_p(n, rises - falls) <= 0.05 else None


def _kendall_p(n: int, score: int) -> float:
    """Two-sided probability of so large a difference between rising and falling pairs, in random order."""
    pairs = n * (n - 1) // 2
    if n > 30:
        return 2 * beyond(abs(score) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18))
    counts = [1]  # of orders by their number of falling pairs
    for k in range(2, n + 1):
        counts = [sum(counts[max(0, i - k + 1) : i + 1]) for i in range(len(counts) + k - 1)]
    extreme = (pairs - abs(score) + 1) // 2  # a tied pair counts as one that falls
    return min(1.0, 2 * sum(counts[: extreme + 1]) / math.factorial(n))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all lie, between two of them in proportion; infinite where one of them is.

    Hyndman and Fan 1996, "Sample quantiles in statistical packages", American Statistician 50, 361-365: type 7, which
    is numpy's default.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low if place == below or low == high else low + (high - low) * (place - below)


def quantile_interval(values: Sequence[float], share: float, confidence: float, times: float = 1.0) -> Interval:
    """Bounds of a quantile, whatever the distribution: two of the observed values; of `times` as many alike.

    Hahn and Meeker 1991, "Statistical Intervals", section 5.2: how many of `n` values lie below the true quantile is a
    binomial count. Infinite where there are too few values, see `fewest_for_quantile`.
    """
    ordered, n = sorted(values), round(len(values) * times)

    def most_common(chance: float) -> int:
        """The largest count that so many values below the quantile reach with at least that chance."""
        low, high = 0, n + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if at_least(middle, n, share) >= chance else (low, middle)
        return low

    def value(rank: int) -> float:
        return ordered[min(len(ordered), math.ceil(rank / times)) - 1]

    below, above = most_common(confidence - 1e-12), most_common(1 - confidence + 1e-12) + 1
    return Interval(value(below) if below else -math.inf, value(above) if above <= n else math.inf)


def fewest_for_quantile(share: float, confidence: float, bound: str) -> int:
    """How many values it takes to bound a quantile from above (`max`), or from below (`min`)."""
    return math.ceil(math.log(1 - confidence) / math.log(share if bound == "max" else 1 - share) - 1e-12)


def clustered_quantile_interval(
    clusters: Sequence[Sequence[float]], share: float, confidence: float, times: float = 1.0
) -> Interval:
    """Bounds of a quantile of values that come in clusters, which are alike; of `times` as many clusters.

    The values whose share of smaller ones, bounded as in `clustered_proportion`, may be the one that is asked for:
    Woodruff 1952, "Confidence intervals for medians and other position measures", Journal of the American Statistical
    Association 47, 635-646; as a test turned round Francisco and Fuller 1991, Annals of Statistics 19, 454-469.
    """
    ordered = [sorted(each) for each in clusters if each]
    values, sizes = sorted({value for each in ordered for value in each}), list(map(len, ordered))

    def below(value: float, place: Callable[[Sequence[float], float], int]) -> Interval:
        return clustered_proportion([place(each, value) for each in ordered], sizes, confidence, times)

    first = bisect.bisect_left(values, True, key=lambda value: below(value, bisect.bisect_right).low >= 100 * share)
    last = bisect.bisect_left(values, True, key=lambda value: below(value, bisect.bisect_left).high > 100 * share) - 1
    return Interval(values[last] if last >= 0 else -math.inf, values[first] if first < len(values) else math.inf)
