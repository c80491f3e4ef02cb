"""The form of answers: how long they are, and in how many of them no answer was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number, percent
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Part, Task
from pytest_quantbudget.core.units import format_apart, format_value
from pytest_quantbudget.judge import intervals, sequential
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.accuracy import answers, paired_answers
from pytest_quantbudget.judge.metrics.base import Case, Column, Extremes, Figure, Metric

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import Answer, TaskResult

UNREAD = ",none"  # how the harness names a figure for which nothing is read out of the response


class _OnAnswers(Metric):
    """A figure of one task's answers, whether they are right or not."""

    quality = True

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The task."""
        return (basis.tasks[kind.task],)

    def figure_of(
        self, case: Case, task: Task, after: TaskResult, value: float, words: str, pairs: Sequence[Answer] = ()
    ) -> Figure:
        """A figure of the answers, with its bounds and those of more questions."""
        level, n = sequential.confidence(after, case.confidence), len(after.answers)

        def more(times: float) -> Interval:
            asked = round(n * times)
            wider = sequential.confidence_at(asked, task.start, asked, case.confidence)
            return sequential.bounds_of(self.name, after, pairs, wider, times)

        part = f"{n:,} of {after.total:,} questions asked: {after.stopped or 'they were not finished'}"
        return Figure(
            value,
            words,
            sequential.bounds_of(self.name, after, pairs, level),
            level,
            n,
            "questions",
            remark=part if n < after.total else "",
            more=more,
        )


class Absent(_OnAnswers):
    """Percent of a task's answers in which the extraction found nothing."""

    name = sequential.ABSENT

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limit on one task."""
        doc = f"Answers to {task} in which no answer is found, percent."
        kind = percent(number(0, 100, closed="low"))
        return (LimitKind(f"max_{task}_absent", "max", self.name, "", "%", kind, doc, task),)

    def figure(self, case: Case) -> Figure:
        """The share. Raises Unmeasured, also where nothing is read out of the answers."""
        task = case.basis.tasks[case.kind.task]
        after = answers(case, task)
        if task.harness is not None and (after.metric or "").endswith(UNREAD):
            why = f"{after.metric} of lm-evaluation-harness reads nothing out of the answers to {task.name}"
            raise case.unmeasured(task.phase, why, "not offered")
        n, lost = len(after.answers), zip(after.missing, after.answers, strict=True)
        cut_off = sum(missing and answer.cut_off for missing, answer in lost)
        words = f"in {after.absent:,} of {n:,} answers nothing was found by `{task.extract}`, {cut_off:,} truncated"
        return self.figure_of(case, task, after, 100 * after.absent / n, words)

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """None is absent, and all are."""
        task, n = basis.tasks[kind.task], totals.get(kind.task)
        if n is None:
            return None
        level = sequential.confidence_at(n, task.start, n, confidence)
        best, worst = (intervals.proportion_interval(count, n, level) for count in (0, n))
        return Extremes(best, worst, n, "questions")

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The share, where it is limited."""
        kinds = (self.limits_of(name)[0] for name in basis.tasks)
        return [
            Column("absent", lambda case: format_value(self.figure(case).value, "%"), kind, limited=True, stays=2)
            for kind in kinds
        ]


class AnswerTokens(_OnAnswers):
    """Mean number of tokens an answer over the baseline's, on the same questions."""

    name = sequential.TOKENS

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limit on one task."""
        doc = f"Mean tokens an answer to {task} over the baseline's to the same questions."
        return (LimitKind(f"max_{task}_tokens_ratio", "max", self.name, "ratio", "", number(0), doc, task),)

    def figure(self, case: Case) -> Figure:
        """The ratio, with bounds over pairs of answers. Raises Unmeasured, also where lengths are not known."""
        task = case.basis.tasks[case.kind.task]
        theirs, after = answers(case.of_baseline(), task), answers(case, task)
        pairs = paired_answers(case, task, theirs, after)
        if task.harness is not None:
            why = "lm-evaluation-harness does not tell how many tokens an answer has"
            raise case.unmeasured(task.phase, why, "not offered")
        if None not in (theirs.tokenizer, after.tokenizer) and theirs.tokenizer != after.tokenizer:
            why = f"{case.baseline} has answered with another tokenizer: its tokens are others"
            raise case.unmeasured(task.phase, why)
        n = len(pairs)
        own, base = (sum(answer.tokens for answer in each) / n for each in (after.answers, pairs))
        if not base:
            raise case.unmeasured(task.phase, f"all answers of {case.baseline} are empty")
        ours, others = format_apart(own, base, unit="")
        words = f"{ours} tokens an answer against {case.baseline}'s {others}"
        cut_off = {case.method: after.cut_off, case.baseline: sum(answer.cut_off for answer in pairs)}
        told = [f"{count:,} of {name}" for name, count in cut_off.items() if count]
        if told:
            words += f"; truncated answers, {' and '.join(told)}, count as {task.max_new_tokens:,} tokens"
        return self.figure_of(case, task, after, own / base, words, pairs)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The ratio, where it is limited."""
        kinds = (self.limits_of(name)[0] for name in basis.tasks)
        return [
            Column(
                "tokens",
                lambda case: f"{self.figure(case).value:.2f}x",
                kind,
                shown=False,
                limited=True,
                stays=2,
            )
            for kind in kinds
        ]
