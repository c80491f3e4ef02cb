"""Under load: throughput of the best level, goodput and errors of the worst, and acceptance length of drafts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.load import UNDER_LOAD, Served
from pytest_quantbudget.core.units import format_time, format_value
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.base import FACTOR, Case, Column, Extremes, Figure, Metric, column
from pytest_quantbudget.judge.metrics.latency import (
    LATENCIES,
    Latency,
    OnLoad,
    failed,
    of_levels,
    remarks,
    result_of,
)

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement


class _Share(OnLoad):
    """A share of the requests of the worst level, from 0 to 1, with exact binomial bounds."""

    def hits(self, case: Case) -> Callable[[Served], bool]:
        """What says of a request whether it counts. Raises Unmeasured."""
        raise NotImplementedError

    def words(self, case: Case) -> str:
        """What is told of those that count."""
        raise NotImplementedError

    def absolute(self, case: Case) -> Figure:
        """The share at the worst level.

        The bound that a limit needs is that of the level which is the worst; the other holds for all levels together.
        """
        result, hit = result_of(case), self.hits(case)
        counts = [(sum(map(hit, level.served)), len(level.served)) for level in result.levels]
        pick = max if case.kind.bound == "max" else min
        worst = counts.index(pick(counts, key=lambda count: count[0] / count[1]))
        apart = 1 - (1 - case.confidence) / len(counts)
        low_at, high_at = (apart, case.confidence) if case.kind.bound == "max" else (case.confidence, apart)

        def more(times: float) -> Interval:
            low = pick(intervals.proportion_interval(h * times, n * times, low_at).low for h, n in counts)
            high = pick(intervals.proportion_interval(h * times, n * times, high_at).high for h, n in counts)
            return Interval(low / 100, high / 100)

        (hits, n), level = counts[worst], result.levels[worst]
        words = f"{hits:,} of {n:,} requests {self.words(case)} at {level.name}{of_levels(result.levels)}"
        return Figure(hits / n, words, more(1.0), n=n, of="requests", remark=remarks(result), more=more)

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """The bounds where all requests count, and where none does."""
        if basis.load is None:
            return None
        n = basis.load.requests
        apart = 1 - (1 - confidence) / max(1, len(basis.load.levels))
        low_at, high_at = (apart, confidence) if kind.bound == "max" else (confidence, apart)
        none = Interval(0.0, intervals.proportion_interval(0, n, high_at).high / 100)
        whole = Interval(intervals.proportion_interval(n, n, low_at).low / 100, 1.0)
        best, worst = (none, whole) if kind.bound == "max" else (whole, none)
        return Extremes(best, worst, n, "requests")


KNOWN = [metric.name for metric in LATENCIES]


class Goodput(_Share):
    """The share of requests that meet every latency limit of the budget.

    Zhong et al. 2024, "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
    Serving", OSDI 24: the attainment of objectives. Of several percentiles of one latency, the limit on the highest
    holds: that of a lower one is meant to be exceeded by many.
    """

    name = "goodput"
    limits = (
        LimitKind(
            "min_goodput",
            "min",
            "goodput",
            "",
            "",
            number(0, 1, closed="high"),
            "Share of requests under `load` that meet all latency limits of the method.",
        ),
    )

    def lacking(self, basis: Basis) -> str | None:
        """The load, and a latency limit."""
        missing = super().lacking(basis)
        if missing is None and not any(limit.kind.metric in KNOWN for limit in basis.limits):
            return "a latency limit of the method, such as max_ttft_p95, that says which requests count"
        return missing

    def objectives(self, case: Case) -> list[tuple[Latency, float, int]]:
        """The latency limits that a request has to meet, in seconds, each with its percentile. Raises Unmeasured."""
        device = case.record.device.name if case.record.device else ""
        found = []
        for metric in LATENCIES:
            limits = [limit for limit in case.basis.limits if limit.kind.metric == metric.name]
            targets = [(limit.kind.percentile or 0, limit.target(device)) for limit in limits]
            known = [(percentile, each.value) for percentile, each in targets if each is not None and each.value]
            if known:
                metric.check_waits(case)
                percentile, value = max(known)
                found.append((metric, value, percentile))
        if not found:
            why = "goodput needs a latency limit of the method with a number, and none has one for this device yet"
            raise case.unmeasured(UNDER_LOAD, why, "not offered")
        return found

    def hits(self, case: Case) -> Callable[[Served], bool]:
        """Those that meet all of them."""
        wanted = self.objectives(case)
        return lambda served: all(metric.met(served, limit, percentile / 100) for metric, limit, percentile in wanted)

    def words(self, case: Case) -> str:
        """The limits."""
        met = (f"{metric.what} {format_time(limit)}" for metric, limit, _ in self.objectives(case))
        return f"within {' and '.join(met)}"

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The share, where it is limited."""
        return (column(self, "goodput", "min_goodput", lambda v: format_value(v, ""), limited=True, stays=6),)


