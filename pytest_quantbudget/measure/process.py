"""One measuring process from start to end: its messages, its time limit, and how it ended."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pytest_quantbudget.core.safetext import safe

if TYPE_CHECKING:
    # Where there is no fork, the first does not exist, and reports are judged all the same.
    from multiprocessing.context import ForkServerContext, SpawnContext

    from pytest_quantbudget.measure import elsewhere

    Context: TypeAlias = ForkServerContext | SpawnContext | elsewhere.Context

GRACE_S = 3.0
START_CHECK_S = 0.1  # between two looks at a process that is being started
CHECK_S = 1.0  # between two checks of a process that sends nothing
LOG_BYTES = 16_384
LOG_LINES = 25


class Process(Protocol):
    """What is started and watched: a process of `multiprocessing`, or one in another interpreter."""

    @property
    def pid(self) -> int | None:
        """Its id; None before it is started."""

    @property
    def sentinel(self) -> Any:
        """What becomes ready when it has ended."""

    @property
    def exitcode(self) -> int | None:
        """Its exit code, or the negative number of a signal; None while it runs."""

    def start(self) -> None:
        """Start it."""

    def is_alive(self) -> bool:
        """Whether it runs."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for `timeout` seconds at most."""


class NotStarted(Exception):
    """A process cannot be started in this way; the message says why."""


@dataclass
class Outcome:
    """How a process ended.

    `code` is None where it was ended at its time limit; `done` is whether it has sent everything; `log` is the tail of
    its output.
    """

    code: int | None = None
    phase: str = ""
    done: bool = False
    log: bytearray = field(default_factory=bytearray)

    @property
    def tail(self) -> str:
        """The last lines that it printed, of progress bars their last state."""
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


def contexts(ahead: Sequence[str] = ()) -> list[Context]:
    """Ways to start a process, best first: a fork server, else afresh.

    The fork server has imported torch, transformers and the modules `ahead`, of the first call that starts it.
    """
    fresh: Context = multiprocessing.get_context("spawn")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return [fresh]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest_quantbudget.measure.preload", *ahead])
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

    It sends JSON objects, as bytes, through the connection `tell`; they go to `hear`, and `{"phase": NAME}` and
    `{"done": true}` are noted. All its output goes into the connection `log`, of which the tail is kept. `tick` is
    called while it runs, once a second at least. However this returns or raises, no process of its group is left.
    Raises NotStarted where no process can be started in this way.
    """
    outcome = Outcome()
    heard, tell = context.Pipe(duplex=False)
    logged, log = context.Pipe(duplex=False)
    with heard, logged:
        with tell, log:
            process: Process = context.Process(target=target, args=(*arguments, tell, log), name=name)
            _start(process, tick)
        try:
            ended = _listen(process, heard, logged, outcome, hear, until, tick)
            if not ended:
                _ask_for_stack(process, logged, outcome)
        finally:
            end(process)
            _drain(logged, outcome, 0)
        if ended:
            outcome.code = process.exitcode
    return outcome


def _start(process: Process, tick: Callable[[], None]) -> None:
    """Start it in a thread: the first start waits for what the fork server imports, and `tick` is called meanwhile."""
    failed: list[BaseException] = []
    given_up = threading.Event()

    def start() -> None:
        try:
            process.start()
        except BaseException as error:  # noqa: BLE001  # whatever a plugin that forbids sockets raises
            failed.append(error)
        else:
            if given_up.is_set():
                end(process)

    with warnings.catch_warnings():
        # Who forbids a socket may also warn of it, and there is a way without one.
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=start, name="quantbudget-start", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(START_CHECK_S)
                tick()
        except BaseException:
            given_up.set()
            raise
    # Sockets may be forbidden, TMPDIR may be too long, the fork server may have died.
    for error in failed:
        raise NotStarted(f"{type(error).__name__}: {error}") from error


def _listen(
    process: Process,
    heard: Connection,
    logged: Connection,
    outcome: Outcome,
    hear: Callable[[Mapping[str, Any]], None],
    until: float,
    tick: Callable[[], None],
) -> bool:
    """Read messages and output; True when the process has ended, False when its time is over."""
    open_: list[Any] = [heard, logged, process.sentinel]
    while True:
        # Not the sentinel alone: where it is a pipe, a process that was forked there keeps it open.
        ended = not process.is_alive()
        ready = wait(open_, 0 if ended else min(max(0.0, until - time.monotonic()), CHECK_S))
        tick()
        if logged in ready and not _read_log(logged, outcome):
            open_.remove(logged)
        if process.sentinel in ready:
            open_.remove(process.sentinel)
            process.join(CHECK_S)
        if heard in ready:
            try:
                message = json.loads(heard.recv_bytes())
            except (EOFError, OSError):
                open_.remove(heard)
                continue
            outcome.phase = message.get("phase", outcome.phase)
            outcome.done = message.get("done", outcome.done)
            hear(message)
        # Only once all of its messages have been read.
        elif ended:
            return True
        # Also where it prints without a pause.
        elif time.monotonic() >= until:
            return False


def _read_log(logged: Connection, outcome: Outcome) -> bool:
    """Read what is there, and keep the tail; False at the end."""
    try:
        data = os.read(logged.fileno(), 65_536)
    except OSError:
        return False
    outcome.log += data
    del outcome.log[:-LOG_BYTES]
    return bool(data)


def _drain(logged: Connection, outcome: Outcome, seconds: float) -> None:
    """Drain the log; never block on a process that keeps printing."""
    ends = time.monotonic() + seconds
    while wait([logged], max(0.0, ends - time.monotonic())) and _read_log(logged, outcome):
        if time.monotonic() > ends + CHECK_S:
            return


def _ask_for_stack(process: Process, logged: Connection, outcome: Outcome) -> None:
    """Have a hung process print its Python stack; the handler runs even while native code holds the GIL."""
    with contextlib.suppress(OSError, AttributeError):
        os.kill(process.pid or 0, signal.SIGUSR1)
        _drain(logged, outcome, CHECK_S)


def end(process: Process) -> None:
    """End a process and its group: SIGTERM first, SIGKILL after a grace period."""
    if process.is_alive():
        _signal(process, signal.SIGTERM)
        process.join(GRACE_S)
    # Also the processes that it has started and left behind.
    _signal(process, signal.SIGKILL)
    process.join()


def _signal(process: Process, number: signal.Signals) -> None:
    assert process.pid is not None
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        # It does not lead a group yet, or all of the group has ended.
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
    except PermissionError:
        pass
