"""Memory: what the workload takes on the GPU, and the weights as loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.engines import VLLM
from pytest_quantbudget.core.fields import SIZE, number
from pytest_quantbudget.core.gpu_usage import DECODE
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import DUMMY, LOAD, Part
from pytest_quantbudget.core.units import format_size, size_unit
from pytest_quantbudget.judge.metrics.base import COUNTED, RANGE, Case, Column, Figure, Metric, column

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement, Speed


class _Size(Metric):
    """What all have in common."""

    coarse = True

    def unit(self, *values: float) -> str:
        """That of the larger."""
        return size_unit(*values)

    def check_placement(self, case: Case) -> None:
        """Raise Unmeasured where parts of the model are outside of the GPU: the rest says nothing about its size."""
        if case.record.offloaded:
            raise case.unmeasured(LOAD, case.record.offloaded)


class _OnGpu(_Size):
    """GPU memory of the workload's runs; bytes."""

    margin = RANGE

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The workload."""
        return (basis.workload,)

    def peak(self, speed: Speed) -> int | None:
        """The peak over all runs, the warm-ups too; None where there was no GPU, or nothing tells."""
        raise NotImplementedError

    def absolute(self, case: Case) -> Figure:
        """The peak over all runs. It is counted: other repeats would not make it less."""
        self.check_placement(case)
        case.check_packed()
        case.check_told(self.name, LOAD)
        phase = case.basis.workload.phase
        speed = case.need(case.record.speed(case.basis.workload), phase)
        if speed.peak_allocated is None:
            raise case.unmeasured(phase, "no GPU was found: device memory has no peak here", "no-gpu")
        peak = self.peak(speed)
        if peak is None:
            raise case.unmeasured(phase, self.untold(speed), "no-gpu")
        peaks = self.peaks(speed)
        low, high = min(peaks, default=0), max(peaks, default=0)
        detail, ends = (f"in the {len(peaks)} repeats", (low, high)) if low < high else ("", None)
        return Figure(peak, detail, range=ends, remark=speed.shared)

    def untold(self, speed: Speed) -> str:
        """Why there is no peak, though there was a GPU."""
        return f"{self.noise_name} was not recorded"

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The peak of a run."""
        speed = record.speed(basis.workload)
        return self.peak(speed) if speed else None


class Vram(_OnGpu):
    """Peak of allocated GPU memory over the workload's runs; bytes."""

    name = "vram"
    noise_name = "VRAM"
    limits = (
        LimitKind(
            "max_vram",
            "max",
            "vram",
            "",
            "",
            SIZE,
            "Peak GPU memory allocated during the workload.",
            part_of=("max_vram_reserved", "what is allocated is part of that memory"),
        ),
        LimitKind("max_vram_ratio", "max", "vram", "ratio", "", number(0), "Peak GPU memory over the baseline's."),
    )

    def absolute(self, case: Case) -> Figure:
        """Of a server that takes its memory when it starts, all of that, and what it is taken for."""
        figure, engine = super().absolute(case), case.record.engine
        if engine is None or engine.name != VLLM:
            return figure
        model, kv = engine.buffers.get("model", 0), engine.buffers.get("kv", 0)
        parts = f"weights {format_size(model)}, KV cache {format_size(kv)}"
        rest = format_size(max(0.0, figure.value - model - kv))
        detail = f"the server's processes, which take it when they start: {parts}, the rest {rest}"
        return replace(figure, detail=detail, range=None)

    def peak(self, speed: Speed) -> int | None:
        """Of torch's tensors."""
        return speed.peak_allocated

    def peaks(self, speed: Speed) -> Sequence[int]:
        """Of torch's tensors."""
        return speed.peaks

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The peak, and its ratio to the baseline's."""
        return (
            column(self, "VRAM", "max_vram", format_size, stays=9),
            column(self, "ratio", "max_vram_ratio", lambda value: f"{value:.2f}x", stays=6),
        )


