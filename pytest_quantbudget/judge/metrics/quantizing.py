"""How long it takes to make a method's own quantized checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import TIME
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import QUANTIZE
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.judge.metrics.base import ONCE, Case, Column, Figure, Metric, column


class QuantizeSeconds(Metric):
    """Wall clock of making the checkpoint, from local files to a directory that is complete; seconds."""

    name = "quantize_time"
    coarse = True
    margin = ONCE
    quantized_only = True
    limits = (
        LimitKind(
            "max_quantize_time",
            "max",
            "quantize_time",
            "",
            "",
            TIME,
            "Making the method's own quantized checkpoint, when that was done.",
        ),
    )

    def absolute(self, case: Case) -> Figure:
        """The time, and when it was. Raises Unmeasured where no checkpoint was made, or it is not known."""
        record, subject = case.record, case.record.subject
        failure = record.failure(QUANTIZE)
        if failure is None and subject.checkpoint is not None:
            raise case.unmeasured(QUANTIZE, "its checkpoint is a ready one: who made it knows", "not offered")
        if failure is None and not (record.quantized or "").startswith(f"{subject.kind}-"):
            why = "no checkpoint is made for it: what it quantizes, it does while it loads (`max_load_time`)"
            raise case.unmeasured(QUANTIZE, why, "not offered")
        if failure is None and (record.quantize_s is None or record.quantized_at is None):
            why = "its checkpoint was made by an earlier release, which did not note how long that took"
            raise case.unmeasured(QUANTIZE, why, "not offered")
        return Figure(case.need(record.quantize_s, QUANTIZE), f"made {record.quantized_at}, and kept since")

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The time, where it is limited."""
        return (column(self, "quantizing", "max_quantize_time", format_time, optional=True, limited=True, stays=2),)
