"""A process that ends, with all of its group, when its parent has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import wait


def watch(sentinel: int) -> None:
    """End this process and its group when the other end of a pipe closes, even while native code keeps the GIL."""
    arm(sentinel, os.getpid())
    threading.Thread(target=_end_with_the_parent, args=(sentinel,), daemon=True).start()


def arm(sentinel: int, group: int) -> None:
    """Have the kernel kill a process group when the other end of a pipe closes, as long as the group keeps this end.

    That holds whatever the group runs. Only Linux can: fcntl(2), F_SETSIG.
    """
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -group)
        fcntl.fcntl(sentinel, 10, signal.SIGKILL)  # F_SETSIG, which Python 3.11 has no name for
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)


def _end_with_the_parent(sentinel: int) -> None:
    wait([sentinel])
    os.killpg(os.getpid(), signal.SIGKILL)
