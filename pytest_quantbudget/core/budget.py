"""A budget file as records: its methods, their limits, and what measuring them needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.request import (
    DUMMY,
    DivergenceOf,
    LoadTime,
    Part,
    Reply,
    Request,
    Rule,
    Subject,
    Task,
    Text,
    Workload,
)

MAX_AGE_S = 12 * 3600.0  # a nightly gate times anew every night, and the rerun of a failed job does not


@dataclass(frozen=True)
class Method:
    """One method of a budget with its limits."""

    name: str
    subject: Subject
    limits: tuple[Limit, ...]
    marks: tuple[str, ...]
    gpu: GpuNeed | None
    timeout_s: float
    line: int


@dataclass(frozen=True)
class Budget:
    """A budget file, checked. `totals` tells how many questions of a task are asked at most, where that is known."""

    path: Path
    model: str
    baseline: str | None
    workload: Workload
    prompt: str
    tasks: Mapping[str, Task]
    methods: tuple[Method, ...]
    max_age_s: float = MAX_AGE_S
    text: Text | None = None
    totals: Mapping[str, int] = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method of that name. Raises KeyError where the budget has none."""
        return next((m for m in self.methods if m.name == name), None) or _raise(KeyError(name))

    def asked_for(self, kind: LimitKind) -> list[Task]:
        """The tasks whose answers a limit is judged on."""
        if kind.metric in ("agreement", "answer_ppl"):
            return [task for task in self.tasks.values() if task.harness is None]
        if kind.metric in ("kl", "top1"):
            return [task for task in self.tasks.values() if task.divergence]
        return [self.tasks[kind.task]] if kind.metric == "task" else []

    def request(self, method: Method, limits: Sequence[Limit] | None = None) -> Request:
        """What has to be measured of a method for `limits`; for everything the file declares where that is None."""
        metrics = {limit.kind.metric for limit in limits or ()}
        tasks = {task.name for limit in limits or () for task in self.asked_for(limit.kind)}
        speed = limits is None or bool(metrics & {"vram", "tokens_per_s", "ttft"})
        parts: list[Part] = []
        if limits is None or "load_time" in metrics:
            parts.append(LoadTime())
        if speed:
            parts.append(self.workload)
        if method.subject.load_format != DUMMY:
            parts.append(Reply(self.prompt))
            parts += [task for name, task in self.tasks.items() if limits is None or name in tasks]
            parts += [DivergenceOf(task) for task in self._diverging(metrics)]
            parts += [self.text] if self.text and (limits is None or "ppl" in metrics) else []
        return Request(
            method.subject,
            tuple(parts),
            timeout_s=method.timeout_s,
            max_age_s=self.max_age_s,
            rules=tuple(self._rules(method.limits if limits is None else limits)),
            whole=tuple(self.tasks) if method.name == self.baseline else (),
        )

    def _rules(self, limits: Sequence[Limit]) -> Iterator[Rule]:
        """What ends the growing tasks: their limits on drop, flips and score."""
        for limit in limits:
            if limit.kind.metric == "task" and self.tasks[limit.kind.task].start is not None:
                patterns, values = (tuple(getattr(t, name) for t in limit.targets) for name in ("pattern", "value"))
                kind = limit.kind
                yield Rule(kind.task, kind.relation, kind.bound, patterns, values, limit.judging.confidence)

    def _diverging(self, metrics: Set[str]) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks.values() if task.divergence and metrics & {"kl", "top1"})


def _raise(error: Exception) -> Any:
    raise error
