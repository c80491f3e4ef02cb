"""Whether the machine was slowed down while something was timed: GPUs by NVML, CPUs by the kernel's counters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean less than the GPU can do; reaching its power limit
# (nvmlClocksEventReasonSwPowerCap) is how a GPU runs at full load (NVML API reference, "NvmlClocksEventReasons").
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
ROOT = Path("/")


class Watch:
    """Looks at the machine between repeats. What cannot be read slows nothing down."""

    def __init__(self, environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> None:
        self.root = root
        self.uuids = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.startswith("GPU-")]
        self.seen: dict[str, None] = {}
        self.before = self._counters()

    def look(self) -> None:
        """Note what slows a GPU down at this moment."""
        if not self.uuids:
            return
        import pynvml

        try:
            pynvml.nvmlInit()
            try:
                for uuid in self.uuids:
                    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
                    self.seen.update({f"GPU {name}": None for bit, name in SLOWDOWNS.items() if reasons & bit})
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return

    def words(self) -> tuple[str, ...]:
        """What slowed the machine down since this was made."""
        after = self._counters()
        told = [f"{what} ({after[what] - count} times)" for what, count in self.before.items() if after[what] > count]
        return (*self.seen, *told)

    def _counters(self) -> dict[str, int]:
        cores = self.root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        return {"CPU thermal throttling": sum(map(_number, cores)), "the container's CPU limit": self._quota()}

    def _quota(self) -> int:
        """How often this process's control group had used up its CPU time: `cpu.stat` of the kernel's cgroup v2."""
        try:
            own = (self.root / "proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
            lines = (self.root / "sys/fs/cgroup" / own / "cpu.stat").read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
