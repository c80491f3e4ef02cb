"""NVML, asked so that a missing or refused function gives None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Processes = dict[int, int | None]  # pid to bytes


def told(function: str, *arguments: Any) -> Any:
    """What a function of NVML answers; None where it does not, or where this binding has no such function."""
    import pynvml

    try:
        return getattr(pynvml, function)(*arguments)
    except (AttributeError, pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None


@dataclass(frozen=True)
class Card:
    """One GPU: its UUID and NVML's handle of it, None where NVML knows no such GPU."""

    uuid: str
    handle: Any

    def ask(self, function: str, *arguments: Any) -> Any:
        """What a function of NVML answers about this GPU, or None."""
        return told(function, self.handle, *arguments) if self.handle is not None else None

    def processes(self) -> Processes | None:
        """The processes that compute on it, those behind a multi-process server (MPS) too.

        The memory is None where NVML does not tell it (`NVML_VALUE_NOT_AVAILABLE`, under Windows' driver model).
        """
        found = self.ask("nvmlDeviceGetComputeRunningProcesses")
        if found is None:  # drivers before 510 know the second version only
            found = self.ask("nvmlDeviceGetComputeRunningProcesses_v2")
        if found is None:
            return None
        clients = self.ask("nvmlDeviceGetMPSComputeRunningProcesses") or []
        return {int(each.pid): each.usedGpuMemory for each in (*found, *clients)}

    def used(self) -> int | None:
        """Bytes in use by anyone, with or without what the driver reserves, by its version: differences count."""
        import pynvml

        found = self.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
        if found is None:  # drivers before 510
            found = self.ask("nvmlDeviceGetMemoryInfo")
        return None if found is None else int(found.used)

    def busy(self) -> int | None:
        """Percent of the last second, or sixth of a second, by product, in which a kernel ran."""
        found = self.ask("nvmlDeviceGetUtilizationRates")
        return None if found is None else int(found.gpu)
