"""A limit against a measurement: pure functions, whose result words itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_quantbudget import stats
from pytest_quantbudget.budget import Budget, Limit, Method, Target
from pytest_quantbudget.grammar import LimitKind
from pytest_quantbudget.measurement import Divergence, Failure, Measurement, TaskResult, draft_id
from pytest_quantbudget.receipt import Receipt
from pytest_quantbudget.request import LOAD, PERPLEXITY, WORKLOAD, Task
from pytest_quantbudget.units import format_apart, format_size, format_time, format_value

T = TypeVar("T")

WITHIN, OVER, SKIPPED, FAILED, NOT_RUN = "within", "over", "skipped", "failed", "not run"


@dataclass(frozen=True)
class Figure:
    """A measured value in base units, with what it is made of in words (repeats, counts, the two sides of a ratio)."""

    value: float
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of one limit.

    `outcome`: `within` and `over` the budget were measured; `skipped` could not be judged on this machine; `failed`
    could not be measured; `not run` was selected and never judged. `measured` and `limit` are in base units (bytes,
    seconds, tokens/s, percent, percentage points, ratio); `limit` is as the user wrote it in `limit_text`.
    """

    outcome: str
    message: str
    measured: float | None = None
    limit: float | None = None
    limit_text: str = ""
    unit: str = ""
    detail: str = ""
    for_want_of_gpu: bool = False


