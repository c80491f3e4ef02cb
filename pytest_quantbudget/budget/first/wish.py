"""What a first budget was asked for, and what was chosen for it: records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.budget.first.cards import Card
from pytest_quantbudget.models.survey import Survey


@dataclass(frozen=True)
class Wish:
    """What a first budget was asked for.

    `methods` are kinds, none for those of the `use`. `model`, `checkpoints`, `calibration`, `questions` and `adapter`
    are as the budget will say them; `places` has the whole path of a checkpoint that is on this machine. `ram` (bytes)
    counts where there are no `cards`; None where it is not known.
    """

    model: str
    found: Survey
    revision: str | None = None
    use: str | None = None
    methods: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    calibration: str | None = None
    questions: str | None = None
    adapter: str | None = None
    cards: tuple[Card, ...] = ()
    ram: int | None = None
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """A method of the budget: its name and what stands under it, but for its limits.

    `needs` are bytes of GPU memory, None where that is not known. `remarks` are comments, and `missing` are packages
    that are not here. Of a `decompressed` one memory and speed are not those of what ships.
    """

    name: str
    kind: str
    engine: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    needs: int | None = None
    remarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    decompressed: bool = False


@dataclass(frozen=True)
class Choice:
    """The methods, the baseline first where there is one, and those that were left out with the reason."""

    planned: tuple[Planned, ...]
    baseline: str | None
    left_out: tuple[tuple[str, str], ...] = ()
