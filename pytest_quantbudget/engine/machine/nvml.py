"""NVML, asked so that a missing or refused function gives None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core.gpus import Gpu

Processes = dict[int, int | None]  # pid to bytes


def installed() -> bool:
    """Whether there is a binding of NVML at all."""
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


def ask(function: str, *arguments: Any) -> Any:
    """The answer of a function of NVML; None where it fails, or where there is no such function, or no binding."""
    if not installed():
        return None
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
        """The answer of a function of NVML about this GPU, or None."""
        return ask(function, self.handle, *arguments) if self.handle is not None else None

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

    def slowdowns(self) -> int:
        """The reasons, as bits, why its clocks are lower than they might be; 0 where NVML does not say."""
        return int(self.ask("nvmlDeviceGetCurrentClocksEventReasons") or 0)

    def thermal_ns(self) -> int:
        """How long heat has kept it below its clocks since the driver was loaded; 0 where NVML does not count that."""
        import pynvml

        status = self.ask("nvmlDeviceGetViolationStatus", pynvml.NVML_PERF_POLICY_THERMAL)
        return 0 if status is None else int(status.violationTime)


def visible_cards(environ: Mapping[str, str]) -> list[Card]:
    """The GPUs and MIG slices that `CUDA_VISIBLE_DEVICES` lists by UUID.

    There are none where it lists them otherwise, or without a binding of NVML. NVML is left open until the process
    ends, so that asking takes no time.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not installed() or not all(name.startswith(("GPU-", "MIG-")) for name in listed):
        return []
    ask("nvmlInit")
    return [Card(uuid, ask("nvmlDeviceGetHandleByUUID", uuid)) for uuid in listed]


def all_gpus() -> list[Gpu]:
    """Every GPU that NVML reports; none where there is no NVIDIA driver, or where it does not describe them."""
    ask("nvmlInit")
    driver = ask("nvmlSystemGetDriverVersion")
    gpus = [_gpu(index, driver) for index in range(ask("nvmlDeviceGetCount") or 0)]
    ask("nvmlShutdown")
    found = [gpu for gpu in gpus if gpu is not None]
    return found if len(found) == len(gpus) else []


def _gpu(index: int, driver: str | None) -> Gpu | None:
    handle = ask("nvmlDeviceGetHandleByIndex", index)
    card = Card("", handle)
    memory, capability = card.ask("nvmlDeviceGetMemoryInfo"), card.ask("nvmlDeviceGetCudaComputeCapability")
    name, uuid = card.ask("nvmlDeviceGetName"), card.ask("nvmlDeviceGetUUID")
    if driver is None or None in (memory, capability, name, uuid):
        return None
    major, minor = capability
    return Gpu(index, name, uuid, int(memory.total), int(memory.free), f"{major}.{minor}", driver)
