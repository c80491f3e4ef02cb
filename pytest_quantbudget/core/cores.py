"""The cores of this machine's processor that this process may use."""

from __future__ import annotations

import os


def usable() -> int:
    """Their number. Not on all systems can a process be kept to some of them (`os.sched_getaffinity`)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