class VramReserved(_OnGpu):
    """Peak of what torch's allocator holds of the GPU during the workload's runs, in use or not; bytes."""

    name = "vram_reserved"
    noise_name = "reserved memory"
    limits = (
        LimitKind(
            "max_vram_reserved",
            "max",
            "vram_reserved",
            "",
            "",
            SIZE,
            "Peak GPU memory reserved by torch's allocator during the workload.",
            part_of=("max_vram_process", "what torch reserves is part of that memory"),
        ),
        LimitKind(
            "max_vram_reserved_ratio",
            "max",
            "vram_reserved",
            "ratio",
            "",
            number(0),
            "Peak of reserved GPU memory over the baseline's.",
        ),
    )

    def peak(self, speed: Speed) -> int | None:
        """Of torch's allocator."""
        return speed.peak_reserved

    def peaks(self, speed: Speed) -> Sequence[int]:
        """Of torch's allocator."""
        return speed.reserved_peaks

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The peak."""
        return (column(self, "reserved", "max_vram_reserved", format_size, limited=True, stays=9),)


class VramProcess(_OnGpu):
    """GPU memory of the whole measuring process during the workload's runs, by NVML; bytes."""

    name = "vram_process"
    noise_name = "process memory"
    limits = (
        LimitKind(
            "max_vram_process",
            "max",
            "vram_process",
            "",
            "",
            SIZE,
            "GPU memory of the whole process during the workload, as NVML tells it: what a card has to hold.",
        ),
        LimitKind(
            "max_vram_process_ratio",
            "max",
            "vram_process",
            "ratio",
            "",
            number(0),
            "GPU memory of the process over the baseline's.",
        ),
    )

    def peak(self, speed: Speed) -> int | None:
        """Of the process, with its CUDA context."""
        return speed.peak_process

    def peaks(self, speed: Speed) -> Sequence[int]:
        """Of the process after each repeat."""
        return speed.process_peaks

    def untold(self, speed: Speed) -> str:
        """How NVML's entry of the process was looked for in vain."""
        decode = next((each.process_from for each in speed.memory if each.phase == DECODE), "")
        return f"NVML does not tell the GPU memory of this process: {decode or 'it was not recorded'}"

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The memory."""
        return (column(self, "process", "max_vram_process", format_size, limited=True, stays=9),)


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
        case.check_told(self.name, LOAD)
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
        case.check_packed()
        case.check_told(self.name, LOAD)
        return Figure(case.need(case.record.weights, LOAD))

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The size, and its ratio to the baseline's."""
        return (
            column(self, "weights", "max_weights", format_size, stays=9),
            column(self, "ratio", "max_weights_ratio", lambda value: f"{value:.2f}x", stays=6),
        )


class KvTokens(Metric):
    """How many tokens the engine's key-value cache holds."""

    name = "kv_tokens"
    coarse = True
    margin = COUNTED
    limits = (
        LimitKind("min_kv_tokens", "min", "kv_tokens", "", "tokens", number(0), "Tokens that the KV cache holds."),
    )

    def absolute(self, case: Case) -> Figure:
        """The number, as the engine tells it."""
        case.check_told(self.name, LOAD)
        facts = case.record.engine
        if facts is None and case.record.failure(LOAD) is None:
            why = f"{case.record.subject.engine} does not tell how many tokens its key-value cache holds"
            raise case.unmeasured(LOAD, why, "not offered")
        tokens = facts.kv_tokens if facts is not None else None
        if facts is not None and tokens is None:
            why = f"{facts.name} does not tell how many tokens its key-value cache holds"
            raise case.unmeasured(LOAD, why, "not offered")
        return Figure(case.need(tokens, LOAD))

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The number, where it is limited."""
        return (column(self, "KV tokens", "min_kv_tokens", lambda v: f"{v:,.0f}", limited=True, stays=6),)
