"""A budget file as records: its methods and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.problems import Marked
from pytest_quantbudget.core.request import Subject, Task, Text, Workload

MAX_AGE_S = 12 * 3600.0  # a nightly gate times anew every night, and the rerun of a failed job does not


@dataclass(frozen=True)
class Method:
    """One method of a budget with its limits; `engine_options` are where those of its engine stand, by name.

    Where `decompressed`, its memory and speed are judged also where the engine runs its checkpoint decompressed.
    """

    name: str
    subject: Subject
    limits: tuple[Limit, ...]
    marks: tuple[str, ...]
    gpu: GpuNeed | None
    timeout_s: float
    line: int
    load: Load | None = None
    engine_options: Mapping[str, Marked] = field(default_factory=dict)
    decompressed: bool = False


@dataclass(frozen=True)
class Basis:
    """What figures are taken on: a workload, tasks by name, a text, and the method that others are compared with.

    Of one method also its load, and its limits, which say what a request has to meet. The methods `decompressed` are
    those whose memory and speed count also where the engine runs their checkpoint decompressed.
    """

    workload: Workload
    tasks: Mapping[str, Task]
    text: Text | None
    baseline: str | None
    load: Load | None = None
    limits: tuple[Limit, ...] = ()
    decompressed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """A budget file, checked. `totals` tells how many questions of a task are asked at most, where that is known.

    `model_at` is where the model is named.
    """

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
    model_at: Marked | None = None

    @property
    def basis(self) -> Basis:
        """What its figures are taken on."""
        decompressed = tuple(method.name for method in self.methods if method.decompressed)
        return Basis(self.workload, self.tasks, self.text, self.baseline, decompressed=decompressed)

    def basis_of(self, name: str) -> Basis:
        """What the figures of one method are taken on; of a repeat run, those of the baseline."""
        method = next((each for each in self.methods if each.name == name), None)
        return replace(self.basis, load=method.load, limits=method.limits) if method else self.basis

    def method(self, name: str) -> Method:
        """The method of that name. Raises KeyError where the budget has none."""
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(name)
