"""Limits on percentiles: a family with one limit for each from 1 to 99."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from pytest_quantbudget.core.fields import TIME, Kind
from pytest_quantbudget.core.limits import LimitKind, Relation
from pytest_quantbudget.judge.metrics.base import Metric

PERCENTILES = range(1, 100)


class Percentiles(Metric):
    """A metric whose limits are `max_WHAT_pNN`, in seconds where nothing else is said.

    `listed` are the percentiles that are completed and suggested; all others may be used. `doc` says what is ranked,
    and `of` among what.
    """

    what: ClassVar[str]
    of: ClassVar[str]
    listed: ClassVar[Sequence[int]]
    relation: ClassVar[Relation] = ""
    in_unit: ClassVar[str] = ""
    value: ClassVar[Kind] = TIME

    def __init__(self) -> None:
        """Name its limits."""
        self.limits = tuple(map(self.kind, self.listed))
        self.pattern = rf"max_{self.what}_p[1-9]\d?"

    def kind(self, percentile: int) -> LimitKind:
        """The limit on one percentile."""
        doc = f"{self.doc}, at percentile {percentile} of {self.of}."
        name = f"max_{self.what}_p{percentile}"
        return LimitKind(name, "max", self.name, self.relation, self.in_unit, self.value, doc, percentile=percentile)

    def named(self, name: str) -> LimitKind | None:
        """The limit on any percentile from 1 to 99."""
        return self.kind(int(name.rpartition("_p")[2])) if re.fullmatch(self.pattern, name) else None
