"""NVIDIA's library, in Python, behind pynvml's own wrappers: their structs, versions and second calls run for real."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

OK = 0
OLD_DRIVER = (  # what drivers before 510 do not have
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo_v2",
)


@dataclass
class SimulatedCard:
    """One GPU: pid to bytes for each process, bytes in use, percent busy (each look takes the next)."""

    processes: dict[int, int | None] = field(default_factory=dict)
    clients: dict[int, int | None] = field(default_factory=dict)  # of a multi-process server
    used: int = 0
    busy: list[int] = field(default_factory=lambda: [0])
    energy: Callable[[], int] | None = None  # mJ; None where it is not counted
    refuses: dict[str, int] = field(default_factory=dict)  # function to NVML's error


class Driver:
    """The library's functions as pynvml calls them; `without` are those that this driver has not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *uuids: str, without: tuple[str, ...] = ()) -> None:
        self.cards = {uuid: SimulatedCard() for uuid in uuids}
        self.without = without
        monkeypatch.setattr(pynvml, "nvmlLib", self)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name in self.without or name not in FUNCTIONS:
            raise AttributeError(name)
        return lambda *arguments: FUNCTIONS[name](self, *arguments)

    def card(self, handle: Any, name: str) -> tuple[SimulatedCard, int]:
        card = self.cards[handle.uuid]
        return card, card.refuses.get(name, OK)


def _handle(driver: Driver, uuid: Any, handle: Any) -> int:
    name = uuid.value.decode()
    if name not in driver.cards:
        return int(pynvml.NVML_ERROR_NOT_FOUND)
    handle._obj.uuid = name
    return OK


def _processes(name: str, which: str) -> Callable[..., int]:
    def answer(driver: Driver, handle: Any, count: Any, array: Any) -> int:
        card, error = driver.card(handle, name)
        found = getattr(card, which)
        if error or (array is None and not found):
            count._obj.value = 0
            return error
        if array is None:
            count._obj.value = len(found)
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for entry, (pid, memory) in zip(array, found.items(), strict=False):
            entry.pid = pid
            entry.usedGpuMemory = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value if memory is None else memory
        count._obj.value = len(found)
        return OK

    return answer


def _memory(version: int) -> Callable[..., int]:
    def answer(driver: Driver, handle: Any, info: Any) -> int:
        card, error = driver.card(handle, "memory")
        if version == 2 and (info._obj.version, ctypes.sizeof(info._obj)) != (0x02000028, 0x28):
            return int(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        info._obj.used = card.used
        return error

    return answer


def _busy(driver: Driver, handle: Any, rates: Any) -> int:
    card, error = driver.card(handle, "busy")
    rates._obj.gpu = card.busy.pop(0) if len(card.busy) > 1 else card.busy[0]
    return error


def _clock(most: int) -> Callable[..., int]:
    def answer(driver: Driver, handle: Any, kind: Any, clock: Any) -> int:
        clock._obj.value = {pynvml.NVML_CLOCK_SM: 1400, pynvml.NVML_CLOCK_MEM: 2600}[kind.value] + most
        return driver.card(handle, "clock")[1]

    return answer


def _number(name: str, value: int) -> Callable[..., int]:
    def answer(driver: Driver, handle: Any, *arguments: Any) -> int:
        arguments[-1]._obj.value = value
        return driver.card(handle, name)[1]

    return answer


def _energy(driver: Driver, handle: Any, millijoules: Any) -> int:
    card, error = driver.card(handle, "energy")
    if card.energy is None:
        return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
    millijoules._obj.value = card.energy()
    return error


FUNCTIONS: dict[str, Callable[..., int]] = {
    "nvmlInitWithFlags": lambda driver, flags: OK,
    "nvmlShutdown": lambda driver: OK,
    "nvmlDeviceGetHandleByUUID": _handle,
    "nvmlDeviceGetComputeRunningProcesses_v2": _processes("processes", "processes"),
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes("processes", "processes"),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": _processes("clients", "clients"),
    "nvmlDeviceGetMemoryInfo": _memory(1),
    "nvmlDeviceGetMemoryInfo_v2": _memory(2),
    "nvmlDeviceGetUtilizationRates": _busy,
    "nvmlDeviceGetClockInfo": _clock(0),
    "nvmlDeviceGetMaxClockInfo": _clock(500),
    "nvmlDeviceGetTotalEnergyConsumption": _energy,
    "nvmlDeviceGetPowerUsage": _number("power", 312_500),
    "nvmlDeviceGetEnforcedPowerLimit": _number("power", 400_000),
    "nvmlDeviceGetTemperature": _number("temperature", 61),
    "nvmlDeviceGetCurrentClocksEventReasons": _number("reasons", 0),
}
