"""Latencies under load: percentiles of the worst level, with bounds by order statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.load import UNDER_LOAD, Level, LoadResult, Served
from pytest_quantbudget.core.request import Part
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.base import Case, Column, Extremes, Figure, Metric
from pytest_quantbudget.judge.metrics.percentiles import PERCENTILES, Percentiles

BEHIND_S = 0.005  # by which requests may be sent late without a word
NO_LOAD = "`load`, of the file or of the method"


def result_of(case: Case) -> LoadResult:
    """What came of the method's load. Raises Unmeasured."""
    if case.basis.load is None:
        raise case.unmeasured(UNDER_LOAD, f"it needs {NO_LOAD}")
    return case.need(case.record.load(case.basis.load), UNDER_LOAD)


def failed(level: Level) -> str:
    """How many requests of a level failed, and of what; empty where none did."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in level.errors.items())
    count = sum(level.errors.values())
    return f"{count:,} of {len(level.served):,} requests failed at {level.name} ({kinds})" if count else ""


def remarks(result: LoadResult) -> str:
    """What else is worth knowing of a load's figures."""
    told = list(filter(None, map(failed, result.levels)))
    cached = [served.cached for level in result.levels for served in level.served if served.cached]
    if cached:
        told.append(f"{sum(cached):,} tokens of {len(cached):,} prompts came from a prefix cache: no time for those")
    late = max(level.behind_s for level in result.levels)
    if late > BEHIND_S:
        told.append(f"requests were sent up to {format_time(late)} late: the client was busy itself")
    return "; ".join((*told, *result.notes))


