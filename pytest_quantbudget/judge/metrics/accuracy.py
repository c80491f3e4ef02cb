"""Accuracy on a task: the score, its drop against the baseline, and flips, question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.answers import counterparts
from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Part, Task
from pytest_quantbudget.core.units import format_apart, format_value
from pytest_quantbudget.judge import intervals, sequential
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.base import Case, Column, Extremes, Figure, Metric

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import Answer, TaskResult

SHARE = number(0, 100, closed="high")
CERTAIN = 0.95  # that a baseline is better than chance


def answers(case: Case, task: Task) -> TaskResult:
    """A method's answers to a task. Raises Unmeasured, also where too many were truncated to be judged."""
    result = case.need(case.record.task(task), task.phase)
    share = 100 * result.cut_off / len(result.answers)
    if share > task.max_truncated:
        most, found = format_apart(task.max_truncated, share, unit="%")
        raise case.unmeasured(
            task.phase,
            f"{found} of {len(result.answers):,} answers to {task.name} were truncated after "
            f"{task.max_new_tokens:,} tokens, and max_truncated is {most}",
        )
    return result


class Accuracy(Metric):
    """Percent of a task's questions answered correctly; the drop in percentage points; flips in percent."""

    name = "task"
    quality = True

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limits on one task."""
        change = number(0, 100, closed="low")
        return (
            LimitKind(f"min_{task}", "min", "task", "", "%", SHARE, f"Accuracy on {task}, percent.", task),
            LimitKind(
                f"max_{task}_drop",
                "max",
                "task",
                "drop",
                "points",
                change,
                f"Loss of {task} accuracy, points.",
                task,
                (f"max_{task}_flips", "a drop is at most the share of flips"),
            ),
            LimitKind(
                f"max_{task}_flips", "max", "task", "flips", "%", change, f"{task} answers that changed sides, %.", task
            ),
        )

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The task."""
        return (basis.tasks[kind.task],)

    def figure(self, case: Case) -> Figure:
        """Score, drop or flips. Raises Unmeasured where the two methods were asked other questions."""
        task, kind = case.basis.tasks[case.kind.task], case.kind
        theirs = answers(case.of_baseline(), task) if kind.relation else None
        after = answers(case, task)
        n = len(after.answers)
        remark = f"{n:,} of {after.total:,} questions asked: {after.stopped or 'they were not finished'}"
        common: dict[str, Any] = {"n": n, "of": "questions", "remark": remark if n < after.total else ""}
        level = sequential.confidence(after, case.confidence)
        before = same_questions(case, task, theirs, after) if theirs is not None else ()
        clusters = sequential.clusters_of(after)

        def more(times: float) -> Interval:
            asked = round(n * times)
            wider = sequential.confidence_at(asked, task.start, asked, case.confidence)
            return sequential.bounds(kind.relation, before, after.correct, wider, clusters, times)

        bounds = sequential.bounds(kind.relation, before, after.correct, level, clusters)
        common |= {"bounds": bounds, "confidence": level, "more": more}
        if theirs is not None and (guessing := at_chance(theirs, before)):
            common["remark"] = "; ".join(filter(None, [f"{case.baseline} {guessing}", common["remark"]]))
        if theirs is None:
            words = f"{sum(after.correct):,} of {n:,} right, {after.cut_off} truncated, {after.absent} absent"
            return Figure(after.accuracy, words, **common)
        paired = sequential.paired_of(kind.relation, before, after.correct, level, clusters)
        return Figure(
            paired.drop if kind.relation == "drop" else paired.flips,
            f"{paired.b:,} newly wrong, {paired.c:,} newly right of {n:,}",
            paired=paired,
            most=100 * sum(before) / n,
            **common,
        )

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """All right and all wrong; of a comparison nothing flipped, and everything lost."""
        task, n = basis.tasks[kind.task], totals.get(kind.task)
        if n is None:
            return None
        level = sequential.confidence_at(n, task.start, n, confidence)
        right, wrong = (True,) * n, (False,) * n
        best, worst = (sequential.bounds(kind.relation, right, after, level) for after in (right, wrong))
        return Extremes(best, worst, n, "questions")

    def columns(self, basis: Basis) -> Sequence[Column]:
        """Score and drop of each task."""
        found: list[Column] = []
        for name in basis.tasks:
            score, drop, _ = self.limits_of(name)
            found.append(Column(name, lambda case: format_value(self.figure(case).value, "%"), score, stays=10))
            found.append(Column("drop", self._lost, drop, shown=False, stays=10))
        return found

    def _lost(self, case: Case) -> str:
        return format_value(self.figure(case).value, "points", show_unit=False)


def at_chance(result: TaskResult, correct: Sequence[bool]) -> str:
    """Words for a baseline that does no better than guessing; nothing where it does, or where chance is not known."""
    low = intervals.proportion_interval(sum(correct), len(correct), CERTAIN).low
    if result.chance is None or low > result.chance:
        return ""
    chance, share = format_apart(result.chance, 100 * sum(correct) / len(correct), unit="%")
    return f"answers {share} right, and guessing {chance}: there is nothing to lose"


def same_questions(case: Case, task: Task, before: TaskResult, after: TaskResult) -> Sequence[bool]:
    """The baseline's outcomes on the questions that the method was asked; see `paired_answers`."""
    return after.right(paired_answers(case, task, before, after))


def paired_answers(case: Case, task: Task, before: TaskResult, after: TaskResult) -> Sequence[Answer]:
    """The baseline's answers to the questions that the method was asked: all, or of a growing task the first.

    A stored baseline may have been asked more. Raises Unmeasured, saying how many questions are others.
    """
    if before.metric != after.metric:
        names = f"{case.baseline} was judged by {before.metric} and {case.method} by {after.metric}"
        raise case.unmeasured(task.phase, f"{names}; name a `metric`")
    if case.basis.stored and not all(answer.prompt for answer in before.answers):
        why = f"{case.baseline} does not tell what was asked: an earlier release wrote its report"
        raise case.unmeasured(task.phase, why)
    found, n = counterparts(before, after), len(after.answers)
    pairs = [pair for pair in found if pair is not None]
    if len(pairs) < n:
        raise case.unmeasured(task.phase, _apart(case, before, after, n - len(pairs)))
    if not case.basis.stored and task.start is None and len(before.answers) > n:
        why = f"asked different questions: {len(before.answers):,} and {n:,}"
        raise case.unmeasured(task.phase, f"{case.baseline} and {case.method} were {why}")
    other = sum(map(_judged_otherwise, pairs, after.answers)) if case.basis.stored and task.harness is None else 0
    if other:
        why = f"{other:,} of {n:,} questions have another right answer than when {case.baseline} was asked"
        raise case.unmeasured(task.phase, why)
    return pairs


def _apart(case: Case, before: TaskResult, after: TaskResult, missing: int) -> str:
    """In words, that a baseline was not asked so many of the questions."""
    n = len(after.answers)
    known = {answer.question for answer in before.answers}
    same = all(answer.question in known for answer in after.answers)
    what = "in other words" if same else "different questions"
    return f"{case.baseline} and {case.method} were asked {what}: {missing:,} of {n:,} differ"


def _judged_otherwise(before: Answer, after: Answer) -> bool:
    """Whether the same answer was right for one and wrong for the other."""
    strict = before.strict == after.strict and before.strict_correct != after.strict_correct
    return strict or (before.flexible == after.flexible and before.flexible_correct != after.flexible_correct)
