"""GPU memory of one phase after another: torch's peaks, and NVML's figures at their ends."""

from __future__ import annotations

from dataclasses import replace

from pytest_quantbudget.core.gpu_usage import GpuMemory, PhaseMemory, larger, summed
from pytest_quantbudget.engine.machine.gpus import Gpus, Sampler


class MemoryByPhase:
    """The largest figures of each phase, by GPU; none without `on_gpu`."""

    def __init__(self, gpus: Gpus, *, on_gpu: bool) -> None:
        import torch

        self.gpus = gpus
        self.indices = range(torch.cuda.device_count()) if on_gpu else range(0)
        self.rows: dict[str, list[GpuMemory]] = {}
        self.found: dict[str, list[str]] = {}

    def begin(self) -> None:
        """Reset torch's peaks: counters of its allocator, on the host; no GPU is asked."""
        import torch

        for index in self.indices:
            torch.cuda.reset_peak_memory_stats(index)

    def note(self, phase: str, sampler: Sampler | None = None) -> list[GpuMemory]:
        """Count the peaks since `begin` or the last `note` to this phase; with a sampler NVML is asked, too."""
        import torch

        now = [
            GpuMemory(torch.cuda.max_memory_allocated(index), torch.cuda.max_memory_reserved(index))
            for index in self.indices
        ]
        if sampler is not None and now:
            peaks = [*sampler.take(), *[None] * len(now)]
            now = [self._asked(phase, index, row, peaks[index]) for index, row in enumerate(now)]
        earlier = self.rows.get(phase, now)
        self.rows[phase] = [larger(pair) for pair in zip(earlier, now, strict=True)]
        self.begin()
        return now

    def look(self, phase: str) -> int | None:
        """Bytes of this process by NVML at this moment, over all GPUs; where it is more, the phase's figure is that.

        None where NVML does not tell it of every GPU.
        """
        now = []
        for index, row in enumerate(self.rows.get(phase, [])):
            process, how = self.gpus.own_memory(index)
            self.found.setdefault(phase, []).append(how)
            self.rows[phase][index] = larger((row, replace(row, process=process)))
            now.append(process)
        known = [process for process in now if process is not None]
        return sum(known) if known and len(known) == len(now) else None

    def _asked(self, phase: str, index: int, row: GpuMemory, peak: int | None) -> GpuMemory:
        """A row with NVML's figures."""
        import torch

        process, how = self.gpus.own_memory(index)
        self.found.setdefault(phase, []).append(how)
        before = self.gpus.known[index].used_before if index < len(self.gpus.known) else None
        used = self.gpus.cards[index].used() if before is not None else None
        grown = used - before if used is not None and before is not None else None
        outside = process if process is not None else grown
        overhead = None if outside is None else outside - torch.cuda.memory_reserved(index)
        return replace(row, process=process, device=peak, device_before=before, overhead=overhead)

    def phases(self) -> tuple[PhaseMemory, ...]:
        """The record of all phases, in the order in which they were first noted."""
        return tuple(
            PhaseMemory(
                phase,
                summed(rows),
                {self.gpus.name(index): row for index, row in enumerate(rows)},
                "; ".join(dict.fromkeys(self.found.get(phase, []))),
            )
            for phase, rows in self.rows.items()
            if rows
        )
