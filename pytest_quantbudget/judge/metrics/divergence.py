"""Divergence of the next-token distributions from the baseline's, over full logits on its answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import DivergenceOf, Part, Task
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.accuracy import SHARE, answers
from pytest_quantbudget.judge.metrics.base import Case, Column, Figure, Metric, bounded, column
from pytest_quantbudget.judge.metrics.percentiles import PERCENTILES, Percentiles

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import Divergence


class _OnLogits(Metric):
    """A figure over the tasks with `divergence: true`."""

    quality = True

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The tasks, and the divergence on their answers."""
        tasks = _tasks(basis)
        return (*tasks, *map(DivergenceOf, tasks))

    def lacking(self, basis: Basis) -> str | None:
        """A task with `divergence: true`."""
        return None if any(task.divergence for task in basis.tasks.values()) else "`divergence: true` on a task"

    def figure(self, case: Case) -> Figure:
        """The figure over the tokens of all answers, with bounds by answer."""
        divergences = []
        for task in _tasks(case.basis):
            if case.basis.stored:
                why = f"{case.baseline} has no logits, which no report holds: name a method of this budget as baseline"
                raise case.unmeasured(task.divergence_phase, why, "not offered")
            answers(case.of_baseline(), task)
            after = answers(case, task)
            divergence = case.need(after.divergence, task.divergence_phase)
            # The file of a baseline's logits begins with its name.
            if divergence.against and divergence.against.rpartition("-")[0] != case.baseline:
                raise case.unmeasured(task.divergence_phase, f"compared with other logits than {case.baseline}'s")
            divergences.append(divergence)
        return self.over(case, divergences, [size for d in divergences for size in d.each_tokens])

    def over(self, case: Case, divergences: Sequence[Divergence], sizes: Sequence[int]) -> Figure:
        """The figure from the divergences on the tasks, `sizes` in tokens an answer."""
        raise NotImplementedError


def _tasks(basis: Basis) -> tuple[Task, ...]:
    return tuple(task for task in basis.tasks.values() if task.divergence)


class KlDivergence(_OnLogits):
    """Mean KL divergence from the baseline a token; nats."""

    name = "kl"
    repeat = 0.0
    limits = (
        LimitKind(
            "max_kl",
            "max",
            "kl",
            "against",
            "nats",
            number(0),
            "Mean KL divergence from the baseline a token (task key `divergence`), nats.",
        ),
    )

    def over(self, case: Case, divergences: Sequence[Divergence], sizes: Sequence[int]) -> Figure:
        """The mean, with bounds for tokens that come in answers."""
        tokens = sum(d.tokens for d in divergences)
        mean = sum(d.mean_kl * d.tokens for d in divergences) / tokens
        sums = [kl for d in divergences for kl in d.each_kl]
        more = functools.partial(intervals.clustered_mean, sums, sizes, case.confidence)
        words = f"{tokens:,} tokens, at most {max(d.max_kl for d in divergences):.3g}{_bound(divergences)}"
        whole = _untold(divergences)
        return Figure(mean, words, **bounded(more, sizes), n=len(sizes), of="answers", more_of=whole)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The mean."""
        return (column(self, "KL", "max_kl", lambda value: f"{value:.2g}", optional=True, shown=False, stays=3),)


def _untold(divergences: Sequence[Divergence]) -> str:
    """What it would take to know more than a lower bound."""
    return "" if all(d.top == 0 for d in divergences) else "the probabilities of all tokens"


def _bound(divergences: Sequence[Divergence]) -> str:
    """What to add where engines told only their likeliest tokens."""
    cut = [d for d in divergences if d.top]
    if not cut:
        return ""
    mean = sum(d.mean_rest * d.tokens for d in cut) / sum(d.tokens for d in cut)
    rest = f"{100 * mean:.2g} % on average, {100 * max(d.max_rest for d in cut):.2g} % at most"
    return f"; a lower bound, from the likeliest {min(d.top for d in cut)} tokens: the baseline's others held {rest}"


class KlPercentile(_OnLogits, Percentiles):
    """A percentile of the KL divergences of single tokens; nats. The tail is where answers turn."""

    name = "kl_tail"
    repeat = 0.0
    what, doc, of = "kl", "KL divergence from the baseline (task key `divergence`), nats", "the tokens"
    listed = (99,)
    relation, in_unit, value = "against", "nats", number(0)

    def over(self, case: Case, divergences: Sequence[Divergence], sizes: Sequence[int]) -> Figure:
        """The percentile over the tokens of all answers, with bounds for tokens that come in answers.

        Raises Unmeasured where an earlier release has measured, which kept no single tokens.
        """
        if not all(d.token_kls for d in divergences):
            phase = _tasks(case.basis)[0].divergence_phase
            raise case.unmeasured(phase, "its single tokens were not recorded: --quant-refresh measures it anew")
        each = [answer for d in divergences for answer in d.tokens_kl]
        share = (case.kind.percentile or 0) / 100
        more = functools.partial(intervals.clustered_quantile_interval, each, share, case.confidence)

        def bounds(times: float) -> Interval:
            found = more(times)
            return Interval(max(0.0, found.low), found.high)

        tokens = [kl for answer in each for kl in answer]
        words = f"{len(tokens):,} tokens, at most {max(tokens):.3g}{_bound(divergences)}"
        return Figure(
            intervals.quantile(tokens, share),
            words,
            bounds(1.0),
            n=len(each),
            of="answers",
            more=bounds,
            more_of=_untold(divergences),
        )

    def columns(self, basis: Basis) -> Sequence[Column]:
        """Those that the budget limits."""
        return [
            Column(
                f"KL p{percentile}",
                lambda case: f"{self.figure(case).value:.2g}",
                self.kind(percentile),
                optional=True,
                shown=False,
                limited=True,
                stays=3,
            )
            for percentile in PERCENTILES
        ]


class Top1Agreement(_OnLogits):
    """Percent of tokens whose likeliest next token is the baseline's."""

    name = "top1"
    repeat = 100.0
    limits = (
        LimitKind(
            "min_top1_agreement",
            "min",
            "top1",
            "against",
            "%",
            SHARE,
            "Tokens whose likeliest next one is the baseline's (task key `divergence`), percent.",
        ),
    )

    def over(self, case: Case, divergences: Sequence[Divergence], sizes: Sequence[int]) -> Figure:
        """The share, with bounds for tokens that come in answers."""
        tokens = sum(d.tokens for d in divergences)
        hits = [same for d in divergences for same in d.each_same]
        more = functools.partial(intervals.clustered_proportion, hits, sizes, case.confidence)
        share = 100 * sum(d.same_top for d in divergences) / tokens
        return Figure(share, f"{tokens:,} tokens", **bounded(more, sizes), n=len(sizes), of="answers")