class OnLoad(Metric):
    """A figure of the requests of a load."""

    coarse = True

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The load."""
        return (basis.load,) if basis.load is not None else ()

    def lacking(self, basis: Basis) -> str | None:
        """The load."""
        return NO_LOAD if basis.load is None else None


class Latency(OnLoad, Percentiles):
    """A percentile of a latency, with bounds by order statistics; seconds. Failed requests count as infinitely late."""

    of = "the requests under `load`"
    listed = (50, 95, 99)
    shown: ClassVar[bool] = True  # percentile 95, whether it is limited or not
    # Whether requests are as many as what is ranked: how much waits of one request are alike is not known before.
    ranked: ClassVar[bool] = True

    def values(self, level: Level) -> Sequence[float]:
        """The latency of each request."""
        raise NotImplementedError

    def interval(self, level: Level, share: float, confidence: float, times: float) -> Interval:
        """Bounds of a quantile at one level."""
        return intervals.quantile_interval(self.values(level), share, confidence, times)

    def met(self, served: Served, limit: float, share: float) -> bool:
        """Whether one request keeps to a limit on that share of requests."""
        raise NotImplementedError

    def check_waits(self, case: Case) -> None:
        """Raise Unmeasured where the waits that the latency is made of are not told."""

    def absolute(self, case: Case) -> Figure:
        """The percentile at the worst level. Raises Unmeasured.

        Its upper bound is that of the level which is the highest; a lower bound holds for all levels together.
        """
        self.check_waits(case)
        result, percentile = result_of(case), case.kind.percentile or 0
        share, levels = percentile / 100, result.levels
        found = [intervals.quantile(self.values(level), share) for level in levels]
        worst = max(range(len(found)), key=found.__getitem__)
        level = levels[worst]
        if not math.isfinite(found[worst]):
            raise case.unmeasured(UNDER_LOAD, f"{failed(level)}: percentile {percentile} is one of them")
        apart = 1 - (1 - case.confidence) / len(levels)

        def more(times: float) -> Interval:
            low = max(self.interval(each, share, apart, times).low for each in levels)
            return Interval(max(0.0, low), max(self.interval(e, share, case.confidence, times).high for e in levels))

        n = len(level.served)
        words = f"percentile {percentile} of {n:,} requests at {level.name}{of_levels(levels)}"
        enough = max(_enough(share, case.confidence, len(levels))) if self.ranked else 0
        return Figure(
            found[worst], words, more(1.0), n=n, of="requests", remark=remarks(result), more=more, enough=enough
        )

    def extremes(self, kind: LimitKind, basis: Basis, totals: Mapping[str, int], confidence: float) -> Extremes | None:
        """Infinite bounds, where there are too few requests for others."""
        if basis.load is None or kind.percentile is None or not self.ranked:
            return None
        share, n = kind.percentile / 100, basis.load.requests
        upper, lower = _enough(share, confidence, len(basis.load.levels))
        best = Interval(0.0, math.inf if n < upper else 0.0)
        worst = Interval(0.0 if n < lower else math.inf, math.inf)
        return Extremes(best, worst, n, "requests", max(upper, lower)) if n < max(upper, lower) else None

    def unit(self, *values: float) -> str:
        """None: there is no ratio."""
        return ""

    def columns(self, basis: Basis) -> Sequence[Column]:
        """Percentile 95, and those that the budget limits."""
        return [
            Column(
                f"{self.what} p{percentile}",
                lambda case: format_time(self.figure(case).value),
                self.kind(percentile),
                optional=True,
                limited=percentile != 95 or not self.shown,
                stays=5,
            )
            for percentile in PERCENTILES
        ]


def of_levels(levels: Sequence[Level]) -> str:
    """That a figure is the worst of several levels."""
    return f", the worst of {len(levels)} levels" if len(levels) > 1 else ""


def _enough(share: float, confidence: float, levels: int) -> tuple[int, int]:
    """How many requests bound a quantile from above, and how many from below."""
    apart = 1 - (1 - confidence) / levels
    fewest = intervals.fewest_for_quantile
    return fewest(share, confidence, "max"), fewest(share, apart, "min")


def check_chunks(case: Case) -> None:
    """Raise Unmeasured where answers came whole, in one chunk each: then no wait for a token was seen."""
    for level in result_of(case).levels:
        if level.whole and not any(served.waits for served in level.whole):
            why = f"every answer at {level.name} came in one chunk, so that no wait between tokens was seen"
            raise case.unmeasured(UNDER_LOAD, why, "not offered")


class TtftUnderLoad(Latency):
    """Time to first token: from sending a request until its first token came."""

    name, what, doc = "ttft_under_load", "ttft", "Time to first token"

    def values(self, level: Level) -> Sequence[float]:
        """Of each request."""
        return [served.first_s for served in level.served]

    def met(self, served: Served, limit: float, share: float) -> bool:
        """By its time to first token."""
        return served.first_s <= limit


class TpotUnderLoad(Latency):
    """Time per output token: from the first to the last, over their number without the first."""

    name, what, doc = "tpot_under_load", "tpot", "Time per output token after the first, a mean over each request"

    def check_waits(self, case: Case) -> None:
        """It is made of them."""
        check_chunks(case)

    def values(self, level: Level) -> Sequence[float]:
        """Of each request."""
        return [served.tpot_s for served in level.served]

    def met(self, served: Served, limit: float, share: float) -> bool:
        """By its mean."""
        return served.tpot_s <= limit


class ItlUnderLoad(Latency):
    """Inter-token latency: each wait for the next chunk of tokens, over all requests."""

    name, what, doc = "itl_under_load", "itl", "Inter-token latency, each wait for the next tokens"
    shown = False
    ranked = False

    def check_waits(self, case: Case) -> None:
        """Single ones are asked for."""
        tool = result_of(case).tool
        if tool is not None:
            raise case.unmeasured(UNDER_LOAD, f"{tool} tells only the mean wait of each request", "not offered")
        check_chunks(case)

    def clusters(self, level: Level) -> list[Sequence[float]]:
        """The waits of each request; those of a failed one would have been a wait a token."""
        most = max(2, *(served.tokens for served in level.served))
        return [(math.inf,) * (most - 1) if served.error else served.waits_s for served in level.served]

    def values(self, level: Level) -> Sequence[float]:
        """All waits."""
        return [wait for waits in self.clusters(level) for wait in waits]

    def interval(self, level: Level, share: float, confidence: float, times: float) -> Interval:
        """Bounds for waits of one request, which are alike."""
        return intervals.clustered_quantile_interval(self.clusters(level), share, confidence, times)

    def met(self, served: Served, limit: float, share: float) -> bool:
        """By the percentile of its own waits."""
        return not served.error and (not served.waits_s or intervals.quantile(served.waits_s, share) <= limit)


class E2eUnderLoad(Latency):
    """End to end: from sending a request until its last token came."""

    name, what, doc = "e2e_under_load", "e2e", "Time from sending a request until its last token came"
    shown = False

    def values(self, level: Level) -> Sequence[float]:
        """Of each request."""
        return [served.e2e_s for served in level.served]

    def met(self, served: Served, limit: float, share: float) -> bool:
        """By its time."""
        return served.e2e_s <= limit


LATENCIES: Sequence[Latency] = (TtftUnderLoad(), TpotUnderLoad(), ItlUnderLoad(), E2eUnderLoad())
