"""A server that the measuring process starts: watched, its log kept, and ended whole."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.engine.openai import guard

GRACE_S = 5.0
START_S = 20.0  # for the process that guards the server to say that it has been started
TAIL_LINES = 25
LOOPBACK = "127.0.0.1"


def free_port(wanted: int | None = None) -> int:
    """A port of this machine that is free: the `wanted` one, else any. Raises ValueError where that is in use."""
    with socket.socket() as probe:
        # As servers do it: a port whose last connections are still fading is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted or 0))
        except OSError as error:
            raise ValueError(f"port {wanted} is in use ({error.strerror}); leave `port` out for a free one") from None
        return int(probe.getsockname()[1])


class Running:
    """A server's process, started in `folder` with the variables of `environ`. Raises ValueError where it cannot be."""

    def __init__(self, command: Sequence[str], folder: str | None, environ: Mapping[str, str]) -> None:
        self.command = tuple(command)
        # Removed with the temporary files of the measuring process.
        self.log = Path(tempfile.mkdtemp(prefix="server-")) / "log"
        self.code: int | None = None
        self.pid: int | None = None
        self._guard = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, str(self.log), str(GRACE_S), *self.command],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        os.set_blocking(self._guard.stdout.fileno(), False)
        self._heard = b""
        self._listen(START_S)
        if self.pid is None:
            why = self.error or "its guard did not start"
            self.end()
            raise ValueError(f"the server's command {self.command[0]!r} cannot be started: {why}")

    error = ""

    def _listen(self, wait_s: float = 0.0) -> None:
        """Take in what the guard has said; wait for a first word."""
        assert self._guard.stdout is not None
        out = self._guard.stdout.fileno()
        select.select([out], [], [], wait_s)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(out, 4096):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.pid, self.code = said.get("pid", self.pid), said.get("code", self.code)
            self.error = said.get("error", self.error)

    @property
    def ended(self) -> str | None:
        """How the server has ended, in words; None while it runs."""
        self._listen()
        if self.code is None and self._guard.poll() is None:
            return None
        if self.code is None:
            return "the process that guards the server has ended"
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with exit code {self.code}"
        return f"the server {how}"

    def output(self) -> str:
        """What is kept of the server's output: its beginning and its end."""
        parts = [Path(f"{self.log}{suffix}") for suffix in ("", ".old", ".new")]
        return "".join(part.read_text(encoding="utf-8", errors="replace") for part in parts if part.exists())

    def tail(self) -> str:
        """The last lines of the output."""
        lines = [line.rsplit("\r", 1)[-1] for line in self.output().split("\n") if line.strip()]
        return "\n".join(safe(line, 300) for line in lines[-TAIL_LINES:])

    def end(self) -> None:
        """End all processes of the server, and wait for that."""
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(3 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.stdout is not None:
            self._guard.stdout.close()
