"""Perplexity of a text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import PERPLEXITY, Part
from pytest_quantbudget.judge.metrics.base import Case, Column, Figure, Metric, bounded, column, exponential_mean

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement, Perplexity


def _of(case: Case) -> Perplexity | None:
    return case.record.perplexity(case.basis.text) if case.basis.text else None


class TextPerplexity(Metric):
    """Perplexity of a text over the baseline's."""

    name = "ppl"
    quality = True
    noise_name = "ppl"
    limits = (
        LimitKind(
            "max_ppl_ratio",
            "max",
            "ppl",
            "ratio",
            "",
            number(0),
            "Perplexity of a text (file key `perplexity`) over the baseline's.",
        ),
    )

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The text."""
        return (basis.text,) if basis.text else ()

    def lacking(self, basis: Basis) -> str | None:
        """The text."""
        return "`perplexity` with a text file" if basis.text is None else None

    def absolute(self, case: Case) -> Figure:
        """The perplexity under one method."""
        text = case.need(_of(case), PERPLEXITY)
        return Figure(text.value, f"{text.tokens:,} tokens")

    def figure(self, case: Case) -> Figure:
        """The ratio. Raises Unmeasured where a stored baseline has split the text into other tokens."""
        own, other = _of(case), _of(case.of_baseline())
        if case.basis.stored and own is not None and other is not None and own.tokenizer != other.tokenizer:
            why = f"{case.baseline} has split the text with another tokenizer: its tokens are others"
            raise case.unmeasured(PERPLEXITY, why)
        return super().figure(case)

    def bounded(self, case: Case, ratio: Figure, own: Figure, other: Figure) -> Figure:
        """Bounds by window: the windows of the text are the same for both sides, and are compared one by one."""
        ours, theirs = _of(case), _of(case.of_baseline())
        if ours is None or theirs is None or not ours.each_tokens or ours.each_tokens != theirs.each_tokens:
            return ratio
        lost = [x - y for x, y in zip(ours.each_nll, theirs.each_nll, strict=True)]
        more = functools.partial(exponential_mean, lost, ours.each_tokens, case.confidence)
        return replace(ratio, **bounded(more, ours.each_tokens), n=len(lost), of="windows")

    def unit(self, *values: float) -> str:
        """None."""
        return ""

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The perplexity of a run."""
        text = record.perplexity(basis.text) if basis.text else None
        return text.value if text else None

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The ratio."""
        more: Any = {"optional": True, "shown": False, "stays": 3}
        return (column(self, "ppl ratio", "max_ppl_ratio", lambda value: f"{value:.3f}", **more),)
