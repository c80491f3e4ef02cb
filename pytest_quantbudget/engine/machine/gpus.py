"""The GPUs of this process as NVML sees them: which processes use them, how much memory, at which clocks.

NVML numbers GPUs in another order than CUDA, so they are found by UUID. Any of its functions may be missing or refused:
in containers, on MIG slices, under WSL, with other drivers than the binding was made for. What it does not give is
None.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.gpu_usage import BUSY, Clocks, Occupant
from pytest_quantbudget.core.measurement import Device
from pytest_quantbudget.engine.machine import nvml
from pytest_quantbudget.engine.machine.nvml import Card, Processes, visible_cards

PERIOD_S = 0.05  # between two samples of the memory in use
PATIENCE_S = 2.0  # NVML averages utilisation over up to a second: that of a process that has just ended fades
PROC = Path("/proc")


@dataclass
class Known:
    """One GPU before this process had a CUDA context, and this process's pid there once it is known."""

    before: Processes | None
    used_before: int | None
    own: int | None = None


class Gpus:
    """The GPUs of this process: made before it has a CUDA context, so that it can be told from others.

    There are none where `CUDA_VISIBLE_DEVICES` does not list UUIDs. `proc` is where `/proc` is.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, proc: Path = PROC) -> None:
        self.proc = proc
        self.pids = own_pids(proc)
        self.cards = visible_cards(environ)
        self.known = [Known(card.processes(), card.used()) for card in self.cards]
        self.busy_before = self._busy()

    def _busy(self) -> int | None:
        """The highest utilization of a GPU by other processes, percent: nothing of this process runs yet."""
        until = time.monotonic() + PATIENCE_S
        while True:
            busy = [percent for card in self.cards if (percent := card.busy()) is not None]
            if max(busy, default=0) < BUSY or time.monotonic() > until:
                return max(busy, default=None)
            time.sleep(PERIOD_S)

    def device(self, threads: int) -> Device:
        """The first of them as a device of the record, by NVML; the CPU where there is none."""
        card = next(iter(self.cards), None)
        if card is None:
            return Device("cpu", None, None, None, None, threads)
        name, memory = card.ask("nvmlDeviceGetName"), card.ask("nvmlDeviceGetMemoryInfo")
        return Device(str(name or "GPU"), card.uuid, getattr(memory, "total", None), None, None, threads)

    def name(self, index: int) -> str:
        """The UUID of torch's GPU `index`: torch counts in the order of `CUDA_VISIBLE_DEVICES`."""
        return self.cards[index].uuid if index < len(self.cards) else f"cuda:{index}"

    def own_memory(self, index: int) -> tuple[int | None, str]:
        """Bytes of this process on a GPU by NVML, and how its entry was identified, or why it was not."""
        found = self.cards[index].processes() if index < len(self.cards) else None
        if found is None:
            return None, "NVML does not name processes here" if nvml.installed() else "nvidia-ml-py is not installed"
        if not found:
            return None, "NVML names no process, as in many containers"
        own = self.own(index, found)
        if own is None or own not in found:
            count = f"{len(found)} process{'es' if len(found) > 1 else ''}"
            return None, f"NVML names {count}, and which of them is this one cannot be told"
        how = f"pid {own}" if own in self.pids else f"pid {own}, the only one that appeared with this process"
        return found[own], how if found[own] is not None else f"{how}; NVML does not tell its memory"

    def own(self, index: int, found: Processes) -> int | None:
        """The pid of this process in NVML: one that it has in some namespace, else that of the only new process.

        Containers number processes anew, and NVML keeps to the host's numbers, or, with some drivers, does not
        (NVIDIA/nvidia-docker issue 1483, NVIDIA/open-gpu-kernel-modules pull request 614). A number that was there
        before this process had a context is another's, whatever it looks like.
        """
        known = self.known[index]
        new = [pid for pid in found if pid not in (known.before or {})]
        mine = [pid for pid in self.pids if pid in new]
        if known.own is None and (mine or (len(new) == 1 and known.before is not None)):
            known.own = (mine or new)[0]
        return known.own

    def crowd(self) -> str:
        """Other processes that use memory on the GPUs, as the end of a message."""
        looks = Looks(self)
        looks.look()
        return "".join(f"; also on the GPU: {each.words}" for each in looks.occupants)