class Unmeasured(Exception):
    """A figure is missing; carries the failure that explains it."""

    def __init__(self, failure: Failure, method: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.method = method


def judge(budget: Budget, method: Method, limit: Limit, measured: Mapping[str, Measurement]) -> Verdict:
    """The verdict on one limit, from the measurements of its method and, for a relation, of the baseline."""
    own = measured[method.name]
    name = f"{method.name}: {limit.name}"
    device = own.device.name if own.device else ""
    target = limit.target(device) if device else limit.targets[0]
    try:
        if limit.kind.metric == "kernel":
            return _kernel(limit, name, device, _need(own.receipt, own, LOAD, method.name))
        figure = _figure(budget, method.name, limit.kind, measured)
    except Unmeasured as missing:
        whose = "" if missing.method == method.name else f"the baseline {missing.method}: "
        kind = missing.failure.kind
        outcome = FAILED if kind == "error" else SKIPPED
        message = f"{name} not measured: {whose}{missing.failure.message}"
        return Verdict(
            outcome, message, detail=missing.failure.detail, for_want_of_gpu=kind == "no-gpu", **_said(target)
        )
    if target is None:
        value = _shown(figure.value, limit.kind, limit.targets[0].unit)
        known = ", ".join(repr(t.pattern) for t in limit.targets)
        message = f"{name} has no limit for {device!r} (only for {known}); measured {value}"
        return Verdict(
            SKIPPED,
            message + _bracketed(figure.detail),
            figure.value,
            unit=limit.targets[0].unit,
            for_want_of_gpu=device == "cpu",
        )
    within = figure.value <= target.value if limit.kind.bound == "max" else figure.value >= target.value
    message = f"{name} {_compared(target, figure)}{_bracketed(figure.detail)}"
    return Verdict(WITHIN if within else OVER, message, figure.value, **_said(target))


def _kernel(limit: Limit, name: str, device: str, receipt: Receipt) -> Verdict:
    """The verdict on the classes of the quantized linear layers: a text instead of a number."""
    target = limit.target(device)
    if target is None:
        known = ", ".join(repr(t.pattern) for t in limit.targets)
        message = f"{name} has no limit for {device!r} (only for {known}); what ran: {receipt.kernels}"
        return Verdict(SKIPPED, message, for_want_of_gpu=device == "cpu")
    within = receipt.runs_on(target.text)
    message = f"{name} {target.text}, {'ran' if within else 'but what ran is'} {receipt.kernels}"
    return Verdict(WITHIN if within else OVER, message, limit_text=target.text)


def _said(target: Target | None) -> dict[str, Any]:
    return {"limit": target.value, "limit_text": target.text, "unit": target.unit} if target else {}


def _bracketed(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _compared(target: Target, figure: Figure) -> str:
    """`1.0 points, measured 1.6`: both in the user's unit, with digits enough to see the difference."""
    limit, value = format_apart(target.value, figure.value, target.unit)
    return f"{limit}, measured {value.removesuffix(' ' + target.unit) if target.unit in ('points',) else value}"


def _shown(value: float, kind: LimitKind, unit: str) -> str:
    return format_value(value, unit or kind.unit)


def _figure(budget: Budget, method: str, kind: LimitKind, measured: Mapping[str, Measurement]) -> Figure:
    if not kind.relation:
        return _absolute(budget, method, kind, measured[method])
    base = budget.baseline or ""
    if kind.relation == "against":
        return _against(budget, method, base, kind, measured)
    if kind.metric == "task":
        return _paired(budget, method, base, kind, measured)
    own, other = (_absolute(budget, name, kind, measured[name]).value for name in (method, base))
    return Figure(own / other, f"{_plain(own, kind)} against {base}'s {_plain(other, kind)}")


def _plain(value: float, kind: LimitKind) -> str:
    if kind.metric in ("vram", "weights"):
        return format_size(value)
    if kind.metric == "ppl":
        return format_value(value, "")
    return format_time(value) if kind.metric in ("ttft", "load_time") else format_value(value, "tokens/s")


def _absolute(budget: Budget, method: str, kind: LimitKind, record: Measurement) -> Figure:
    if kind.metric == "weights":
        return Figure(_need(record.weights, record, LOAD, method))
    if kind.metric == "quantized":
        held = _need(record.receipt, record, LOAD, method)
        return Figure(held.fraction, f"{held.quantized:,} of {held.parameters:,} parameters; kept: {held.kept}")
    if kind.metric == "load_time":
        return Figure(_need(record.load_time_s, record, LOAD, method))
    if kind.metric == "ppl":
        assert budget.text is not None
        found = _need(record.perplexity(budget.text), record, PERPLEXITY, method)
        return Figure(found.value, f"{found.tokens:,} tokens")
    if kind.metric == "task":
        result = _answers(budget.tasks[kind.task], record, method)
        right, n = sum(result.correct), len(result.answers)
        return Figure(result.accuracy, f"{right:,} of {n:,} right, {result.cut_off} cut off, {result.absent} absent")
    speed = _need(record.speed(budget.workload), record, WORKLOAD, method)
    if kind.metric == "vram":
        if speed.peak_allocated is None:
            raise Unmeasured(Failure(WORKLOAD, "no-gpu", "no GPU was found: device memory has no peak here"), method)
        return Figure(speed.peak_allocated)
    if kind.metric == "ttft":
        times = speed.ttft_s
        return Figure(speed.median_ttft_s, f"{format_time(min(times))} to {format_time(max(times))} in {len(times)}")
    rates = speed.tokens_per_s
    spread = f"{format_value(min(rates), '')} to {format_value(max(rates), '')} in {len(rates)} repeats"
    return Figure(speed.median_tokens_per_s, spread)


def _need(value: T | None, record: Measurement, phase: str, method: str) -> T:
    if value is None:
        raise Unmeasured(record.failure(phase) or Failure(phase, "error", f"{phase} gave no figure"), method)
    return value


def _answers(task: Task, record: Measurement, method: str) -> TaskResult:
    """The answers to a task, unless too many of them were cut off to be judged."""
    result = _need(record.task(task), record, task.phase, method)
    share = 100 * result.cut_off / len(result.answers)
    if share > task.max_truncated:
        why = (
            f"{share:.1f} % of {len(result.answers):,} answers to {task.name} were cut off after "
            f"{task.max_new_tokens:,} tokens, and max_truncated is {task.max_truncated:g} %"
        )
        raise Unmeasured(Failure(task.phase, "error", why), method)
    return result


def _against(budget: Budget, method: str, base: str, kind: LimitKind, measured: Mapping[str, Measurement]) -> Figure:
    """Figures of the method on the baseline's answers, over all tasks that have them."""
    results = [
        (task, _answers(task, measured[base], base), _answers(task, measured[method], method))
        for task in budget.asked_for(kind)
    ]
    if kind.metric in ("kl", "top1"):
        record = measured[method]
        return _diverged(
            kind, [_need(after.divergence, record, task.divergence_phase, method) for task, _, after in results]
        )
    told = [(task, before, after.agreement) for task, before, after in results]
    for task, before, agreement in told:
        if agreement is None:
            why = "the model cannot be fed the baseline's answers (see docs/metrics.md)"
            raise Unmeasured(Failure(task.phase, "error", why), method)
        if agreement.against != draft_id(before):
            raise Unmeasured(Failure(task.phase, "error", f"compared with other answers than {base}'s"), method)
    agreements = [agreement for _, _, agreement in told if agreement is not None]
    tokens = sum(a.tokens for a in agreements)
    if kind.metric == "agreement":
        agreed = sum(a.agreed for a in agreements)
        return Figure(100 * agreed / tokens, f"{agreed:,} of {tokens:,} tokens of {base}'s answers")
    lost = sum(a.baseline_logprob - a.logprob for a in agreements)
    return Figure(math.exp(min(lost / tokens, 700.0)), f"{tokens:,} tokens of {base}'s answers")


def _diverged(kind: LimitKind, found: Sequence[Divergence]) -> Figure:
    tokens = sum(d.tokens for d in found)
    if kind.metric == "top1":
        return Figure(100 * sum(d.same_top for d in found) / tokens, f"{tokens:,} tokens")
    worst = max(d.max_kl for d in found)
    return Figure(sum(d.mean_kl * d.tokens for d in found) / tokens, f"{tokens:,} tokens, at most {worst:.3g}")


def _paired(budget: Budget, method: str, base: str, kind: LimitKind, measured: Mapping[str, Measurement]) -> Figure:
    task = budget.tasks[kind.task]
    before, after = (_answers(task, measured[name], name) for name in (base, method))
    asked = [[a.question for a in result.answers] for result in (before, after)]
    if before.metric != after.metric:
        why = f"{base} was judged by {before.metric} and {method} by {after.metric}; name a `metric`"
        raise Unmeasured(Failure(task.phase, "error", why), method)
    if asked[0] != asked[1]:
        raise Unmeasured(Failure(task.phase, "error", f"{base} and {method} were asked different questions"), method)
    paired = stats.pair(before.correct, after.correct)
    return Figure(
        paired.drop if kind.relation == "drop" else paired.flips, f"b {paired.b}, c {paired.c} of {paired.n:,}"
    )
