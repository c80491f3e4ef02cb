"""Whether the machine was slowed down while something was timed: GPUs by NVML, CPUs by the kernel's counters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_quantbudget.engine.machine.nvml import Card

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean less than the GPU can do (NVML API reference,
# "NvmlClocksEventReasons"). Not among them: the power limit, at which a GPU runs under full load, and the hardware
# slowdown (0x08), which is also reported while clocks change; its two causes have bits of their own.
SLOWDOWNS = {0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}
FEW = 0.02  # of the scheduler's periods: fewer are lost in the noise of repeats
ROOT = Path("/")


class Watch:
    """Reads the machine's state between repeats, and compares its counters from beginning to end.

    What cannot be read counts as no slow-down. `root` is where `/proc` and `/sys` are.
    """

    def __init__(self, cards: Sequence[Card], root: Path = ROOT) -> None:
        self.root = root
        self.cards = cards
        self.seen: dict[str, None] = {}
        self.hot = [card.thermal_ns() for card in cards]
        self.cores, self.periods = self._cores(), self._periods()

    def look(self) -> None:
        """Note what slows a GPU down at this moment."""
        for card in self.cards:
            reasons = card.slowdowns()
            self.seen.update({f"GPU {name}": None for bit, name in SLOWDOWNS.items() if reasons & bit})

    def words(self) -> tuple[str, ...]:
        """What slowed the machine down since this was made."""
        found = list(self.seen)
        hot = max((card.thermal_ns() - ns for card, ns in zip(self.cards, self.hot, strict=True)), default=0)
        if hot > 0:
            found.append(f"GPU below its clocks for heat ({hot / 1e9:.2g} s)")
        events = max((count - self.cores.get(path, count) for path, count in self._cores().items()), default=0)
        if events > 0:
            found.append(f"CPU thermal throttling ({events:,} times)")
        shares = [share for path, now in self._periods().items() if (share := _share(self.periods.get(path, now), now))]
        if max(shares, default=0.0) >= FEW:
            found.append(f"the CPU limit of its control group (in {max(shares):.0%} of its periods)".replace("%", " %"))
        return tuple(found)

    def _cores(self) -> dict[Path, int]:
        """How often each core and package was slowed down for heat; cores that share a counter each have it."""
        found = self.root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
        return {path: int(text) for path in found if (text := _text(path).strip()).isdecimal()}

    def _periods(self) -> dict[Path, tuple[int, int]]:
        """For each control group around this process: periods in which it used up its CPU time, and all that it ran in.

        `cpu.stat` of the kernel's cgroup v2 and of v1. Under v1 a container sees the host's path of its group; the
        container's own is then the top.
        """
        found = {}
        for line in _text(self.root / "proc/self/cgroup").splitlines():
            controllers, _, path = line.partition(":")[2].partition(":")
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = self.root / "sys/fs/cgroup" / controllers
            for folder in _upwards(top / path.strip("/"), top):
                pairs = (line.split() for line in _text(folder / "cpu.stat").splitlines())
                stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
                if "nr_periods" in stat:
                    found[folder] = (stat.get("nr_throttled", 0), stat["nr_periods"])
        return found


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Of the periods since, those that were cut short."""
    return (after[0] - before[0]) / (after[1] - before[1]) if after[1] > before[1] else 0.0


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
