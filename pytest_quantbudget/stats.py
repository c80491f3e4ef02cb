"""Paired comparison of answers to the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Discordant counts of two models on `n` questions: `b` went from right to wrong, `c` from wrong to right."""

    n: int
    b: int
    c: int

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


def pair(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Counts over question-by-question outcomes in the same order. Raises ValueError for unequal or no questions."""
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} outcomes cannot be paired")
    b = sum(x and not y for x, y in zip(before, after, strict=True))
    c = sum(y and not x for x, y in zip(before, after, strict=True))
    return Paired(len(before), b, c)
