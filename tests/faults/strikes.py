"""Faults inside a measuring process: what a fake package does there when it is imported, by the model's name."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
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


def real(package: str) -> None:
    """Put the real package into the fake one's place."""
    fakes = Path(os.environ["FAULT_ROOM"]).parent / "packages"
    sys.path[:] = [entry for entry in sys.path if Path(entry) != fakes]
    importlib.invalidate_caches()
    del sys.modules[package]
    importlib.import_module(package)


@on_import
def segfault() -> None:
    ctypes.string_at(0)


@on_import
def abort() -> None:
    ctypes.CDLL(None).abort()


@on_import
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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
