"""The few functions of torch.cuda that measuring calls, for a model that runs on the CPU."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_quantbudget.engine.hf import speed


class Cuda:
    """GPUs whose allocator is told what each pass of the model takes at most; `log` has the calls in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> None:
        self.count = count
        self.held = 500
        self.free = 23 * 2**30
        self.peaks = [self.held] * count
        self.log: list[str] = []
        for name in (
            *("device_count", "reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved"),
            *("memory_reserved", "empty_cache", "synchronize", "current_stream"),
            *("is_available", "mem_get_info", "get_device_name", "get_device_properties"),
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self, enable_timing))
        monkeypatch.setattr(speed, "is_cuda", lambda ids: True)

    def attach(self, model: Any, prefill: int, decode: int) -> None:
        """Each pass of the model takes so much on GPU 0, and one less on each further one."""

        def passes(module: Any, arguments: Any, named: Any) -> None:
            tokens = named["input_ids"].shape[1]
            self.log.append("prefill" if tokens > 1 else "decode")
            taken = prefill if tokens > 1 else decode
            self.peaks = [max(peak, taken - index) for index, peak in enumerate(self.peaks)]

        self.hook = model.register_forward_pre_hook(passes, with_kwargs=True)

    def is_available(self) -> bool:
        return True

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return self.free, 24 * 2**30

    def get_device_name(self, index: int) -> str:
        return "NVIDIA L4"

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="NVIDIA L4", uuid=index + 1, total_memory=24 * 2**30, major=8, minor=9)

    def device_count(self) -> int:
        return self.count

    def reset_peak_memory_stats(self, index: int) -> None:
        self.log.append("reset")
        self.peaks[index] = self.held

    def max_memory_allocated(self, index: int) -> int:
        return self.peaks[index]

    def max_memory_reserved(self, index: int) -> int:
        return self.peaks[index] + 100

    def memory_reserved(self, index: int) -> int:
        return 800

    def empty_cache(self) -> None:
        self.log.append("empty")

    def synchronize(self, device: Any = None) -> None:
        self.log.append("synchronize")

    def current_stream(self, device: Any) -> str:
        return f"stream of {device}"


class Event:
    """An event of a GPU that is done with its work at once."""

    def __init__(self, cuda: Cuda, enable_timing: bool) -> None:
        self.cuda, self.timed = cuda, enable_timing

    def record(self, stream: str) -> None:
        self.cuda.log.append("event")
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        self.cuda.log.append("wait")

    def elapsed_time(self, end: "Event") -> float:
        assert self.timed
        assert end.timed
        return 1000 * (end.at - self.at)
