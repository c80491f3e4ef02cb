"""A process that ends, with all of its group, when its parent has ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import wait


def watch(sentinel: int) -> None:
    """End this process and its group when the other end of a pipe closes, even while native code keeps the GIL."""
    if sys.platform == "linux":
        import fcntl

        # The kernel then sends the signal itself: fcntl(2), F_SETSIG.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(sentinel, 10, signal.SIGKILL)  # F_SETSIG, which Python 3.11 has no name for
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_end_with_the_parent, args=(sentinel,), daemon=True).start()


def _end_with_the_parent(sentinel: int) -> None:
    wait([sentinel])
    os.killpg(os.getpid(), signal.SIGKILL)
