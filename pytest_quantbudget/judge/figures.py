"""What a limit is judged on: the figure, its bounds, and what both are made of in words. Knows no pytest, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pytest_quantbudget.core.answers import Divergence, TaskResult, draft_id
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.measurement import Device, Failure, Measurement, Speed
from pytest_quantbudget.core.request import LOAD, PERPLEXITY, WORKLOAD, Task
from pytest_quantbudget.core.units import format_size, format_time, format_value
from pytest_quantbudget.judge import intervals, sequential
from pytest_quantbudget.judge.intervals import Interval, Paired

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A measured value in base units, with what it is made of in words (repeats, counts, the two sides of a ratio).

    `bounds` each hold with `confidence`; None where there is one observation, or where the figure varies with nothing
    that was observed. They rest on `n` observations of the kind `of`. `remark` says what else there is to know. The
    figure cannot be more than `most`, whatever the method does.
    """

    value: float
    detail: str = ""
    bounds: Interval | None = None
    confidence: float = 0.0
    n: int = 0
    of: str = ""
    paired: Paired | None = None
    remark: str = ""
    most: float = math.inf


class Unmeasured(Exception):
    """A figure is missing; carries the failure that explains it."""

    def __init__(self, failure: Failure, method: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.method = method


def figure(budget: Budget, method: str, limit: Limit, measured: Mapping[str, Measurement]) -> Figure:
    """What a limit of a method is judged on. Raises Unmeasured."""
    if limit.kind.relation:
        _check_devices(method, measured[method].device, budget.baseline or "", measured)
    found = _figure(budget, method, limit, measured)
    if found.bounds is None:
        return found
    # Bounds and estimate are not always made of the same statistic; the estimate is never outside.
    low, high = min(found.bounds.low, found.value), max(found.bounds.high, found.value)
    return replace(found, bounds=Interval(low, high), confidence=found.confidence or limit.judging.confidence)


def _check_devices(method: str, own: Device | None, base: str, measured: Mapping[str, Measurement]) -> None:
    """Figures of unlike devices are never compared. Workers of one run may use several GPUs of one name."""
    other = measured[base].device
    if own is not None and other is not None and own.name != other.name:
        raise Unmeasured(Failure(LOAD, "error", f"measured on {own.name}, and {base} on {other.name}"), method)


def _figure(budget: Budget, method: str, limit: Limit, measured: Mapping[str, Measurement]) -> Figure:
    kind, confidence = limit.kind, limit.judging.confidence
    if kind.metric == "task":
        return _of_task(budget, method, kind, confidence, measured)
    if not kind.relation:
        return _absolute(budget, method, kind, confidence, measured[method])
    base = budget.baseline or ""
    if kind.relation == "against":
        return _against(budget, method, base, kind, confidence, measured)
    sides = {name: _absolute(budget, name, kind, confidence, measured[name]) for name in (method, base)}
    own, other = sides[method], sides[base]
    words = f"{_plain(own.value, kind)} against {base}'s {_plain(other.value, kind)}"
    found = Figure(own.value / other.value, words, remark=_of_each(sides))
    if kind.metric == "ppl":
        return replace(found, **_by_window(budget, method, base, confidence, measured))
    if kind.metric == "weights":
        return found
    if kind.metric == "vram":
        if own.bounds is None or other.bounds is None:
            return found
        return replace(found, bounds=Interval(own.bounds.low / other.bounds.high, own.bounds.high / other.bounds.low))
    speeds = {name: speed for name in (method, base) if (speed := measured[name].speed(budget.workload)) is not None}
    ours, theirs = (_repeats(speed, kind) for speed in speeds.values())
    bounds = intervals.ratio_interval(ours, theirs, confidence)
    remark = "; ".join(filter(None, [found.remark, _apart(list(speeds.values()))]))
    return replace(found, bounds=bounds, n=min(len(ours), len(theirs)), of="repeats", remark=remark)


def _of_each(sides: Mapping[str, Figure]) -> str:
    """What there is to know of both sides of a ratio."""
    return "; ".join(f"{name}: {side.remark}" for name, side in sides.items() if side.remark)


def _apart(speeds: Sequence[Speed]) -> str:
    """Timings of two runs differ by more than those of one: repeats say nothing of that."""
    reused = [speed.origin.at for speed in speeds if speed.origin and speed.origin.reused]
    when = "" if len(reused) == len(speeds) else "".join(reused)
    return f"one side was timed in an earlier run, {when}: runs differ by more than repeats" if when else ""


def _plain(value: float, kind: LimitKind) -> str:
    if kind.metric in ("vram", "weights"):
        return format_size(value)
    if kind.metric == "ppl":
        return format_value(value, "")
    return format_time(value) if kind.metric in ("ttft", "load_time") else format_value(value, "tokens/s")


def _repeats(speed: Speed, kind: LimitKind) -> Sequence[float]:
    return speed.ttft_s if kind.metric == "ttft" else speed.tokens_per_s


def _absolute(budget: Budget, method: str, kind: LimitKind, confidence: float, record: Measurement) -> Figure:
    if kind.metric in ("vram", "weights") and record.offloaded:
        raise Unmeasured(Failure(LOAD, "error", record.offloaded), method)
    if kind.metric == "weights":
        return Figure(need(record.weights, record, LOAD, method))
    if kind.metric == "quantized":
        held = need(record.receipt, record, LOAD, method)
        return Figure(held.fraction, f"{held.quantized:,} of {held.parameters:,} parameters; kept: {held.kept}")
    if kind.metric == "load_time":
        return Figure(need(record.load_time_s, record, LOAD, method))
    if kind.metric == "ppl":
        assert budget.text is not None
        text = need(record.perplexity(budget.text), record, PERPLEXITY, method)
        return Figure(text.value, f"{text.tokens:,} tokens")
    speed = need(record.speed(budget.workload), record, WORKLOAD, method)
    if kind.metric == "vram":
        if speed.peak_allocated is None:
            raise Unmeasured(Failure(WORKLOAD, "no-gpu", "no GPU was found: device memory has no peak here"), method)
        # Allocations are counted, not sampled: where the repeats agree to the byte, there is nothing to bound.
        bounds = Interval(min(speed.peaks), max(speed.peaks)) if speed.peaks else None
        peak, n = speed.peak_allocated, len(speed.peaks)
        return Figure(peak, bounds=bounds, confidence=1.0, n=n, of="repeats", remark=speed.shared)
    repeats = _repeats(speed, kind)
    if kind.metric == "ttft":
        value, detail = speed.median_ttft_s, f"{format_time(min(repeats))} to {format_time(max(repeats))}"
    else:
        value, detail = (
            speed.median_tokens_per_s,
            f"{format_value(min(repeats), '')} to {format_value(max(repeats), '')}",
        )
    bounds = intervals.median_interval(repeats, confidence)
    remark = "; ".join(filter(None, [*speed.doubts, speed.shared, record.offloaded]))
    words = f"{detail} in {len(repeats)} repeats"
    return Figure(value, words, bounds, n=len(repeats), of="repeats", remark=remark)


def need(value: T | None, record: Measurement, phase: str, method: str) -> T:
    """A figure of a phase, or why there is none. Raises Unmeasured."""
    if value is None:
        raise Unmeasured(record.failure(phase) or Failure(phase, "error", f"{phase} gave no figure"), method)
    return value


def _answers(task: Task, record: Measurement, method: str) -> TaskResult:
    """The answers to a task, unless too many of them were cut off to be judged."""
    result = need(record.task(task), record, task.phase, method)
    share = 100 * result.cut_off / len(result.answers)
    if share > task.max_truncated:
        why = (
            f"{share:.1f} % of {len(result.answers):,} answers to {task.name} were cut off after "
            f"{task.max_new_tokens:,} tokens, and max_truncated is {task.max_truncated:g} %"
        )
        raise Unmeasured(Failure(task.phase, "error", why), method)
    return result


def _of_task(
    budget: Budget, method: str, kind: LimitKind, confidence: float, measured: Mapping[str, Measurement]
) -> Figure:
    """Score, drop or flips, from outcomes question by question."""
    task, base = budget.tasks[kind.task], budget.baseline or ""
    theirs = _answers(task, measured[base], base) if kind.relation else None
    after = _answers(task, measured[method], method)
    n = len(after.answers)
    remark = f"{n:,} of {after.total:,} questions asked: {after.stopped or 'they were not finished'}"
    told: dict[str, Any] = {"n": n, "of": "questions", "remark": remark if n < after.total else ""}
    level = sequential.confidence(after, confidence)
    if theirs is None:
        words = f"{sum(after.correct):,} of {n:,} right, {after.cut_off} cut off, {after.absent} absent"
        bounds = sequential.bounds("", (), after.correct, level)
        return Figure(after.accuracy, words, bounds, level, **told)
    before = _same_questions(task, base, method, theirs, after)
    paired = intervals.pair(before, after.correct)
    return Figure(
        paired.drop if kind.relation == "drop" else paired.flips,
        f"b {paired.b}, c {paired.c} of {n:,}",
        sequential.bounds(kind.relation, before, after.correct, level),
        level,
        paired=paired,
        most=100 * sum(before) / n if kind.relation == "drop" else math.inf,
        **told,
    )


def _same_questions(task: Task, base: str, method: str, before: TaskResult, after: TaskResult) -> Sequence[bool]:
    """The baseline's outcomes on the questions that the method was asked: all, or of a growing task the first."""
    if before.metric != after.metric:
        why = f"{base} was judged by {before.metric} and {method} by {after.metric}; name a `metric`"
        raise Unmeasured(Failure(task.phase, "error", why), method)
    n = len(after.answers) if task.start is not None else len(before.answers)
    if [a.question for a in before.answers[:n]] != [a.question for a in after.answers]:
        raise Unmeasured(Failure(task.phase, "error", f"{base} and {method} were asked different questions"), method)
    return before.correct[:n]


def _against(
    budget: Budget, method: str, base: str, kind: LimitKind, confidence: float, measured: Mapping[str, Measurement]
) -> Figure:
    """Figures of the method on the baseline's answers, over all tasks that have them."""
    results = [
        (task, _answers(task, measured[base], base), _answers(task, measured[method], method))
        for task in budget.asked_for(kind)
    ]
    if kind.metric in ("kl", "top1"):
        record = measured[method]
        found = [need(after.divergence, record, task.divergence_phase, method) for task, _, after in results]
        others = [task for each, (task, _, _) in zip(found, results, strict=True) if not _is_from(base, each)]
        if others:
            why = f"compared with other logits than {base}'s"
            raise Unmeasured(Failure(others[0].divergence_phase, "error", why), method)
        return _diverged(kind, confidence, found)
    level = max(sequential.confidence(after, confidence) for _, _, after in results)
    told = [(task, before, after.agreement) for task, before, after in results]
    for task, before, agreement in told:
        if agreement is None:
            why = "the model cannot be fed the baseline's answers (see docs/metrics.md)"
            raise Unmeasured(Failure(task.phase, "error", why), method)
        if agreement.against != draft_id(before):
            raise Unmeasured(Failure(task.phase, "error", f"compared with other answers than {base}'s"), method)
    agreements = [agreement for _, _, agreement in told if agreement is not None]
    tokens = sum(a.tokens for a in agreements)
    sizes = [size for a in agreements for size in a.each_tokens]
    more: dict[str, Any] = {"confidence": level, "n": len(sizes), "of": "answers"}
    if kind.metric == "agreement":
        agreed = sum(a.agreed for a in agreements)
        hits = [hit for a in agreements for hit in a.each_agreed]
        bounds = intervals.clustered_proportion(hits, sizes, level) if sizes else None
        words = f"{agreed:,} of {tokens:,} tokens of {base}'s answers"
        return Figure(100 * agreed / tokens, words, bounds, **more)
    lost = sum(a.baseline_logprob - a.logprob for a in agreements)
    bounds = _exp(intervals.clustered_mean([each for a in agreements for each in a.each_lost], sizes, level))
    words = f"{tokens:,} tokens of {base}'s answers"
    return Figure(math.exp(min(lost / tokens, 700.0)), words, bounds if sizes else None, **more)


def _exp(bounds: Interval) -> Interval:
    return Interval(math.exp(bounds.low), math.exp(min(bounds.high, 700.0)) if bounds.high < math.inf else math.inf)


def _is_from(base: str, found: Divergence) -> bool:
    """Whether a divergence was taken from a method's logits: their file begins with its name (reference.py)."""
    return not found.against or found.against.rpartition("-")[0] == base


def _diverged(kind: LimitKind, confidence: float, found: Sequence[Divergence]) -> Figure:
    tokens = sum(d.tokens for d in found)
    sizes = [size for d in found for size in d.each_tokens]
    bounds: Interval | None = None
    if kind.metric == "top1":
        if sizes:
            bounds = intervals.clustered_proportion([same for d in found for same in d.each_same], sizes, confidence)
        return Figure(
            100 * sum(d.same_top for d in found) / tokens, f"{tokens:,} tokens", bounds, n=len(sizes), of="answers"
        )
    if sizes:
        bounds = intervals.clustered_mean([kl for d in found for kl in d.each_kl], sizes, confidence)
    mean = sum(d.mean_kl * d.tokens for d in found) / tokens
    words = f"{tokens:,} tokens, at most {max(d.max_kl for d in found):.3g}"
    return Figure(mean, words, bounds, n=len(sizes), of="answers")


def _by_window(
    budget: Budget, method: str, base: str, confidence: float, measured: Mapping[str, Measurement]
) -> dict[str, Any]:
    """Bounds of a perplexity ratio: the windows of the text are the same for both, and compared one by one."""
    assert budget.text is not None
    own, other = (measured[name].perplexity(budget.text) for name in (method, base))
    if own is None or other is None or not own.each_tokens or own.each_tokens != other.each_tokens:
        return {}
    lost = [x - y for x, y in zip(own.each_nll, other.each_nll, strict=True)]
    bounds = _exp(intervals.clustered_mean(lost, own.each_tokens, confidence))
    return {"bounds": bounds, "n": len(lost), "of": "windows"}
