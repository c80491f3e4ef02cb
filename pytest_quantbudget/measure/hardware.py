"""The machine: GPUs by NVML (no torch, no CUDA context), versions, and the commit; None for what is not known."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_quantbudget.core.gpus import Commit, Gpu, GpuNeed, Machine, lacking, share, visible_gpus
from pytest_quantbudget.engine.machine.nvml import all_gpus
from pytest_quantbudget.models import methods


@dataclass
class LocalGpus:
    """The GPUs of this machine for one process of a run; `worker` is its number where the run has several."""

    worker: int | None = None

    @cached_property
    def usable(self) -> Sequence[Gpu]:
        """Those that the process may use, largest first, with their free memory when they were first looked at."""
        visible = visible_gpus(all_gpus(), os.environ)
        return share(sorted(visible, key=lambda gpu: -gpu.total), self.worker)

    def lacking(self, need: GpuNeed) -> str | None:
        """What the machine lacks for `need`, or None."""
        return lacking(need, self.usable[: need.count])


def machine() -> Machine:
    """This machine, without importing any heavy library."""
    return Machine(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        ram=_ram(),
        gpus=tuple(all_gpus()),
        libraries=methods.libraries(),
    )


def cpu() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def commit(root: Path) -> Commit | None:
    """The commit checked out at `root`; None outside a git repository or without git."""
    try:
        sha = _git(root, "rev-parse", "HEAD")
        return Commit(sha, bool(_git(root, "status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
