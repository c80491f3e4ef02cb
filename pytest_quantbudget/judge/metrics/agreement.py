"""Agreement with the baseline's answers, token by token: teacher-forced greedy match and log-probability."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.answers import draft_id
from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Part, Task
from pytest_quantbudget.core.units import format_value
from pytest_quantbudget.judge import intervals, sequential
from pytest_quantbudget.judge.metrics.accuracy import SHARE, answers, same_questions
from pytest_quantbudget.judge.metrics.base import (
    Case,
    Column,
    Extremes,
    Figure,
    Metric,
    bounded,
    column,
    exponential_mean,
)

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import Agreement, TaskResult


class _OnAnswers(Metric):
    """A figure over the baseline's answers to all tasks whose tokens are known."""

    quality = True

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The tasks."""
        return _tasks(basis)

    def lacking(self, basis: Basis) -> str | None:
        """A task that is not run by lm-evaluation-harness."""
        return "a task whose answers are texts" if all(task.harness for task in basis.tasks.values()) else None

    def figure(self, case: Case) -> Figure:
        """The figure over the tokens of all answers, with bounds by answer."""
        agreements, levels = [], []
        for task in _tasks(case.basis):
            before, after = answers(case.of_baseline(), task), answers(case, task)
            if case.basis.stored:
                _check_stored(case, task, before, after)
            if after.agreement is None:
                case.check_told("agreement", task.phase)
                case.of_baseline().check_told("agreement", task.phase)
                why = "the model cannot be fed the baseline's answers (see docs/metrics.md)"
                raise case.unmeasured(task.phase, why)
            if after.agreement.against != draft_id(before):
                raise case.unmeasured(task.phase, f"compared with other answers than {case.baseline}'s")
            agreements.append(after.agreement)
            levels.append(sequential.confidence(after, case.confidence))
        sizes = [size for a in agreements for size in a.each_tokens]
        common = {"confidence": max(levels), "n": len(sizes), "of": "answers"}
        return self.over(case, agreements, sizes, common)

    def over(self, case: Case, agreements: Sequence[Agreement], sizes: Sequence[int], common: Any) -> Figure:
        """The figure from the agreements on the tasks, `sizes` in tokens an answer."""
        raise NotImplementedError


def _check_stored(case: Case, task: Task, before: TaskResult, after: TaskResult) -> None:
    """Raise Unmeasured where a stored baseline's tokens mean nothing to the method, or are not there."""
    same_questions(case, task, before, after)
    if before.tokenizer is None or draft_id(before) is None:
        why = f"{case.baseline} holds answers to {task.name} as texts alone: an earlier release wrote its report"
        raise case.unmeasured(task.phase, why, "not offered")
    if before.tokenizer != after.tokenizer:
        raise case.unmeasured(task.phase, f"{case.baseline} has answered with another tokenizer: its tokens are others")


def _tasks(basis: Basis) -> tuple[Task, ...]:
    return tuple(task for task in basis.tasks.values() if task.harness is None)


class TokenAgreement(_OnAnswers):
    """Percent of the tokens of the baseline's answers that are the method's own greedy choice."""

    name = "agreement"
    repeat = 100.0
    limits = (
        LimitKind(
            "min_token_agreement",
            "min",
            "agreement",
            "against",
            "%",
            SHARE,
            "Tokens of the baseline's answers that are the method's own greedy choice, percent.",
        ),
    )

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """All tokens agree, and none: then each answer counts as one observation."""
        found = [totals.get(task.name) for task in _tasks(basis)]
        n = sum(total for total in found if total is not None)
        if None in found or not n:
            return None
        starts = [(task.start, totals[task.name]) for task in _tasks(basis)]
        level = max(sequential.confidence_at(total, start, total, confidence) for start, total in starts)
        best, worst = (intervals.proportion_interval(hits, n, level) for hits in (n, 0))
        return Extremes(best, worst, n, "answers")

    def over(self, case: Case, agreements: Sequence[Agreement], sizes: Sequence[int], common: Any) -> Figure:
        """The share, with bounds for tokens that come in answers."""
        agreed, tokens = sum(a.agreed for a in agreements), sum(a.tokens for a in agreements)
        hits = [hit for a in agreements for hit in a.each_agreed]
        words = f"{agreed:,} of {tokens:,} tokens of {case.baseline}'s answers"
        more = functools.partial(intervals.clustered_proportion, hits, sizes, common["confidence"])
        return Figure(100 * agreed / tokens, words, **bounded(more, sizes), **common)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The share."""
        more: Any = {"optional": True, "shown": False, "stays": 4}
        return (column(self, "agreement", "min_token_agreement", lambda value: format_value(value, "%"), **more),)


class AnswerPerplexity(_OnAnswers):
    """Perplexity of the baseline's answers under the method over that under the baseline."""

    name = "answer_ppl"
    repeat = 1.0
    limits = (
        LimitKind(
            "max_answer_ppl_ratio",
            "max",
            "answer_ppl",
            "against",
            "",
            number(0),
            "Perplexity of the baseline's answers under the method over that under the baseline.",
        ),
    )

    def over(self, case: Case, agreements: Sequence[Agreement], sizes: Sequence[int], common: Any) -> Figure:
        """The exponential of the mean loss of log-probability a token."""
        tokens = sum(a.tokens for a in agreements)
        lost = sum(a.baseline_logprob - a.logprob for a in agreements)
        losses = [loss for a in agreements for loss in a.each_lost]
        words = f"{tokens:,} tokens of {case.baseline}'s answers"
        more = functools.partial(exponential_mean, losses, sizes, common["confidence"])
        return Figure(math.exp(min(lost / tokens, 700.0)), words, **bounded(more, sizes), **common)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The ratio."""
        more: Any = {"optional": True, "shown": False, "stays": 2}
        return (column(self, "answer ppl", "max_answer_ppl_ratio", lambda value: f"{value:.3f}", **more),)
