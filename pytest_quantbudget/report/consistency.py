"""Whether a stored report agrees with itself: a report that was cut, edited or mixed gives no verdicts."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_quantbudget.core.answers import INVALID, Agreement, Answer, Divergence, TaskResult
from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.core.measurement import COMPILED, Measurement, Perplexity, Speed
from pytest_quantbudget.core.request import Task, Text, Workload
from pytest_quantbudget.report.document import Report

MAX_REPORTS = 1_000  # that were judged together
CLOSE = 1e-6  # share by which sums of rounded parts may differ from their total


def check(report: Report) -> None:
    """Raise ValueError, naming method and part, where what a report holds cannot all be true."""
    if len(report.merged_from) > MAX_REPORTS:
        raise ValueError(f"it was judged from {len(report.merged_from):,} reports, and {MAX_REPORTS:,} are the most")
    for budget in report.budgets:
        names = collections.Counter(method.name for method in budget.methods)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"{budget.file} has the method {twice[0]!r:.60} twice")
        files = {source.file for source in report.merged_from}
        for method in budget.methods:
            if method.from_report and method.from_report not in files:
                raise ValueError(f"{method.name} is from {method.from_report!r:.60}, which is none of its sources")
            records = [record for record in (method.measurement, method.against) if record is not None]
            found = next((fault for record in records for fault in _contradictions(record)), "")
            if found:
                raise ValueError(f"contradicts itself: {budget.file}, {method.name}: {found}")


def _contradictions(measured: Measurement) -> Iterator[str]:
    yield from _twice(measured)
    for speed in measured.speeds:
        yield from _named("workload", _speed(speed))
    for task in measured.tasks:
        yield from _named(task.task.phase, _task(task))
        if task.agreement is not None:
            yield from _named(f"agreement on {task.task.name}", _agreement(task.agreement, len(task.answers)))
        if task.divergence is not None:
            yield from _named(task.task.divergence_phase, _divergence(task.divergence))
    for text in measured.perplexities:
        yield from _named("perplexity", _perplexity(text))
    for result in measured.loads:
        yield from _named("load", _load(result))
    for layers in measured.receipt.layers if measured.receipt else ():
        if layers.bits < 0 or layers.count < 1 or layers.parameters < 0:
            yield f"layers: {layers.count} {layers.name:.40} of {layers.bits} bits"


def _named(what: str, faults: Iterator[str]) -> Iterator[str]:
    return (f"{what}: {fault}" for fault in faults)


def _twice(measured: Measurement) -> Iterator[str]:
    """Two results of one part, or a result beside the failure that says that there is none."""
    failed = {failure.phase for failure in measured.failures}
    for kind in (Workload, Task, Text, Load):
        parts: list[Any] = [getattr(result, kind.named) for result in getattr(measured, kind.held_in)]
        if len(set(parts)) < len(parts):
            yield f"{parts[0].noun} stand there twice"
        yield from (f"{part.noun} stand beside the failure of their phase" for part in parts if part.phase in failed)
    for task in measured.tasks:
        if task.divergence is not None and task.task.divergence_phase in failed:
            yield f"a divergence on {task.task.name} stands beside the failure of its phase"


def _speed(speed: Speed) -> Iterator[str]:
    repeats = speed.workload.repeats
    for name in ("ttft_s", "decode_s", "peaks", "reserved_peaks", "gpu_ttft_s", "gpu_decode_s"):
        count = len(getattr(speed, name))
        if count != repeats and (count or name in ("ttft_s", "decode_s")):
            yield f"{count} values of {name}, and the workload has {repeats} repeats"
    if (speed.decode == COMPILED) != speed.workload.compile:
        yield f"its decoding was {speed.decode[:20]}, and `compile` is {json.dumps(speed.workload.compile)}"
    if speed.energy is not None and not speed.energy.why:
        told = len(speed.energy.prefill_j), len(speed.energy.decode_j)
        if told != (speed.workload.repeats,) * 2:
            yield f"{told[0]} and {told[1]} energies, and the workload has {speed.workload.repeats:,} repeats"
    of_runs = (speed.peak_allocated, speed.peak_reserved, speed.peak_process)
    of_repeats = (speed.peaks, speed.reserved_peaks, speed.process_peaks)
    for peak, peaks in zip(of_runs, of_repeats, strict=True):
        if peaks and max(peaks) > (peak or 0):
            yield "a repeat's peak is above that of all runs"
        if min(peaks, default=0) < 0:
            yield "a peak is below 0"
    if speed.peak_allocated and speed.peak_reserved and speed.peak_allocated > speed.peak_reserved:
        yield "more is allocated than reserved"


def _load(result: LoadResult) -> Iterator[str]:
    load = result.load
    for level in result.levels:
        if len(level.served) != load.requests:
            yield f"{len(level.served):,} requests at {level.name}, and the load has {load.requests:,}"
        for served in level.served:
            if not served.error and served.tokens != load.new_tokens:
                yield f"{served.tokens:,} tokens in an answer of {load.new_tokens:,}"
        last = max((served.sent_s + served.e2e_s for served in level.whole), default=0.0)
        if last > level.seconds + CLOSE:
            yield f"an answer ended {last - level.seconds:g} s after the end of {level.name}"


def _task(result: TaskResult) -> Iterator[str]:
    task, n = result.task, len(result.answers)
    most = collections.Counter(answer.question for answer in result.answers).most_common(1)[0]
    if most[1] > 1:
        yield f"question {most[0]} was answered {most[1]} times"
    if n < result.total and not result.stopped:
        yield f"{n:,} answers, {result.total:,} were planned, and nothing says why there are fewer"
    if task.questions is not None and task.questions != result.total:
        yield f"{task.questions:,} questions were asked for, and {result.total:,} planned"
    if n > result.total > 0 or not 0 <= result.resumed <= n or not 0 <= result.seconds < math.inf:
        yield f"{n:,} answers of {result.total:,}, {result.resumed:,} resumed, in {result.seconds:g} s"
    for answer in result.answers:
        yield from _answer(answer)


def _answer(answer: Answer) -> Iterator[str]:
    where = f"the answer to question {answer.question}"
    if min(answer.ids, default=0) < 0:
        yield f"{where} has the token {min(answer.ids)}"
    if answer.question < 0 or answer.tokens < 0 or not 0 <= answer.seconds < math.inf:
        yield f"{where} has {answer.tokens} tokens and took {answer.seconds:g} s"
    if answer.logprob is not None and not -math.inf < answer.logprob <= 0:
        yield f"{where} has the log-probability {answer.logprob:g}"
    if (answer.strict == INVALID and answer.strict_correct) or (answer.flexible == INVALID and answer.flexible_correct):
        yield f"{where} is right, and no answer was found in it"


def _agreement(found: Agreement, answers: int) -> Iterator[str]:
    lists = (found.each_tokens, found.each_agreed, found.each_lost)
    if {len(each) for each in lists} != {answers}:
        yield f"{answers:,} answers, and {', '.join(str(len(each)) for each in lists)} parts of them"
    elif (sum(found.each_tokens), sum(found.each_agreed)) != (found.tokens, found.agreed):
        yield "its parts do not add up"
    elif not _close(sum(found.each_lost), found.baseline_logprob - found.logprob, found.baseline_logprob):
        yield "its log-probabilities do not add up"
    elif not all(0 <= agreed <= size for agreed, size in zip(found.each_agreed, found.each_tokens, strict=True)):
        yield "more tokens agree than there are"


def _divergence(found: Divergence) -> Iterator[str]:
    lists = (found.each_tokens, found.each_same, found.each_kl)
    if len({len(each) for each in lists}) > 1 or not found.each_tokens:
        yield f"{', '.join(str(len(each)) for each in lists)} parts of single answers"
    elif (sum(found.each_tokens), sum(found.each_same)) != (found.tokens, found.same_top):
        yield "its parts do not add up"
    elif not _close(sum(found.each_kl), found.mean_kl * found.tokens, found.max_kl):
        yield "its divergences do not add up"
    elif not 0 <= found.mean_kl <= found.max_kl * (1 + CLOSE) or found.p99_kl > found.max_kl * (1 + CLOSE):
        yield "its mean or its 99 % quantile is above its maximum, or below 0"
    elif min(found.each_kl) < 0 or not all(
        0 <= same <= size for same, size in zip(found.each_same, found.each_tokens, strict=True)
    ):
        yield "a part is out of range"
    elif found.token_kls:
        tokens = found.tokens_kl
        if tuple(map(len, tokens)) != found.each_tokens:
            yield f"{sum(map(len, tokens))} divergences of single tokens, and {found.tokens} tokens"
        elif not all(_close(sum(each), told, found.max_kl) for each, told in zip(tokens, found.each_kl, strict=True)):
            yield "the divergences of its tokens do not add up"


def _perplexity(found: Perplexity) -> Iterator[str]:
    lists: tuple[Sequence[float], Sequence[float]] = (found.each_tokens, found.each_nll)
    if len(lists[0]) != len(lists[1]) or not lists[0]:
        yield f"{len(lists[0])} and {len(lists[1])} parts of single windows"
    elif sum(lists[0]) != found.tokens or not _close(sum(lists[1]), found.nll, found.nll):
        yield "its windows do not add up"
    elif min(lists[0]) < 1 or min(lists[1]) < 0:
        yield "a window is out of range"


def _close(total: float, told: float, scale: float) -> bool:
    return abs(total - told) <= CLOSE * max(1.0, abs(told), abs(scale))
