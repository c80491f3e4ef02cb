"""Ways to start a measuring process, where one of them is closed."""

import socket
import warnings
from multiprocessing.context import SpawnContext
from typing import Any

import pytest

from pytest_quantbudget.measure import process


class Blocked(RuntimeError):
    """What a plugin raises for a socket; no OSError."""


def refuse(*_: Any, **__: Any) -> Any:
    warnings.warn("a test tried to use a socket", stacklevel=1)
    raise Blocked("a test tried to use a socket")


class NoSocket(socket.socket):
    """As of pytest-socket with --disable-socket."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return refuse()


@pytest.mark.parametrize(
    ("where", "name", "what"),
    [(socket, "socket", NoSocket), (socket.socket, "connect", refuse)],
    ids=["all", "connect"],
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
