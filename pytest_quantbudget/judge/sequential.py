"""When the answers to a growing task are enough: every limit that waits for them is decided, or none can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantbudget.core.answers import counterparts
from pytest_quantbudget.core.gpus import matches
from pytest_quantbudget.core.request import Request, Rule
from pytest_quantbudget.core.verdict import UNDECIDED
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval, Paired
from pytest_quantbudget.judge.recovery import Recovered

if TYPE_CHECKING:
    from pytest_quantbudget.core.answers import Answer, TaskResult

CERTAIN = 0.99  # that too many answers are cut off, before the rest is given up

# What a limit on a task may be on, besides its score (no name): against the baseline, or alone.
DROP, FLIPS, RECOVERY, TOKENS, ABSENT = "drop", "flips", "recovery", "tokens", "absent"
AGAINST = (DROP, FLIPS, RECOVERY, TOKENS)
ALONE = ("", ABSENT)


def bounds_of(
    relation: str, result: TaskResult, pairs: Sequence[Answer], confidence: float, times: float = 1.0
) -> Interval:
    """Bounds of a task's figure of any kind, from the answers to it; `pairs` are the baseline's to the same questions.

    They are those of `times` as many questions with the same answers. In percent or points, and for `tokens` a ratio.
    """
    clusters = clusters_of(result)
    if relation == TOKENS:
        return token_ratio(pairs, result.answers, confidence, clusters, times)
    after = result.missing if relation == ABSENT else result.correct
    relation = "" if relation == ABSENT else relation
    return bounds(relation, result.right(pairs), after, confidence, clusters, times)


def token_ratio(
    before: Sequence[Answer],
    after: Sequence[Answer],
    confidence: float,
    clusters: Sequence[str] = (),
    times: float = 1.0,
) -> Interval:
    """Bounds of the mean number of tokens an answer, over that of the answers to the same questions `before`.

    On the logarithm of the ratio, because lengths are skewed; see `intervals.clustered_ratio`.
    """
    sums: dict[str, list[int]] = {}
    for number, (own, base) in enumerate(zip(after, before, strict=True)):
        cluster = sums.setdefault(clusters[number] if any(clusters) else str(number), [0, 0])
        cluster[0] += own.tokens
        cluster[1] += base.tokens
    own_sums, base_sums = zip(*sums.values(), strict=True)
    return intervals.clustered_ratio(own_sums, base_sums, confidence, times)


def bounds(
    relation: str,
    before: Sequence[bool],
    after: Sequence[bool],
    confidence: float,
    clusters: Sequence[str] = (),
    times: float = 1.0,
) -> Interval:
    """Bounds of a task's figure (percent or points) from outcomes question by question, the baseline's `before`.

    `clusters` names the cluster of each question, where they are declared. The bounds are those of `times` as many
    questions with the same outcomes.
    """
    if not relation:
        design = _design(after, clusters, confidence) / times
        return intervals.proportion_interval(sum(after) / design, len(after) / design, confidence)
    if relation == RECOVERY:
        found = recovered(before, after, confidence, clusters)
        return replace(found, design=found.design / times).interval(confidence)
    paired = paired_of(relation, before, after, confidence, clusters)
    paired = replace(paired, design=paired.design / times)
    return paired.drop_interval(confidence) if relation == "drop" else paired.flips_interval(confidence)


def paired_of(
    relation: str, before: Sequence[bool], after: Sequence[bool], confidence: float, clusters: Sequence[str] = ()
) -> Paired:
    """The counts behind the bounds of a drop or of flips."""
    lost = [x - y for x, y in zip(before, after, strict=True)]
    values = lost if relation == "drop" else [abs(each) for each in lost]
    return replace(intervals.pair(before, after), design=_design(values, clusters, confidence))


def recovered(
    before: Sequence[bool], after: Sequence[bool], confidence: float, clusters: Sequence[str] = ()
) -> Recovered:
    """The counts behind the bounds of a recovery."""
    found = intervals.pair(before, after)
    both = sum(before) - found.b
    # What each question adds to the difference between the method's score and the share of the baseline's.
    share = (both + found.c) / sum(before) if any(before) else 0.0
    values = [y - share * x for x, y in zip(before, after, strict=True)]
    return Recovered(both, found.b, found.c, _design(values, clusters, confidence))


def _design(values: Sequence[float], clusters: Sequence[str], confidence: float) -> float:
    return intervals.design_effect(values, clusters, confidence) if any(clusters) else 1.0


def clusters_of(result: TaskResult) -> tuple[str, ...]:
    """The cluster of each question; empty texts where the task declares none."""
    return tuple(answer.cluster for answer in result.answers)


def confidence(result: TaskResult, asked: float) -> float:
    """The confidence of bounds on what there is of a task, so that all looks at it together have the one `asked`."""
    return confidence_at(len(result.answers), result.task.start, result.total, asked)


def stopped(request: Request, device: str, result: TaskResult, baseline: TaskResult | None) -> str:
    """Why no more questions of a task need to be asked; nothing where more of them may decide something.

    Where no rule of the request holds on this device, all questions are asked, and so they are for a limit without a
    number (`auto`).
    """
    task, n = result.task, len(result.answers)
    mine = [(rule, value) for rule in request.rules if rule.task == task.name for value in _values(rule, device)]
    if task.start is None or task.name in request.whole or not mine:
        return ""
    if intervals.proportion_interval(result.cut_off, n, CERTAIN).low > task.max_truncated:
        return f"too many of the first {n:,} answers were truncated"
    pairs = counterparts(baseline, result) if baseline is not None else []
    before = [pair for pair in pairs if pair is not None]
    for rule, value in mine:
        if value is None or rule.relation not in (*AGAINST, *ALONE) or (rule.relation in AGAINST and len(before) < n):
            return ""
        found = bounds_of(rule.relation, result, before, confidence(result, rule.confidence))
        if found.side(rule.bound, value) == UNDECIDED:
            return ""
    return "its limit was decided" if len(mine) == 1 else "all its limits were decided"


def _values(rule: Rule, device: str) -> list[float | None]:
    """The value that holds for a device, if any."""
    pairs = zip(rule.patterns, rule.values, strict=True)
    return [value for pattern, value in pairs if matches(device, pattern)][:1]


EARLY = 0.025  # that may go wrong before the last look, however low the confidence that is asked for
SMALLEST_STEP = 1.25  # a last look that adds less than that is not worth its share


def looks(start: int | None, total: int) -> tuple[int, ...]:
    """After how many questions the answers are looked at: `start`, doubled, up to all of them."""
    found: list[int] = []
    step = start or total
    while step * SMALLEST_STEP <= total:
        found.append(step)
        step *= 2
    return (*found, total)


def confidence_at(questions: int, start: int | None, total: int, confidence: float) -> float:
    """The confidence of the bounds after so many questions, so that all looks together err no more than one would.

    Half of what may go wrong is kept for the last look, the rest is shared evenly by those before it: alpha spending
    (Lan and DeMets 1983, Biometrika 70, 659-663) by Bonferroni's inequality, so that it holds however the looks depend
    on each other. The bounds are repeated confidence intervals (Jennison and Turnbull 1989, JRSS B 51, 305-361): they
    hold for every limit at once and whatever made the questions end.
    """
    times = looks(start, total)
    if len(times) == 1:
        return confidence
    alpha = (1 - confidence) / 2
    return 1 - (alpha if questions >= total else min(alpha, EARLY) / (len(times) - 1))
