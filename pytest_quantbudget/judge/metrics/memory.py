"""Memory: the workload's peak on the GPU, and the weights as loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import SIZE, number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import DUMMY, LOAD, WORKLOAD, Part
from pytest_quantbudget.core.units import format_size, size_unit
from pytest_quantbudget.judge.metrics.base import COUNTED, RANGE, Case, Column, Figure, Metric, column

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement


class _Size(Metric):
    """What both have in common."""

    coarse = True

    def unit(self, *values: float) -> str:
        """That of the larger."""
        return size_unit(*values)

    def check_placement(self, case: Case) -> None:
        """Raise Unmeasured where parts of the model are outside of the GPU: the rest says nothing about its size."""
        if case.record.offloaded:
            raise case.unmeasured(LOAD, case.record.offloaded)


class Vram(_Size):
    """Peak of allocated GPU memory over the workload's runs; bytes."""

    name = "vram"
    margin = RANGE
    noise_name = "VRAM"
    limits = (
        LimitKind("max_vram", "max", "vram", "", "", SIZE, "Peak GPU memory allocated during the workload."),
        LimitKind("max_vram_ratio", "max", "vram", "ratio", "", number(0), "Peak GPU memory over the baseline's."),
    )

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The workload."""
        return (basis.workload,)

    def absolute(self, case: Case) -> Figure:
        """The peak over all runs, the warm-ups too. It is counted: other repeats would not make it less."""
        self.check_placement(case)
        speed = case.need(case.record.speed(case.basis.workload), WORKLOAD)
        if speed.peak_allocated is None:
            raise case.unmeasured(WORKLOAD, "no GPU was found: device memory has no peak here", "no-gpu")
        low, high = min(speed.peaks, default=0), max(speed.peaks, default=0)
        detail, ends = (f"in the {len(speed.peaks)} repeats", (low, high)) if low < high else ("", None)
        return Figure(speed.peak_allocated, detail, range=ends, remark=speed.shared)

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The peak of a run."""
        speed = record.speed(basis.workload)
        return speed.peak_allocated if speed else None

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The peak, and its ratio to the baseline's."""
        return (
            column(self, "VRAM", "max_vram", format_size),
            column(self, "ratio", "max_vram_ratio", lambda value: f"{value:.2f}x"),
        )


class Disk(_Size):
    """The files that hold the weights: of the checkpoint, of the method's own quantization, or of the model; bytes."""

    name = "disk"
    margin = COUNTED
    limits = (
        LimitKind("max_disk", "max", "disk", "", "", SIZE, "The files that hold the weights."),
        LimitKind("max_disk_ratio", "max", "disk", "ratio", "", number(0), "These files over the baseline's."),
    )

    def absolute(self, case: Case) -> Figure:
        """The bytes, counted."""
        if case.record.disk is None and case.record.subject.load_format == DUMMY:
            raise case.unmeasured(LOAD, "dummy weights have no files", "not offered")
        return Figure(case.need(case.record.disk, LOAD))


class Weights(_Size):
    """Parameters and buffers as loaded, scales included; bytes."""

    name = "weights"
    margin = COUNTED
    limits = (
        LimitKind(
            "max_weights",
            "max",
            "weights",
            "",
            "",
            SIZE,
            "Parameters and buffers as loaded, scales included.",
            part_of=("max_vram", "the weights are part of that memory"),
        ),
        LimitKind("max_weights_ratio", "max", "weights", "ratio", "", number(0), "Weights over the baseline's."),
    )

    def absolute(self, case: Case) -> Figure:
        """The bytes, counted."""
        self.check_placement(case)
        return Figure(case.need(case.record.weights, LOAD))

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The size, and its ratio to the baseline's."""
        return (
            column(self, "weights", "max_weights", format_size),
            column(self, "ratio", "max_weights_ratio", lambda value: f"{value:.2f}x"),
        )
