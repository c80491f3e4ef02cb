"""GPU memory of a server's processes, by NVML."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from pytest_quantbudget.engine.machine.gpus import PROC, Gpus


def family(pid: int, proc: Path = PROC) -> set[int]:
    """A process and all that it has started, as far as their parents live; Linux only."""
    parents: dict[int, int] = {}
    for entry in proc.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found, new = {pid}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def of_server(gpus: Gpus, pids: Iterable[int]) -> tuple[int | None, str]:
    """Bytes of a server's processes on all GPUs, and how they were told from others, or why they could not be.

    Those of `pids` are the server's. In a container NVML may number processes otherwise (see `Gpus.own`): there the
    server's are those that had not been there when the measuring process began, which holds no memory of a GPU itself.
    """
    own, total, named = set(pids), 0, 0
    for card, known in zip(gpus.cards, gpus.known, strict=True):
        found = card.processes()
        if found is None:
            return None, "NVML does not name processes here"
        mine = own & found.keys()
        if not mine and known.before is not None:
            mine = found.keys() - known.before.keys()
        sizes = [found[pid] for pid in mine]
        told = [size for size in sizes if size is not None]
        if len(told) < len(sizes):
            return None, "NVML does not tell the memory of the server's processes"
        total, named = total + sum(told), named + len(told)
    if not named:
        return None, "NVML names none of the server's processes"
    return total, f"{named} process{'es' if named > 1 else ''} of the server"
