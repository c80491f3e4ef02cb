"""Faults inside a measuring process: what a fake package does there when it is imported, by the model's name."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def imported(package: str) -> None:
    """Called by a fake package: strike where a fault has this model's name, then be the real package."""
    strike = globals().get(multiprocessing.current_process().name.rpartition(":")[2].replace("-", "_"))
    if strike is not None and getattr(strike, "on_import", False):
        strike()
    real(package)
    if strike is not None and not getattr(strike, "on_import", False):
        strike()


def on_import(strike: Any) -> Any:
    """Mark a fault as one that strikes before the real package is imported."""
    strike.on_import = True
    return strike


KEPT: dict[str, ModuleType] = {}


@contextlib.contextmanager
def without_fakes() -> Iterator[None]:
    """The real packages are found meanwhile."""
    entries = list(sys.path)
    sys.path[:] = [entry for entry in entries if Path(entry).name != "packages"]
    importlib.invalidate_caches()
    yield
    sys.path[:] = entries


def is_faked(package: str) -> bool:
    """Whether this run puts a fake before that package."""
    return Path(os.environ["FAULT_ROOM"]).parent.joinpath("packages", package).is_dir()


def real(package: str) -> None:
    """Put the real package into the fake one's place."""
    del sys.modules[package]
    with without_fakes():
        sys.modules[package] = KEPT.get(package) or importlib.import_module(package)


@on_import
def segfault() -> None:
    ctypes.string_at(0)


@on_import
def abort() -> None:
    ctypes.CDLL(None).abort()


@on_import
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


killed_quantizing = killed


def hold() -> None:
    """Sleep in native code, holding the interpreter's lock, whatever signals are handled meanwhile."""
    subprocess.Popen(["sleep", "1000"])
    Path(os.environ["FAULT_ROOM"], "hanging.txt").touch()
    pause = ctypes.PyDLL(None).pause
    while True:
        pause()


@on_import
def hang() -> None:
    hold()


@on_import
def hang_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold()


@on_import
def import_error() -> None:
    raise ImportError("libcudart.so.11.0: cannot open shared object file: No such file or directory")


@on_import
def half_missing() -> None:
    importlib.import_module("bitsandbytes_kernels")


@on_import
def leaves_at_once() -> None:
    """A library that ends the process, as if all were well."""
    ctypes.CDLL(None).exit(0)


def prints() -> None:
    """200 MB of what a terminal would not like, from native code and from Python, on both streams."""
    block = (b"\x1b[2J\xff\xfe\x00 progress 100% |####|\r" * 2500) + b"\n"
    for number in (1, 2):
        for _ in range(100_000_000 // len(block)):
            os.write(number, block)
    sys.stdout.write("\x1b]0;title\x07 of a window\n")


def prints_forever() -> None:
    while True:
        os.write(1, b"Retrying ... " * 5000)


def leaves_a_process() -> None:
    subprocess.Popen(["sleep", "1000"])


def loader_exception() -> None:
    layers: Any = importlib.import_module("bitsandbytes.nn")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA Setup failed despite GPU being available.\nInspect the output of the command")

    layers.Linear4bit.__init__ = refuse


def out_of_memory_loading() -> None:
    """Memory for 32 MB more, and weights of 100 MB."""
    limit_data(32)


def limit_data(megabytes: int) -> None:
    """From now on allocations fail that would take the process's data further than this."""
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now * 1024 + megabytes * 2**20, resource.RLIM_INFINITY))


def while_answering(strike: Callable[[Any], object]) -> None:
    """Strike when the questions of a task are answered, in a pass over at least three of them."""
    kind: Any = importlib.import_module("transformers.models.qwen3.modeling_qwen3").Qwen3ForCausalLM
    forward = kind.forward

    @functools.wraps(forward)
    def striking(self: Any, *rest: Any, **arguments: Any) -> Any:
        if len(arguments["input_ids"]) > 2:
            strike(self)
        return forward(self, *rest, **arguments)

    kind.forward = striking


def out_of_memory_answering() -> None:
    """Memory for 24 MB more than there is when the first batch begins."""
    left = [24]

    def limit(model: Any) -> None:
        if left:
            # On a CPU with AMX the code that oneDNN makes for each shape takes more memory than the batch itself.
            importlib.import_module("torch").backends.mkldnn.enabled = False
            limit_data(left.pop())

    while_answering(limit)


def segfault_answering() -> None:
    while_answering(lambda model: ctypes.string_at(0))


def hang_answering() -> None:
    while_answering(lambda model: hold())


def nan_answering() -> None:
    """Scales that overflow only on real text."""

    def spoil(model: Any) -> None:
        model.model.norm.weight.data.fill_(float("nan"))

    while_answering(spoil)


def questions_cut_meanwhile() -> None:
    questions = Path(os.environ["FAULT_ROOM"], "cut-meanwhile.jsonl")
    questions.write_bytes(questions.read_bytes()[:5_000])


def forks_and_crashes() -> None:
    """A worker, forked without exec, that holds every pipe of its parent open when that dies."""
    if os.fork() == 0:
        signal.pause()
    ctypes.string_at(0)
