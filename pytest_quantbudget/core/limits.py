"""A limit: what its name means, its value by device, and how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_quantbudget.core import units
from pytest_quantbudget.core.fields import ENERGY, SIZE, TIME, Kind
from pytest_quantbudget.core.gpus import matches
from pytest_quantbudget.core.problems import ANYWHERE, Columns

ESTIMATE, FAIL, PASS = "estimate", "fail", "pass"  # what an undecided limit's test does
FOR_UNDECIDED = {
    ESTIMATE: "the estimate decides",
    FAIL: "`undecided: fail` counts that as over",
    PASS: "`undecided: pass` lets that through",
}
Bound = Literal["min", "max"]
Relation = Literal["", "ratio", "speedup", "drop", "recovery", "flips", "against"]


@dataclass(frozen=True)
class LimitKind:
    """What a limit's name means: which way it bounds, which metric, how it relates to the baseline, in which unit.

    `part_of` names a limit whose figure this one's is part of, and says why: a higher value here says nothing. Of a
    distribution, the figure is the `percentile`.
    """

    name: str
    bound: Bound
    metric: str
    relation: Relation
    unit: str
    kind: Kind
    doc: str
    task: str = ""
    part_of: tuple[str, str] | None = None
    percentile: int | None = None

    def unit_of(self, value: float) -> str:
        """The unit in which a figure is written where no user gave one: of sizes and the like, what suits it."""
        if self.kind is ENERGY:
            return units.energy_unit(value)
        known = units.SIZES if self.kind is SIZE else units.TIMES if self.kind is TIME else None
        return units.pick_unit(value, known) if known else self.unit


AUTO = "auto"  # instead of a limit's value: --quant-update writes one


@dataclass(frozen=True)
class Judging:
    """How a limit is judged, see `budget.keys.JUDGING`. `expected_flips` in percent, None where the budget has none."""

    undecided: str = ESTIMATE
    confidence: float = 0.95
    expected_flips: float | None = None

    def under(self, values: Mapping[str, object]) -> Judging:
        """These rules with those `values` that are not None in their place."""
        given = {name: value for name, value in values.items() if value is not None}
        return replace(self, **given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Target:
    """A limit's value for the devices whose name matches `pattern`; in base units, and as the user wrote it.

    `value` is None where it reads `auto`.
    """

    pattern: str
    value: float | None
    text: str
    unit: str


@dataclass(frozen=True)
class Limit:
    """One line of a budget: one test."""

    kind: LimitKind
    targets: tuple[Target, ...]
    file: Path
    line: int
    judging: Judging = Judging()
    columns: Columns = ANYWHERE

    @property
    def name(self) -> str:
        """`max_vram`, `min_gsm8k`: the last part of the test's id."""
        return self.kind.name

    def target(self, device: str) -> Target | None:
        """The value for a device, or None where the budget has none for it."""
        return next((t for t in self.targets if matches(device, t.pattern)), None)
