"""The ratio of two proportions that were observed on the same questions: how much of a score a method keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_quantbudget.judge.distributions import normal_quantile, root
from pytest_quantbudget.judge.intervals import Interval


@dataclass(frozen=True)
class Recovered:
    """Counts of questions: `both` models were right, `b` went from right to wrong, `c` from wrong to right.

    Questions that both had wrong tell nothing of the ratio. With the `design` effect, so many questions tell as much as
    one that has nothing to do with the others.
    """

    both: int
    b: int
    c: int
    design: float = 1.0

    @property
    def ratio(self) -> float:
        """The second model's score over the first's; infinite, or 1, where the first had nothing right."""
        first, second = self.both + self.b, self.both + self.c
        return second / first if first else math.inf if second else 1.0

    def score(self, ratio: float) -> float:
        """How many standard errors the observed ratio is above a supposed one.

        The score of Nam and Blackwelder 2002, "Analysis of the ratio of marginal probabilities in a matched-pair
        setting", Statistics in Medicine 21, 689-699, and of Tang, Tang and Chan 2003, "On tests of equivalence via
        non-unity relative risk for matched-pair design", Statistics in Medicine 22, 1217-1233.

        What one question adds to `second - ratio * first` has the variance `ratio * (lost + won)`, were `ratio` the
        true one; these rates are taken at their most likely values given that.
        """
        lost, won = self._likeliest(ratio)
        difference = (self.both + self.c) - ratio * (self.both + self.b)
        error = math.sqrt(ratio * (lost + won) * self.design)
        if error == 0:
            return 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return difference / error

    def _likeliest(self, ratio: float) -> tuple[float, float]:
        """How many questions would most likely be lost and won, of as many as were right at all, given the ratio.

        With shares of these that add up to 1, `lost = 1 - ratio + ratio * won`, so only the won ones are free: where
        the likelihood is largest is a root of a quadratic.
        """
        if ratio > 1:  # the same the other way round, and without cancellation
            won, lost = Recovered(self.both, self.c, self.b)._likeliest(1 / ratio)
            return lost, won
        right = self.both + self.b + self.c
        square = ratio * (1 + ratio) * right
        linear = self.b * ratio**2 + self.c * (2 * ratio**2 - 1) - self.both * (1 - ratio**2)
        constant = self.c * ratio * (1 - ratio)
        if square == 0:
            return float(right), 0.0
        root_of = math.sqrt(linear**2 + 4 * square * constant)
        # Of two ways to write the root, the one in which nothing cancels.
        won = (linear + root_of) / (2 * square) if linear > 0 else 2 * constant / (root_of - linear or 1.0)
        return right * (1 - ratio + ratio * won), right * won

    def interval(self, confidence: float) -> Interval:
        """Bounds of the ratio, in percent: the supposed ratios that the score does not contradict.

        They bound nothing where the first model had nothing right.
        """
        if not self.both + self.b:
            return Interval(0.0, math.inf)
        z = normal_quantile(confidence)

        def ratio_at(share: float) -> float:
            return share / (1 - share)

        # Ratios have no largest value, and their share of themselves and 1 has.
        middle = self.ratio / (1 + self.ratio)
        low = root(lambda share: self.score(ratio_at(share)) - z, 0.0, middle)
        high = root(lambda share: self.score(ratio_at(share)) + z, middle, 1.0 - 1e-12)
        return Interval(100 * ratio_at(low), 100 * ratio_at(high))