class Looks:
    """Other processes and clocks on the GPUs, noted between timed runs."""

    def __init__(self, gpus: Gpus) -> None:
        self.gpus = gpus
        self.others: dict[tuple[int, int], Occupant] = {}
        self.samples: list[list[dict[str, float]]] = [[] for _ in gpus.cards]

    def look(self) -> None:
        """Note the other processes of this moment."""
        for index, card in enumerate(self.gpus.cards):
            found = card.processes() or {}
            own, before = self.gpus.own(index, found), self.gpus.known[index].before or {}
            for pid, memory in found.items():
                # While this process is not identified, only those from before are certainly others.
                if pid in before or (own is not None and pid != own):
                    seen = self.others.get((index, pid)) or Occupant(
                        card.uuid, pid, _comm(self.gpus.proc, pid), memory, pid in before
                    )
                    most = max((size for size in (seen.memory, memory) if size is not None), default=None)
                    self.others[index, pid] = replace(seen, memory=most)

    def sample(self) -> None:
        """Note clocks, power and temperature at this moment."""
        for card, samples in zip(self.gpus.cards, self.samples, strict=True):
            samples.append(_sample(card))

    @property
    def occupants(self) -> tuple[Occupant, ...]:
        """All other processes that were seen.

        Their names are given only where NVML and `/proc` number this process alike.
        """
        named = [known.own == self.gpus.pids[0] for known in self.gpus.known]
        return tuple(each if named[i] else replace(each, name=None) for (i, _), each in self.others.items())

    @property
    def clocks(self) -> tuple[Clocks, ...]:
        """The samples by GPU; none of a GPU that gives none."""
        pairs = zip(self.gpus.cards, self.samples, strict=True)
        return tuple(_clocks(card, samples) for card, samples in pairs if any(samples))


def own_pids(proc: Path) -> list[int]:
    """This process's pids, from the namespace in which `/proc` was mounted inwards (`NSpid`, proc_pid_status(5))."""
    found = []
    try:
        lines = (proc / "self/status").read_text().splitlines()
        found = [int(pid) for line in lines if line.startswith("NSpid:") for pid in line.split()[1:]]
    except (OSError, ValueError):
        pass
    return list(dict.fromkeys([*found, os.getpid()]))


def _comm(proc: Path, pid: int) -> str | None:
    try:
        return (proc / str(pid) / "comm").read_text().strip() or None
    except (OSError, ValueError):
        return None


def _sample(card: Card) -> dict[str, float]:
    """Clocks (MHz), power (NVML gives milliwatts) and temperature, as far as NVML gives them."""
    import pynvml

    milliwatts = card.ask("nvmlDeviceGetPowerUsage")
    found = {
        "sm_mhz": card.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        "memory_mhz": card.ask("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        "power_w": None if milliwatts is None else milliwatts / 1000,
        "temperature_c": card.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    }
    return {name: value for name, value in found.items() if value is not None}


def _clocks(card: Card, samples: list[dict[str, float]]) -> Clocks:
    import pynvml

    limit = card.ask("nvmlDeviceGetEnforcedPowerLimit")
    series: dict[str, Any] = {
        name: tuple(sample[name] for sample in samples if name in sample)
        for name in ("sm_mhz", "memory_mhz", "power_w", "temperature_c")
    }
    return Clocks(
        card.uuid,
        **series,
        max_sm_mhz=card.ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
        max_memory_mhz=card.ask("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM),
        power_limit_w=None if limit is None else limit / 1000,
    )


class Sampler:
    """The peak of the memory in use on each GPU, by anyone: read every PERIOD_S in a thread of its own."""

    def __init__(self, cards: list[Card]) -> None:
        self.cards = cards
        self.peaks: list[int | None] = [None] * len(cards)
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        """Start to sample."""
        if self.cards:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self.over.set()
        if self.cards:
            self.thread.join()

    def _run(self) -> None:
        while not self.over.wait(PERIOD_S):
            self._read()

    def _read(self) -> None:
        now = [card.used() for card in self.cards]
        with self.lock:
            for index, used in enumerate(now):
                if used is not None:
                    self.peaks[index] = max(used, self.peaks[index] or 0)

    def take(self) -> list[int | None]:
        """The peaks since this was last asked, this moment included."""
        self._read()
        with self.lock:
            peaks, self.peaks = self.peaks, [None] * len(self.cards)
        return peaks
