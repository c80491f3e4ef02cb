"""One measuring process from its start to its end: what it says, how long it may take, how it died."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from pytest_quantbudget.core.safetext import safe

Context = ForkServerContext | SpawnContext

GRACE_S = 3.0
LOOK_S = 1.0  # how often a process is looked at that says nothing
LOG_BYTES = 16_384
LOG_LINES = 25


@dataclass
class Outcome:
    """What a process left.

    `code` is None where it was ended at its time limit; `done` is whether it said that all was told; `log` is the tail
    of its output.
    """

    code: int | None = None
    phase: str = ""
    done: bool = False
    log: bytearray = field(default_factory=bytearray)

    @property
    def tail(self) -> str:
        """The last lines that it printed, progress bars at their last state."""
        lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in self.log.decode("utf-8", "replace").split("\n")]
        return "\n".join([safe(line, 300) for line in lines if line.strip()][-LOG_LINES:])

    @property
    def death(self) -> str:
        """How it ended, in words."""
        if self.code is None or self.code >= 0:
            return f"ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        hint = " (the system's out-of-memory killer?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


def contexts() -> list[Context]:
    """Ways to start a process, best first: a fork server that has imported torch and transformers, else afresh."""
    fresh: Context = multiprocessing.get_context("spawn")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return [fresh]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest_quantbudget.measure.preload"])
    return [server, fresh]


def run(
    context: Context,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    hear: Callable[[Mapping[str, Any]], None],
    *,
    name: str,
    until: float = math.inf,
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run `target(*arguments, tell, log)` in a process until it ends, or until the monotonic clock reads `until`.

    What it sends through the connection `tell`, JSON objects as bytes, goes to `hear`; `{"phase": NAME}` is kept as the
    phase that it is in, `{"done": true}` as its last word. All its output goes into the connection `log`, of which the
    end is kept. `tick` is called while it runs, once a second at least. However this returns or raises, no process of
    its group is left. Raises OSError or EOFError where no process can be started.
    """
    outcome = Outcome()
    heard, tell = context.Pipe(duplex=False)
    logged, log = context.Pipe(duplex=False)
    with heard, logged:
        with tell, log:
            process = context.Process(target=target, args=(*arguments, tell, log), name=name)
            process.start()
        try:
            ended = _listen(process, heard, logged, outcome, hear, until, tick)
            if not ended:
                _ask_for_stack(process, logged, outcome)
        finally:
            end(process)
            _take_log(logged, outcome, 0)
        if ended:
            outcome.code = process.exitcode
    return outcome


def _listen(
    process: BaseProcess,
    heard: Connection,
    logged: Connection,
    outcome: Outcome,
    hear: Callable[[Mapping[str, Any]], None],
    until: float,
    tick: Callable[[], None],
) -> bool:
    """Take in what the process says and prints; True when it has ended, False when its time is over."""
    open_: list[Any] = [heard, logged, process.sentinel]
    while True:
        # Not the sentinel alone: where it is a pipe, a process that was forked there keeps it open.
        ended = not process.is_alive()
        ready = wait(open_, 0 if ended else min(max(0.0, until - time.monotonic()), LOOK_S))
        tick()
        if logged in ready and not _read_log(logged, outcome):
            open_.remove(logged)
        if process.sentinel in ready:
            open_.remove(process.sentinel)
            process.join(LOOK_S)
        if heard in ready:
            try:
                message = json.loads(heard.recv_bytes())
            except (EOFError, OSError):
                open_.remove(heard)
                continue
            outcome.phase = message.get("phase", outcome.phase)
            outcome.done = message.get("done", outcome.done)
            hear(message)
        elif ended:  # only once all that it said has been heard
            return True
        elif time.monotonic() >= until:  # also where it prints without a pause
            return False


def _read_log(logged: Connection, outcome: Outcome) -> bool:
    """Take in what is there; False at the end. Only the tail is kept, however much a process prints."""
    try:
        data = os.read(logged.fileno(), 65_536)
    except OSError:
        return False
    outcome.log += data
    del outcome.log[:-LOG_BYTES]
    return bool(data)


def _take_log(logged: Connection, outcome: Outcome, seconds: float) -> None:
    """Take in what is printed until there is no more, for some time and little longer: whoever prints may not end."""
    ends = time.monotonic() + seconds
    while wait([logged], max(0.0, ends - time.monotonic())) and _read_log(logged, outcome):
        if time.monotonic() > ends + LOOK_S:
            return


def _ask_for_stack(process: BaseProcess, logged: Connection, outcome: Outcome) -> None:
    """Have a hung process print where it is; its handler runs even where native code keeps Python waiting."""
    with contextlib.suppress(OSError, AttributeError):
        os.kill(process.pid or 0, signal.SIGUSR1)
        _take_log(logged, outcome, LOOK_S)


def end(process: BaseProcess) -> None:
    """End a process and all of its group that may still run: asked first, killed after a while."""
    if process.is_alive():
        _signal(process, signal.SIGTERM)
        process.join(GRACE_S)
    _signal(process, signal.SIGKILL)  # what it has started and left behind, too
    process.join()


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it has not got as far as to lead a group, or all of it is gone
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
    except PermissionError:
        pass
