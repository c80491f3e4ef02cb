"""What machine this is: GPUs as seen by NVML (no torch, no CUDA context), versions, the commit. Never guesses."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget import units

LIBRARIES = (
    "pytest-quantbudget", "torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "datasets",
    "lm-eval", "tokenizers", "safetensors", "numpy", "pytest", "pytest-xdist", "pyyaml",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU. `index` is NVML's, in the order of PCI bus ids; memory in bytes; `free` when it was asked."""

    index: int
    name: str
    uuid: str
    total: int
    free: int
    capability: str
    driver: str


@dataclass(frozen=True)
class GpuNeed:
    """What a test needs of the machine's GPUs: the arguments of the marker `gpu`. `min_vram` in bytes."""

    min_vram: float | None = None
    min_capability: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Machine:
    """The machine of a run, for its report. Sizes in bytes."""

    platform: str
    python: str
    cpu: str
    cores: int
    ram: int | None
    gpus: tuple[Gpu, ...]
    libraries: dict[str, str]


@dataclass(frozen=True)
class Commit:
    """The commit of the repository that holds the run's root directory; `dirty` where files were changed since."""

    sha: str
    dirty: bool


def all_gpus() -> list[Gpu]:
    """Every GPU that NVML reports; none where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            name, uuid = _text(pynvml.nvmlDeviceGetName(handle)), _text(pynvml.nvmlDeviceGetUUID(handle))
            gpus.append(Gpu(index, name, uuid, int(memory.total), int(memory.free), f"{major}.{minor}", driver))
        return gpus
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible_gpus(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu]:
    """Those of `gpus` that `CUDA_VISIBLE_DEVICES` leaves, in its order.

    Entries are indices or (abbreviated) UUIDs; as in CUDA, the list ends at the first entry that names no device
    (CUDA C++ Programming Guide, "CUDA Environment Variables"). Indices are taken in PCI bus order, which need
    not be CUDA's own; the measuring processes are given the UUID.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for entry in listed.split(","):
        entry = entry.strip()
        fitting = [g for g in gpus if str(g.index) == entry or (entry.startswith("GPU-") and g.uuid.startswith(entry))]
        if len(fitting) != 1:
            break
        chosen += fitting
    return chosen


def lacking(need: GpuNeed, gpus: Sequence[Gpu]) -> str | None:
    """What the machine lacks for `need`, naming what was found; None where it has all."""
    wanted = _words(need)
    if not gpus:
        return f"needs {wanted}; no GPU was found"
    able = [g for g in gpus if _version(g.capability) >= _version(need.min_capability or "0.0")]
    large = [g for g in able if g.total >= (need.min_vram or 0)]
    free = [g for g in large if g.free >= (need.min_vram or 0)]
    if len(free) >= need.count:
        return None
    found = "; ".join(
        f"{g.name} ({units.format_size(g.total)}, {units.format_size(g.free)} free, capability {g.capability})"
        for g in gpus
    )
    why = "too little free memory" if len(large) >= need.count else "found"
    return f"needs {wanted}; {why}: {found}"


def _words(need: GpuNeed) -> str:
    parts = ["a GPU" if need.count == 1 else f"{need.count} GPUs"]
    if need.min_vram:
        parts.append(f"with {units.format_size(need.min_vram)}")
    if need.min_capability:
        parts.append(f"of compute capability {need.min_capability}")
    return " ".join(parts)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def share(gpus: Sequence[Gpu], worker: int | None) -> list[Gpu]:
    """The GPUs of one process of a run, in the order in which it takes them: its own first, then those that follow.

    Workers take only GPUs of the first one's name: a ratio between unlike GPUs would mean nothing. Workers whose turns
    meet on a GPU wait for each other there.
    """
    if worker is None or not gpus:
        return list(gpus)
    alike = [gpu for gpu in gpus if gpu.name == gpus[0].name]
    own = worker % len(alike)
    return alike[own:] + alike[:own]


def machine() -> Machine:
    """This machine, without importing any heavy library."""
    return Machine(
        platform=platform.platform(),
        python=platform.python_version(),
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        ram=_ram(),
        gpus=tuple(all_gpus()),
        libraries=libraries(),
    )


def libraries() -> dict[str, str]:
    """Installed versions of everything that a figure may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
