"""Ways to start a measuring process, where one of them is closed."""

import multiprocessing
import socket
import threading
import time
import warnings
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from builders import last

from pytest_quantbudget.measure import process


class Blocked(RuntimeError):
    """What a plugin raises for a socket; no OSError."""


def refuse(*_: Any, **__: Any) -> Any:
    warnings.warn("a test tried to use a socket", stacklevel=1)
    raise Blocked("a test tried to use a socket")


def fail(*_: Any, **__: Any) -> Any:
    pytest.fail("Blocked: a test tried to use a socket")


class NoSocket(socket.socket):
    """As of pytest-socket with --disable-socket."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return refuse()


@pytest.mark.parametrize(
    ("where", "name", "what"),
    [(socket, "socket", NoSocket), (socket.socket, "connect", refuse), (socket.socket, "connect", fail)],
    ids=["all", "connect", "failure"],
)
@pytest.mark.filterwarnings("error")
def test_without_sockets_a_process_is_started_in_the_way_that_needs_none(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, what: Any
) -> None:
    server, fresh = process.contexts()
    assert isinstance(fresh, SpawnContext)
    with monkeypatch.context() as guarded:
        guarded.setattr(where, name, what)
        with pytest.raises(process.NotStarted, match="Blocked: a test tried to use a socket"):
            process.run(server, print, (), lambda message: None, name="x")
        assert process.run(fresh, print, (), lambda message: None, name="x").code == 0


def slow_to_start(monkeypatch: pytest.MonkeyPatch) -> "process.Context":
    """A way whose processes are there after half a second, as a fork server that imports first."""
    start = SpawnProcess.start

    def slow(self: SpawnProcess) -> None:
        start(self)
        time.sleep(0.5)

    monkeypatch.setattr(SpawnProcess, "start", slow)
    return process.contexts()[-1]


def test_progress_is_told_while_a_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    context = slow_to_start(monkeypatch)
    told: list[set[str]] = []
    names = lambda: told.append({thread.name for thread in threading.enumerate()})  # noqa: E731
    assert process.run(context, print, (), lambda message: None, name="x", tick=names).code == 0
    assert sum("quantbudget-start" in each for each in told) >= 2


def test_a_process_that_is_started_while_the_run_is_interrupted_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[BaseProcess] = []

    def interrupt() -> None:
        started.extend(multiprocessing.active_children())
        if started:
            raise KeyboardInterrupt

    context = slow_to_start(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        process.run(context, last, (), lambda message: None, name="late", tick=interrupt)
    for thread in threading.enumerate():
        if thread.name == "quantbudget-start":
            thread.join(20)
    (late,) = started
    assert (late.name, late.is_alive()) == ("late", False)
