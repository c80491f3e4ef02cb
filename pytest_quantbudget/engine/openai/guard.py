"""Runs a server and ends it whole: all of its processes, however the measuring process ends.

    python guard.py LOG GRACE_S COMMAND...

It leads a session of its own, so that what kills the measuring process and its group leaves it alive. It says on its
standard output, as lines of JSON, `{"pid": N}` when the server was started or `{"error": WORDS}` where it cannot be,
and `{"code": N}` when it has ended. When its standard input ends, so does the server: SIGTERM first, and SIGKILL after
`GRACE_S` seconds. On Linux the server's processes that have left its group are found, too: they become children of
this one (prctl(2), PR_SET_CHILD_SUBREAPER). The output goes into the file LOG; of a long one the beginning is kept
there, and the end in LOG.new, before that LOG.old.

Only the standard library: it is run by its path.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOG_BYTES = 262_144  # of each of the log's parts
LOOK_S = 0.1


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Log:
    """The output of a server: its beginning and its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.size = path, path.open("wb", buffering=0), 0

    def write(self, data: bytes) -> None:
        """Append; the file that is full makes way for the next."""
        with contextlib.suppress(OSError):
            self.file.write(data)
        self.size += len(data)
        if self.size > LOG_BYTES:
            new = Path(f"{self.path}.new")
            with contextlib.suppress(OSError):
                self.file.close()
                if new.exists():
                    new.replace(f"{self.path}.old")
                self.file = new.open("wb", buffering=0)
            self.size = 0


def _say(**message: object) -> None:
    # Whoever listened may be gone.
    with contextlib.suppress(OSError):
        os.write(1, f"{json.dumps(message)}\n".encode())


def _children() -> list[int]:
    """The processes whose parent is this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything.
            if int(entry.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


def _reap() -> None:
    """Take leave of the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signal_all(group: int, number: int) -> bool:
    """Send a signal to the server's group and to all children; whether there was any."""
    there = False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        there = True
    for pid in _children():
        for send in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(pid, number)
                there = True
    return there


def _end(server: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """End every process of the server."""
    until = time.monotonic() + grace_s
    _signal_all(server.pid, signal.SIGTERM)
    # A process that was stopped gets no other signal but SIGKILL.
    _signal_all(server.pid, signal.SIGCONT)
    while time.monotonic() < until:
        server.poll()
        _reap()
        if not _signal_all(server.pid, 0):
            return
        time.sleep(LOOK_S)
    for _ in range(50):
        if not _signal_all(server.pid, signal.SIGKILL):
            return
        time.sleep(LOOK_S)
        server.poll()
        _reap()


def main(log_path: str, grace: str, *command: str) -> None:
    """Run the command until it ends, or until standard input does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    log = Log(Path(log_path))

    def settle() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=settle,  # this process has one thread
        )
    except (OSError, ValueError) as error:
        _say(error=getattr(error, "strerror", None) or str(error))
        return
    _say(pid=server.pid)
    assert server.stdout is not None
    output = server.stdout.fileno()
    watched = [0, output]
    while True:
        ready = select.select(watched, [], [], LOOK_S)[0]
        if output in ready:
            data = os.read(output, 65_536)
            log.write(data)
            if not data:
                watched.remove(output)
        if 0 in ready and not os.read(0, 4096):
            _end(server, float(grace))
            return
        if output not in ready and server.poll() is not None:
            # What it has left behind goes with it.
            _end(server, 0.0)
            _say(code=server.returncode)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
