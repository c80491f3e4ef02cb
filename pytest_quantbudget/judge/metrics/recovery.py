"""Recovery: a method's score on a task over the baseline's, on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import Kind, number, percent
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Part
from pytest_quantbudget.core.units import format_value
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.accuracy import answers, at_chance, same_questions
from pytest_quantbudget.judge.metrics.base import Case, Column, Extremes, Figure, Metric
from pytest_quantbudget.judge.recovery import Recovered

SHARES = 1.5  # what is at most that was meant as a share of 1, and is read as percent
MOST = 1000.0
_PERCENT = percent(number(0, MOST, closed="high"))


def _read(value: object) -> float:
    found = float(_PERCENT.read(value))
    if not isinstance(value, str) and found <= SHARES:
        raise ValueError(f"is in percent: {value} is {value} % of the baseline's score; write {100 * found:g} %")
    return found


class Recovery(Metric):
    """Percent of the baseline's score that a method keeps; above 100 where it is better."""

    name = "recovery"
    quality = True

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limit on one task."""
        doc = f"Accuracy on {task} over the baseline's on the same questions, percent."
        kind = Kind(_read, _PERCENT.schema)
        return (LimitKind(f"min_{task}_recovery", "min", self.name, "recovery", "%", kind, doc, task),)

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The task."""
        return (basis.tasks[kind.task],)

    def figure(self, case: Case) -> Figure:
        """The ratio, with bounds by a score for paired questions. Raises Unmeasured."""
        task = case.basis.tasks[case.kind.task]
        theirs, after = answers(case.of_baseline(), task), answers(case, task)
        before, n = same_questions(case, task, theirs, after), len(after.answers)
        if not any(before):
            why = f"{case.baseline} answers none of {n:,} questions right: there is nothing to recover"
            raise case.unmeasured(task.phase, why)
        level, clusters = sequential.confidence(after, case.confidence), sequential.clusters_of(after)

        def more(times: float) -> Interval:
            asked = round(n * times)
            wider = sequential.confidence_at(asked, task.start, asked, case.confidence)
            return sequential.bounds("recovery", before, after.correct, wider, clusters, times)

        remarks = []
        if guessing := at_chance(theirs, before):
            remarks.append(f"{case.baseline} {guessing}")
        if n < after.total:
            remarks.append(f"{n:,} of {after.total:,} questions asked: {after.stopped or 'they were not finished'}")
        common: dict[str, Any] = {"n": n, "of": "questions", "confidence": level, "remark": "; ".join(remarks)}
        found = sequential.recovered(before, after.correct, level, clusters)
        return Figure(
            100 * found.ratio,
            f"{found.both + found.c:,} right against {case.baseline}'s {found.both + found.b:,} of {n:,}",
            found.interval(level),
            more=more,
            paired=sequential.paired_of("drop", before, after.correct, level, clusters),
            **common,
        )

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """All right in both, and all lost."""
        task, n = basis.tasks[kind.task], totals.get(kind.task)
        if n is None:
            return None
        level = sequential.confidence_at(n, task.start, n, confidence)
        best, worst = Recovered(n, 0, 0).interval(level), Recovered(0, n, 0).interval(level)
        # A method may also win what the baseline has wrong.
        best = Interval(best.low, math.inf)
        return Extremes(best, worst, n, "questions")

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The share, where it is limited."""
        return [
            Column(
                "recovery",
                lambda case: format_value(self.figure(case).value, "%"),
                self.limits_of(name)[0],
                shown=False,
                limited=True,
                stays=9,
            )
            for name in basis.tasks
        ]
