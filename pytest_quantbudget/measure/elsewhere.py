"""Starting a measuring process in another Python interpreter, with nothing of this one but the package itself.

`multiprocessing` cannot: what it starts elsewhere gets this process's `sys.path`, and with it these libraries.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.measure import parent

PACKAGE = Path(__file__).resolve().parents[1]
OLDEST = (3, 10)

# Run by any Python, an old one too. It knows the package alone, wherever that lies: not what is installed next to it.
BOOT = f"""
import json, os, struct, sys
def tell(name, words):
    text = json.dumps({{name: words}}).encode()
    os.write(int(sys.argv[4]), struct.pack("!i", len(text)) + text)
if sys.version_info < {OLDEST}:
    tell("too_old", "%d.%d.%d" % sys.version_info[:3])
    sys.exit(0)
# The working directory.
del sys.path[0]
import importlib.util
class Own:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "{PACKAGE.name}":
            folder = sys.argv[1]
            file = os.path.join(folder, "__init__.py")
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])
sys.meta_path.insert(0, Own)
try:
    from {PACKAGE.name}.measure.inside import main
except (ImportError, OSError) as error:
    tell("unreadable", str(error))
    raise
main(*sys.argv[2:])
"""


def environ(python: str) -> dict[str, str]:
    """The environment of a process in another interpreter: its own programs first, and no setting of this one."""
    own = ("PYTHON", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    folders = [str(Path(python).parent), *filter(None, [kept.get("PATH", os.defpath)])]
    return {**kept, "PATH": os.pathsep.join(folders)}


class Process:
    """A process in another interpreter, as `multiprocessing` has processes: `start` it once.

    It runs `target(record, tell, log)` there. `target` is the function `main` of one of the package's modules, and its
    `record` crosses as JSON. The process leads a session, and ends when this one ends.
    """

    def __init__(
        self, python: str, target: Callable[..., None], record: object, tell: Connection, log: Connection
    ) -> None:
        self.python, self.module, self.name = python, target.__module__, ""
        self.record = record
        self._ends = (tell, log)
        self._popen: subprocess.Popen[bytes] | None = None
        self.sentinel, self._open = multiprocessing.Pipe(duplex=False)
        self._watched, self._alive = multiprocessing.Pipe(duplex=False)

    def start(self) -> None:
        """Start it. Raises OSError where it cannot be."""
        tell, log = self._ends
        with self._watched, self._open, tempfile.TemporaryFile() as file:
            # Times may be infinite, which JSON does not know and Python's reader does.
            file.write(json.dumps(codec.to_builtins(self.record)).encode())
            file.seek(0)
            ends = [end.fileno() for end in (tell, log, self._watched, self._open, file)]
            self._popen = subprocess.Popen(
                [self.python, "-c", BOOT, str(PACKAGE), self.module, str(ends[-1]), *map(str, ends[:-1])],
                env=environ(self.python),
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=log.fileno(),
                start_new_session=True,
                pass_fds=ends,
            )
            # What hangs before it reads this package does not watch the pipe itself.
            parent.arm(self._watched.fileno(), self._popen.pid)

    @property
    def pid(self) -> int | None:
        """Its id, which is also that of its group; None before it is started."""
        return self._popen.pid if self._popen else None

    @property
    def exitcode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._popen.poll() if self._popen else None

    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for `timeout` seconds at most."""
        if self._popen is not None:
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                return


@dataclass(frozen=True)
class Context:
    """A way to start a process, in the interpreter `python`."""

    python: str

    def Pipe(self, duplex: bool = True) -> tuple[Any, Any]:  # noqa: N802  # as multiprocessing has it
        """Two connected ends."""
        return multiprocessing.Pipe(duplex)

    def Process(self, target: Callable[..., None], args: tuple[Any, ...], name: str) -> Process:  # noqa: N802
        """A process that is to run `target(*args)`."""
        made = Process(self.python, target, *args)
        made.name = name
        return made
