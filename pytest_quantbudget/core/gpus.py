"""GPUs and machines as records, and which GPUs a process may use."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core import units


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


@dataclass(frozen=True)
class MergedReport:
    """One of the reports that were judged together: its file, when it was measured (ISO 8601), where, and on what."""

    file: str
    measured: str
    machine: Machine
    commit: Commit | None


# A `*` behind a digit, and not in `[ab]`, which is found first and kept.
DIGIT_STAR = re.compile(r"(\[!?\]?[^]]*\])|(?<=[0-9])\*")
WORD_END = "\ue000"  # a character of no name, which stands in a pattern for the end of a word


def matches(name: str, pattern: str) -> bool:
    """Whether a GPU's name matches a pattern of `*`, `?` and `[ab]`, case as written.

    A `*` behind a digit does not go on with the word: `NVIDIA L4*` is the L4 in all of its sizes, and no L40 or L40S.
    """
    return _compiled(pattern).match(name) is not None


@functools.lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    marked = DIGIT_STAR.sub(lambda found: found[1] or f"{WORD_END}*", pattern)
    return re.compile(fnmatch.translate(marked).replace(WORD_END, "(?![A-Za-z0-9])"))


def covers(pattern: str, other: str) -> bool:
    """Whether a pattern matches all that another one does, as far as their texts tell."""
    # What stands for one character may be one that goes on with a word.
    return matches(other.replace("?", "0").replace("[", "0["), pattern)


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
    sizes = [size for g in gpus for size in (g.total, g.free)]
    # In one unit, and each told from what is needed.
    least, *told = units.sizes_apart(need.min_vram, *sizes) if need.min_vram else ("", *map(units.format_size, sizes))
    wanted = _need_words(need, least)
    if not gpus:
        return f"needs {wanted}; no GPU was found"
    able = [g for g in gpus if _version(g.capability) >= _version(need.min_capability or "0.0")]
    large = [g for g in able if g.total >= (need.min_vram or 0)]
    free = [g for g in large if g.free >= (need.min_vram or 0)]
    if len(free) >= need.count:
        return None
    present = "; ".join(
        f"{g.name} ({total}, {free} free, capability {g.capability})"
        for g, total, free in zip(gpus, told[::2], told[1::2], strict=True)
    )
    why = "too little free memory" if len(large) >= need.count else "found"
    return f"needs {wanted}; {why}: {present}"


def _need_words(need: GpuNeed, least: str) -> str:
    parts = ["a GPU" if need.count == 1 else f"{need.count} GPUs"]
    if least:
        parts.append(f"with {least}")
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
    first = worker % len(alike)
    return alike[first:] + alike[:first]
