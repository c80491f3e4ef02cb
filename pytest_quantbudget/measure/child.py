"""Inside the measuring process: load one subject, run what the request needs, tell and store each phase's figures.

A phase that fails costs its own figures. What was told or stored before the process dies is kept.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

from pytest_quantbudget.core.request import QUANTIZE
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.measure.job import FORK_SPOILED, Job
from pytest_quantbudget.measure.phases import Phases


def main(job: Job, tell: Connection, log: Connection) -> None:
    """Entry point of the process.

    Ends with the code FORK_SPOILED, unless this is the `last` way to start a process, where a GPU is there and this
    fork cannot use it.
    """
    _settle(log, job.environ)
    gpus = Gpus()
    if not job.last and _spoiled():
        os._exit(FORK_SPOILED)
    run = Phases(job, tell, gpus)
    if job.quantize:
        run.phase(QUANTIZE, run.quantize, fatal=True)
    else:
        run.measure()
    run.say(done=True)
    # Libraries leave threads and pools behind that can hang at exit; all that matters has been told.
    sys.stdout.flush()
    os._exit(0)


def _settle(log: Connection, environ: Mapping[str, str]) -> None:
    """Lead a group of our own, send all output, native code's too, into the log, and end when the parent is gone."""
    os.setpgid(0, 0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a crash must not take the last words along
    os.environ.update(environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the fork server; see preload.py
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # how the parent asks where we hang
    parent = parent_process()
    if parent is not None:
        _end_with(parent.sentinel)
    logging.captureWarnings(True)


def _end_with(sentinel: int) -> None:
    """End this process and its group when the other end of a pipe closes, even while native code keeps the GIL."""
    if sys.platform == "linux":
        import fcntl

        # The kernel then sends the signal itself: fcntl(2), F_SETSIG.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(sentinel, 10, signal.SIGKILL)  # F_SETSIG, which Python 3.11 has no name for
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_outlive_nobody, args=(sentinel,), daemon=True).start()


def _outlive_nobody(sentinel: int) -> None:
    wait([sentinel])
    os.killpg(os.getpid(), signal.SIGKILL)


def _spoiled() -> bool:
    """Whether something touched CUDA before the fork: NVML then counts GPUs that CUDA refuses to open."""
    try:
        import torch

        if torch.cuda.device_count():
            torch.cuda.init()
    except ImportError:
        return False
    except (RuntimeError, AssertionError):
        traceback.print_exc()
        return True
    return False