class ErrorRate(_Share):
    """The share of requests that failed: refused, cut off, too late, or with other tokens than asked for."""

    name = "error_rate"
    limits = (
        LimitKind(
            "max_error_rate", "max", "error_rate", "", "", number(0, 1, closed="low"),
            "Share of requests under `load` that fail.",
        ),
    )  # fmt: skip

    def hits(self, case: Case) -> Callable[[Served], bool]:
        """Those that failed."""
        return lambda served: bool(served.error)

    def words(self, case: Case) -> str:
        """That they failed."""
        return "failed"

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The share, where it is limited."""
        return (column(self, "errors", "max_error_rate", lambda v: format_value(v, ""), limited=True, stays=5),)


class Throughput(OnLoad):
    """Output tokens/s of all requests together at the best level. One total of one run: it has no bounds."""

    name = "throughput"
    noise_name = "throughput"
    margin = FACTOR
    limits = (
        LimitKind(
            "min_throughput", "min", "throughput", "", "tokens/s", number(0), "Output tokens/s under `load`, in sum."
        ),
    )

    def absolute(self, case: Case) -> Figure:
        """The total at the best level."""
        result = result_of(case)
        best = max(result.levels, key=lambda level: level.throughput)
        if not best.whole:
            raise case.unmeasured(UNDER_LOAD, "; ".join(map(failed, result.levels)))
        of = f", the best of {len(result.levels)} levels" if len(result.levels) > 1 else ""
        return Figure(best.throughput, f"{len(best.whole):,} answers at {best.name}{of}", remark=remarks(result))

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The best level of a run."""
        result = record.load(basis.load) if basis.load is not None else None
        return max(level.throughput for level in result.levels) or None if result else None

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The total."""
        return (column(self, "throughput", "min_throughput", lambda v: format_value(v, ""), optional=True, stays=7),)


class AcceptanceLength(OnLoad):
    """Speculative decoding: tokens a step, those of the draft that were accepted and the model's own."""

    name = "acceptance_length"
    noise_name = "acceptance length"
    margin = FACTOR
    limits = (
        LimitKind(
            "min_acceptance_length",
            "min",
            "acceptance_length",
            "",
            "",
            number(1, closed="low"),
            "Mean tokens a step of speculative decoding under `load`, the model's own included.",
        ),
    )

    def absolute(self, case: Case) -> Figure:
        """The mean over all levels."""
        result = result_of(case)
        length = result.acceptance_length
        if length is None:
            raise case.unmeasured(UNDER_LOAD, result.undrafted or "no draft was made", "not offered")
        text = "" if result.load.file else "random prompts, which no draft foresees: `file` of the load names a text"
        return Figure(length, f"{result.accepted:,} tokens accepted of {result.drafts:,} drafts", remark=text)

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The mean of a run."""
        result = record.load(basis.load) if basis.load is not None else None
        return result.acceptance_length if result else None

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The mean, where it is limited."""
        text = functools.partial(format_value, unit="")
        return (column(self, "acceptance", "min_acceptance_length", text, limited=True, stays=5),)


ON_LOAD: Sequence[Metric] = (*LATENCIES, Throughput(), Goodput(), ErrorRate(), AcceptanceLength())
