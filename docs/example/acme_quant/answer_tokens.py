"""A metric: how long answers are. A method that rambles costs more than its tokens a second tell."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Part
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.metrics.base import Case, Figure, Metric, bounded


class AnswerTokens(Metric):
    """Tokens of an answer to a task, the mean; `max_T_tokens` for a task T."""

    name = "answer_tokens"
    quality = True

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limit on one task."""
        words = f"Tokens of an answer to {task}, the mean."
        return (LimitKind(f"max_{task}_tokens", "max", self.name, "", "tokens", number(0), words, task),)

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The task."""
        return (basis.tasks[kind.task],)

    def absolute(self, case: Case) -> Figure:
        """The mean, with bounds over the answers."""
        task = case.basis.tasks[case.kind.task]
        tokens = [answer.tokens for answer in case.need(case.record.task(task), task.phase).answers]
        ones = [1] * len(tokens)
        more = functools.partial(intervals.clustered_mean, tokens, ones, case.confidence)
        return Figure(sum(tokens) / len(tokens), **bounded(more, ones), n=len(tokens), of="answers")


ANSWER_TOKENS = AnswerTokens()
