"""Inside the measuring process: load one subject, run the phases, report and store the figures of each.

A phase that fails costs its own figures. What was reported or stored before the process dies is kept.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import tempfile
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection

from pytest_quantbudget.core.request import KERNELS, QUANTIZE
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.measure.job import FORK_SPOILED, Job
from pytest_quantbudget.measure.parent import watch
from pytest_quantbudget.measure.phases import Phases


def main(job: Job, tell: Connection, log: Connection) -> None:
    """Entry point of the process.

    Ends with the code FORK_SPOILED where there is a GPU that this fork cannot use, unless this is the `last` way to
    start a process.
    """
    _settle(log, job)
    gpus = Gpus()
    if not job.last and _spoiled():
        os._exit(FORK_SPOILED)
    run = Phases(job, tell, gpus)
    alone = {QUANTIZE: run.quantize, KERNELS: run.prepare}
    if job.only is not None:
        run.phase(job.only, alone[job.only], fatal=True)
    else:
        run.measure()
    run.say(done=True)
    # Libraries leave threads and pools behind that can hang at exit; everything has been sent.
    sys.stdout.flush()
    os._exit(0)


def _settle(log: Connection, job: Job) -> None:
    """Lead a process group, send all output (native code's too) into the log, and end when the parent has ended."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    with contextlib.suppress(AttributeError):
        # A crash must not lose the last lines.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(job.environ)
    if job.temporary is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = job.temporary
    # As in the fork server; see preload.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    faulthandler.enable(all_threads=False)
    # The parent asks a hung process for its stack.
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    parent = parent_process()
    if parent is not None:
        watch(parent.sentinel)
    logging.captureWarnings(True)


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
