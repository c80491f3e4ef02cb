"""The metrics: one object each, listed here. A new metric is one file and one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pytest_quantbudget.core import entry_points
from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.judge.metrics.accuracy import Accuracy
from pytest_quantbudget.judge.metrics.agreement import AnswerPerplexity, TokenAgreement
from pytest_quantbudget.judge.metrics.answer_form import Absent, AnswerTokens
from pytest_quantbudget.judge.metrics.base import Case, Figure, Metric, check_devices, tidy
from pytest_quantbudget.judge.metrics.divergence import KlDivergence, KlPercentile, Top1Agreement
from pytest_quantbudget.judge.metrics.energy import DecodeEnergy, PrefillEnergy
from pytest_quantbudget.judge.metrics.layers import Kernel, QuantizedFraction
from pytest_quantbudget.judge.metrics.load import ON_LOAD
from pytest_quantbudget.judge.metrics.memory import Disk, KvTokens, Vram, VramProcess, VramReserved, Weights
from pytest_quantbudget.judge.metrics.perplexity import TextPerplexity
from pytest_quantbudget.judge.metrics.quantizing import QuantizeSeconds
from pytest_quantbudget.judge.metrics.recovery import Recovery
from pytest_quantbudget.judge.metrics.reference import PublishedScore
from pytest_quantbudget.judge.metrics.speed import LoadSeconds, TokensPerS, Ttft

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement

# In the order of the table's columns.
METRICS: list[Metric] = [
    Vram(),
    VramReserved(),
    VramProcess(),
    Weights(),
    Disk(),
    KvTokens(),
    TokensPerS(),
    Ttft(),
    DecodeEnergy(),
    PrefillEnergy(),
    LoadSeconds(),
    QuantizeSeconds(),
    *ON_LOAD,
    QuantizedFraction(),
    Kernel(),
    Accuracy(),
    PublishedScore(),
    Recovery(),
    AnswerTokens(),
    Absent(),
    TokenAgreement(),
    TextPerplexity(),
    AnswerPerplexity(),
    KlDivergence(),
    KlPercentile(),
    Top1Agreement(),
]


def others() -> entry_points.Added:
    """The metrics of other packages: an entry point of `pytest_quantbudget.metrics` names a Metric."""
    return entry_points.added(entry_points.METRICS, Metric, tuple(metric.name for metric in METRICS))


def known() -> list[Metric]:
    """All metrics. Of limits of one name the first counts, so that none of ours changes its meaning."""
    return [*METRICS, *others().objects.values()]


def metric_of(kind: LimitKind) -> Metric:
    """The metric that a limit is on."""
    return next(metric for metric in known() if metric.name == kind.metric)


def limits() -> dict[str, LimitKind]:
    """Every limit that needs no task, by name."""
    found: dict[str, LimitKind] = {}
    for kind in (kind for metric in known() for kind in metric.limits):
        found.setdefault(kind.name, kind)
    return found


def percentile_limit(name: str) -> LimitKind | None:
    """A limit of a family that is too large to be listed, by name: `max_ttft_p90`."""
    return next((kind for metric in known() if (kind := metric.named(name)) is not None), None)


def task_limits(task: str) -> tuple[LimitKind, ...]:
    """The limits that a declared task adds: accuracy in percent, drop in percentage points, flips in percent."""
    return tuple(kind for metric in known() for kind in metric.limits_of(task))


def limit_kinds(tasks: Iterable[str]) -> dict[str, LimitKind]:
    """Every limit that a file with these tasks may use, by name."""
    return {**limits(), **{kind.name: kind for task in tasks for kind in task_limits(task)}}


def figure(basis: Basis, method: str, limit: Limit, measured: Mapping[str, Measurement]) -> Figure:
    """The figure that a limit of a method is judged on, from records by method name. Raises Unmeasured."""
    metric = metric_of(limit.kind)
    case = Case(basis, limit.kind, method, measured, limit.judging.confidence)
    if limit.kind.relation:
        check_devices(case, metric)
    return tidy(metric.figure(case), case.confidence)
