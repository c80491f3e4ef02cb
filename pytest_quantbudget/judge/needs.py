"""What the selected limits of a run need measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.limits import AUTO, Limit
from pytest_quantbudget.core.request import DUMMY, DivergenceOf, LoadTime, Part, Reply, Request, Rule
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.accuracy import Accuracy
from pytest_quantbudget.judge.metrics.base import FACTOR

RUNS = 5  # repeat runs of the baseline that --quant-update makes by itself


def request(budget: Budget, method: Method, limits: Sequence[Limit] | None = None) -> Request:
    """What must be measured of a method for `limits`; where that is None, everything that the file declares.

    Of dummy weights only timings and memory are measured: they say nothing about quality.
    """
    tasks = budget.tasks.values()
    texts = (budget.text,) if budget.text else ()
    loads = (method.load,) if method.load else ()
    declared: list[Part] = [
        LoadTime(),
        budget.workload,
        Reply(budget.prompt),
        *tasks,
        *map(DivergenceOf, tasks),
        *texts,
        *loads,
    ]
    if budget.stored is not None:
        # A report holds no logits.
        declared = [part for part in declared if not isinstance(part, DivergenceOf)]
    needed: set[Part] = {Reply(budget.prompt)}
    if limits is None:
        needed.update([LoadTime(), budget.workload, *tasks, *texts, *loads])
    for limit in limits or ():
        needed.update(metric_of(limit.kind).parts(budget.basis_of(method.name), limit.kind))
    dummy = method.subject.load_format == DUMMY
    return Request(
        method.subject,
        tuple(part for part in declared if part in needed and (part.timing or not dummy)),
        timeout_s=method.timeout_s,
        max_age_s=budget.max_age_s,
        rules=tuple(_rules(budget, method.limits if limits is None else limits)),
        whole=tuple(budget.tasks) if method.name == budget.baseline else (),
    )


def _rules(budget: Budget, limits: Sequence[Limit]) -> Iterator[Rule]:
    """What ends the growing tasks: the limits on their answers."""
    for limit in limits:
        kind = limit.kind
        if kind.task and budget.tasks[kind.task].start is not None:
            if not limit.targets:
                # Of a change it is not known beforehand what would decide it.
                continue
            patterns, values = (tuple(getattr(t, name) for t in limit.targets) for name in ("pattern", "value"))
            on = kind.relation if kind.metric == Accuracy.name else kind.metric
            yield Rule(kind.task, on, kind.bound, patterns, values, limit.judging.confidence)


@dataclass
class Needs:
    """One request for each subject, which unites what all limits need of it; by the subject's key.

    `repeat_runs` says how many more times each budget's baseline is measured, to show how much runs differ. Where that
    is 0, the budgets in `timed` have their baseline's timings repeated RUNS times for the margins of limits to be
    written: of those without a number with `update` "auto", else of all.
    `files` holds, by the same keys, the name of the budget file that needed the subject first.
    """

    repeat_runs: int = 0
    update: str = ""
    timed: set[Path] = field(default_factory=set)
    requests: dict[str, Request] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, budget: Budget, method: Method, limits: Sequence[Limit] | None) -> None:
        """Add what `limits` of a method need (everything that the budget declares where None).

        Limits relative to the baseline need the same figures of it, unless it is a stored one; with repeat runs, all
        limits need those of what is repeated.
        """
        self._unite(budget, request(budget, method, limits))
        if any(self._needs_margin(limit) for limit in limits or ()):
            self.timed.add(budget.path)
        compared = budget.stored is None
        related = [limit for limit in limits or () if (limit.kind.relation and compared) or self.times(budget)]
        if related and budget.repeated is not None:
            self._unite(budget, request(budget, budget.repeated, related))

    def _needs_margin(self, limit: Limit) -> bool:
        """Whether a limit is going to be written whose margin is how much runs differ."""
        open_ = any(target.value is None for target in limit.targets)
        written = bool(self.update) and bool(limit.targets)
        return metric_of(limit.kind).margin == FACTOR and written and (open_ or self.update != AUTO)

    def times(self, budget: Budget) -> int:
        """How many repeat runs of a budget's baseline are made."""
        return self.repeat_runs or (RUNS if budget.path in self.timed else 0)

    def repeated(self, budget: Budget, needed: Request) -> Request:
        """What is measured in a repeat run, of all that is `needed` of the baseline."""
        parts = tuple(part for part in needed.parts if part.timing)
        return needed if self.repeat_runs else replace(needed, parts=parts)

    def _unite(self, budget: Budget, needed: Request) -> None:
        key = needed.subject.key
        self.requests[key] = self.requests[key].and_(needed) if key in self.requests else needed
        self.files.setdefault(key, budget.path.name)
