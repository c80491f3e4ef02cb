"""What measuring showed of the devices: memory by phase, other processes, clocks, distance from the memory's limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pytest_quantbudget.core.units import format_size

PREFILL, DECODE = "prefill", "decode"
BUSY = 5  # percent of the time; less is what a desktop or a monitor takes


@dataclass(frozen=True)
class GpuMemory:
    """Memory of one GPU, or of several summed, in one phase; bytes, None where nothing tells.

    `allocated` and `reserved` are peaks of torch's allocator. `process` is what NVML says of this process at the end of
    the phase, of decoding the most after any run. `device` is the peak of all that is used on the GPU, by anyone, and
    `device_before` what was used before this process had a CUDA context. `overhead` is what of `process` torch has not
    reserved: the context, and what libraries allocate for themselves; where NVML does not report `process`, the growth
    of `device` stands in for it.
    """

    allocated: int
    reserved: int
    process: int | None = None
    device: int | None = None
    device_before: int | None = None
    overhead: int | None = None


@dataclass(frozen=True)
class PhaseMemory:
    """Memory of the phase `load`, `prefill` or `decode`: by GPU (UUID), and summed over them.

    `process_from` says how NVML's entry of this process was found, or why it was not.
    """

    phase: str
    total: GpuMemory
    gpus: dict[str, GpuMemory]
    process_from: str


@dataclass(frozen=True)
class Occupant:
    """Another process on a GPU; `memory` in bytes, the most that was seen.

    `pid` is the number that NVML gives, in a container often the host's; the name is known where that is no question.
    `before` says that it was there before this process had a CUDA context.
    """

    gpu: str
    pid: int
    name: str | None
    memory: int | None
    before: bool

    @property
    def words(self) -> str:
        """`pid 123 python, 3.10 GiB`."""
        size = format_size(self.memory) if self.memory is not None else ""
        return ", ".join(filter(None, [f"pid {self.pid} {self.name or ''}".rstrip(), size]))


@dataclass(frozen=True)
class Clocks:
    """Clocks (MHz), power (W) and temperature (degrees C) of one GPU, read after each repeat; none without NVML.

    On most GPUs since Ampere the power is an average over one second (NVML API reference, `nvmlDeviceGetPowerUsage`).
    """

    gpu: str
    sm_mhz: tuple[int, ...]
    memory_mhz: tuple[int, ...]
    power_w: tuple[float, ...]
    temperature_c: tuple[int, ...]
    max_sm_mhz: int | None
    max_memory_mhz: int | None
    power_limit_w: float | None


@dataclass(frozen=True)
class Roofline:
    """How near decoding comes to what the memory allows: the memory-bound side of the roofline.

    Williams et al. 2009, doi 10.1145/1498765.1498785. A step reads `weight_bytes`, once for all rows of the batch, and
    `cache_bytes`, the key-value cache at its mean length, in `tpot_s` seconds. `bandwidth` (bytes a second, read and
    written) is that of a large copy in the same memory, on a CPU with `threads` threads (0 on a GPU). `fraction` is the
    bytes a second of decoding over that.
    """

    weight_bytes: int
    cache_bytes: int
    tpot_s: float
    bandwidth: float
    fraction: float
    threads: int

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what nothing can be divided by."""
        for name in ("tpot_s", "bandwidth", "fraction"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0")


@dataclass(frozen=True)
class Energy:
    """Joules that the GPUs took together in the prefill and in decoding of each repeat, by NVML's counters.

    What any process drew counts, and what a GPU draws at rest. `renewed_s` is the longest time between two renewals of
    a counter. Where there are no figures, `why` says so in words.
    """

    prefill_j: tuple[float, ...] = ()
    decode_j: tuple[float, ...] = ()
    renewed_s: float = 0.0
    why: str = ""

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what is no energy, and figures whose resolution is not known."""
        if not all(0 <= joules < math.inf for joules in (*self.prefill_j, *self.decode_j)):
            raise ValueError("an energy must be a finite number of at least 0")
        if not self.why and not (0 < self.renewed_s < math.inf and self.decode_j and self.prefill_j):
            raise ValueError("an energy needs figures and the time between two renewals of its counter")


def summed(gpus: Sequence[GpuMemory]) -> GpuMemory:
    """The sum over GPUs; of a figure that one of them does not tell there is none."""
    return _joined(gpus, sum, wanted=len(gpus))


def larger(looks: Sequence[GpuMemory]) -> GpuMemory:
    """The largest figures of several looks at one GPU."""
    return _joined(looks, max, wanted=1)


def _joined(rows: Sequence[GpuMemory], join: Callable[[list[int]], int], wanted: int) -> GpuMemory:
    values: dict[str, Any] = {}
    for field in fields(GpuMemory):
        known = [figure for row in rows if (figure := getattr(row, field.name)) is not None]
        values[field.name] = join(known) if len(known) >= wanted else None
    return GpuMemory(**values)


def shared(occupants: Sequence[Occupant], busy_before: int | None) -> str:
    """Who else was on the GPUs while something was timed, in words; empty where there were none."""
    remarks = []
    if occupants:
        remarks.append(f"the GPU was shared while it was timed: {'; '.join(occupant.words for occupant in occupants)}")
    if busy_before is not None and busy_before >= BUSY:
        remarks.append(f"the GPU was {busy_before} % busy before this process began")
    return "; ".join(remarks)
