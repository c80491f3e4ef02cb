"""A budget file as records: its methods and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.problems import ANYWHERE, Columns, Marked
from pytest_quantbudget.core.request import Subject, Task, Text, Workload

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement

# What a method is chosen for, and the name under which the tests of these stand in a file's ids: `FILE::use::edge`.
DEVELOPMENT, QLORA, PRODUCTION, EDGE = USES = ("development", "qlora", "production", "edge")
USE = "use"
MAX_AGE_S = 12 * 3600.0  # a nightly gate times anew every night, and the rerun of a failed job does not


@dataclass(frozen=True)
class Traits:
    """What a method is good for, whatever is measured of it.

    It is `ready` where it needs no file made beforehand, and `trains` where an adapter can be trained on top of it.
    """

    ready: bool = True
    trains: bool = False


@dataclass(frozen=True)
class Use:
    """A line of a budget that wants a method for a use: one test."""

    name: str
    file: Path
    line: int
    columns: Columns = ANYWHERE


@dataclass(frozen=True)
class Source:
    """The text of a file that a budget was read from."""

    file: str
    text: str


@dataclass(frozen=True)
class Method:
    """One method of a budget with its limits; `engine_options` are where those of its engine stand, by name.

    `changes` are limits on how much its figures may change from run to run.
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
    traits: Traits = Traits()
    changes: tuple[ChangeLimit, ...] = ()

    @property
    def all_limits(self) -> tuple[Limit | ChangeLimit, ...]:
        """Everything of it that is a test: its limits, and those on changes."""
        return (*self.limits, *self.changes)


@dataclass(frozen=True)
class Basis:
    """What figures are taken on: a workload, tasks by name, a text, and the method that others are compared with.

    Of one method also its load, and its limits, which say what a request has to meet. The methods `decompressed` are
    those whose memory and speed count also where the engine runs their checkpoint decompressed. A `stored`
    baseline was measured by an earlier run.
    """

    workload: Workload
    tasks: Mapping[str, Task]
    text: Text | None
    baseline: str | None
    load: Load | None = None
    limits: tuple[Limit, ...] = ()
    decompressed: tuple[str, ...] = ()
    stored: bool = False


@dataclass(frozen=True)
class StoredBaseline:
    """A method of a report that an earlier run has written, with which the methods of a budget are compared.

    `name` is what messages call it, `nf4 of v1.3.json`; `file` the report, and `budget` and `method` the names in it.
    It was `measured` then (ISO 8601), on a machine with this `cpu`. The `measurement` holds what the report has of the
    parts that the budget declares.
    """

    name: str
    file: Path
    budget: str
    method: str
    measured: str
    cpu: str
    measurement: Measurement


@dataclass(frozen=True)
class Budget:
    """A budget file, checked. `totals` tells how many questions of a task are asked at most, where that is known.

    `model_at` is where the model is named. `sources` are the file's text, and those of the files that it extends.
    `baseline` is the name of what methods are compared with: of one of them, or that of the `stored` one.
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
    stored: StoredBaseline | None = None
    uses: tuple[Use, ...] = ()
    sources: tuple[Source, ...] = ()

    @property
    def basis(self) -> Basis:
        """What its figures are taken on."""
        decompressed = tuple(method.name for method in self.methods if method.decompressed)
        stored = self.stored is not None
        return Basis(self.workload, self.tasks, self.text, self.baseline, decompressed=decompressed, stored=stored)

    @property
    def base(self) -> Method | None:
        """The method that others are compared with; None where there is none, or where it is a stored one."""
        return self.method(self.baseline) if self.baseline is not None and self.stored is None else None

    @property
    def repeated(self) -> Method | None:
        """What repeat runs are made of: the baseline, or the first method where the baseline is a stored one."""
        return self.methods[0] if self.stored is not None else self.base

    def measured(self, measurements: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """Those of the measurements (by subject) that are of its methods, by their names; the stored baseline's too."""
        stored = {self.stored.name: self.stored.measurement} if self.stored is not None else {}
        own = {m.name: measurements[m.subject.key] for m in self.methods if m.subject.key in measurements}
        return {**stored, **own}

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
