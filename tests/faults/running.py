"""Runs of pytest with a budget in rooms of their own, and what each of them leaves behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
from filelock import FileLock, Timeout

TESTS = Path(__file__).resolve().parent.parent
SCHEMA = TESTS.parent / "pytest_quantbudget" / "schemas" / "report.schema.json"
LEAVE_S = 15.0
# Folders among temporary files that others make and keep: torch when it is imported, pytest for `tmp_path`.
NOT_OURS = ("torchinductor_", "pytest-of-")

# Notes each measuring process that is started, and names it after its method and model, which tells the fault in it.
CONFTEST = """
import os
import pathlib

from pytest_quantbudget.measure import process
from pytest_quantbudget.models import hub

hub.HUB_SECONDS = 3

real = process.run

def run(context, target, arguments, hear, *, name, **more):
    subject = arguments[0].request.subject
    name = f"{subject.method}:{pathlib.Path(subject.checkpoint or subject.model).name}"
    started = True
    try:
        return real(context, target, arguments, hear, name=name, **more)
    except process.NotStarted:
        started = False
        raise
    finally:
        if started:
            with open(pathlib.Path(__file__).with_name("starts.txt"), "a") as file:
                file.write(name + "\\n")

process.run = run
contexts = process.contexts

def warm(ahead=()):
    found = contexts()
    found[0].set_forkserver_preload(os.environ["FAULT_PRELOAD"].split())
    return found

process.contexts = warm
"""
FAKE = "from faults import strikes\n\nstrikes.imported(__name__)\n"
SITE = """
import os
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = os.environ.get("FAULT_MISSING", "").split()
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@dataclass
class Ended:
    """What a run of pytest left."""

    code: int
    output: str
    report: dict[str, Any] | None
    starts: Counter[str]
    seconds: float
    orphans: list[str]
    locks: list[str]
    folders: list[str]

    def verdicts(self, budget: str) -> dict[str, dict[str, Any]]:
        """`METHOD::LIMIT` to the verdict, of one budget file."""
        assert self.report is not None, self.output
        return {
            f"{method['name']}::{limit['name']}": limit["verdict"]
            for found in self.report["budgets"]
            if found["file"] == budget
            for method in found["methods"]
            for limit in method["limits"]
        }

    def measurement(self, budget: str, method: str) -> dict[str, Any]:
        """What was measured of a method."""
        assert self.report is not None, self.output
        (found,) = (
            m["measurement"]
            for b in self.report["budgets"]
            if b["file"] == budget
            for m in b["methods"]
            if m["name"] == method
        )
        return dict(found)


@dataclass
class Room:
    """A place for runs: budgets and models in `path`; cache, temporary files and home beside it.

    The paths are short, because the fork server's socket lies in the folder for temporary files.
    """

    base: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="qf-", dir="/tmp")))
    fakes: Sequence[str] = ()
    preload: str = "pytest_quantbudget.measure.preload faults.warm"
    environ: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    temporary: Path = Path()

    def __post_init__(self) -> None:
        self.temporary = self.base / "tmp"
        for name in ("room", "tmp", "cache", "home", "packages"):
            (self.base / name).mkdir(exist_ok=True)
        (self.path / "conftest.py").write_text(CONFTEST)
        (self.path / "pytest.ini").write_text("[pytest]\n")
        (self.base / "packages" / "sitecustomize.py").write_text(SITE)
        for name in self.fakes:
            self.fake(name)

    def fake(self, package: str) -> None:
        """Put a package that strikes before a real one."""
        (self.base / "packages" / package).mkdir()
        (self.base / "packages" / package / "__init__.py").write_text(FAKE)

    @property
    def path(self) -> Path:
        """Where pytest runs."""
        return self.base / "room"

    def start(self, *arguments: str, wrap: Sequence[str] = ()) -> Running:
        """Start pytest in a session of its own."""
        packages = [str(self.base / "packages"), str(TESTS), str(TESTS.parent)]
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(packages),
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.base / "home"),
            "HF_HOME": str(self.base / "home" / "hf"),
            "HF_HUB_OFFLINE": "0",
            "FAULT_RUN": self.mark,
            "FAULT_ROOM": str(self.path),
            "FAULT_PRELOAD": self.preload,
            **self.environ,
        }
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
            environ.pop(name, None)
        report = f"report-{uuid.uuid4().hex[:8]}.json"
        told = () if "--quant-report" in arguments else ("--quant-report", report)
        command = [*wrap, sys.executable, "-m", "pytest", "--quant-cache", str(self.base / "cache"), *told, *arguments]
        out = (self.base / f"{report}.out").open("w+b")
        process = subprocess.Popen(
            command, cwd=self.path, env=environ, stdout=out, stderr=out, start_new_session=True, preexec_fn=_heed
        )
        return Running(self, process, Path(out.name), self.path / (told[1] if told else ""), time.monotonic())

    def run(self, *arguments: str, wrap: Sequence[str] = (), timeout: float = 240) -> Ended:
        """Run pytest to its end."""
        return self.start(*arguments, wrap=wrap).wait(timeout)

    def starts(self) -> Counter[str]:
        """How often a measuring process was started, by `METHOD:MODEL`."""
        try:
            return Counter((self.path / "starts.txt").read_text().split())
        except FileNotFoundError:
            return Counter()

    def processes(self) -> list[int]:
        """The processes that carry this room's mark in their environment, whatever group or session they are in."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"FAULT_RUN={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.base, ignore_errors=True)


@dataclass
class Running:
    """A run of pytest that goes on."""

    room: Room
    process: subprocess.Popen[bytes]
    out: Path
    report: Path
    began: float

    def until(self, condition: str, timeout: float = 90) -> None:
        """Wait until a file of this name pattern is in the room or the cache."""
        deadline = time.monotonic() + timeout
        while not self._is_there(condition):
            assert self.process.poll() is None, self.out.read_text(errors="replace")
            assert time.monotonic() < deadline, self.out.read_text(errors="replace")
            time.sleep(0.05)

    def _is_there(self, condition: str) -> bool:
        try:
            return any(self.room.base.rglob(condition))
        except FileNotFoundError:
            # Folders of processes that have ended go while this looks into them.
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to pytest alone."""
        os.kill(self.process.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to all of the processes that a terminal would send it to."""
        os.killpg(self.process.pid, number)

    def wait(self, timeout: float = 240, *, leave: bool = True) -> Ended:
        """Wait for the end of pytest, then look for what it left behind, unless another run goes on in the room."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = 999
        seconds = time.monotonic() - self.began
        orphans = self._orphans() if leave else []
        report = None
        if self.report.is_file():
            report = json.loads(self.report.read_text())
            jsonschema.validate(report, schema())
        room = self.room
        return Ended(
            code,
            self.out.read_text(errors="replace"),
            report,
            room.starts(),
            seconds,
            orphans,
            held_locks(room.base) if leave else [],
            [
                *(str(path) for path in room.temporary.iterdir() if not path.name.startswith(NOT_OURS)),
                *map(str, (room.base / "cache").glob("quantized/*.making")),
            ],
        )

    def _orphans(self) -> list[str]:
        """Processes that are still there when they had time to see that pytest has gone; none of them survives this."""
        deadline = time.monotonic() + LEAVE_S
        while self.room.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        names = []
        for pid in self.room.processes():
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
                os.kill(pid, signal.SIGKILL)
        return names


def held_locks(folder: Path) -> list[str]:
    """The lock files that somebody still holds."""
    held = []
    for path in folder.rglob("*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            held.append(str(path))
    return held


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON Schema of reports."""
    return dict(json.loads(SCHEMA.read_text()))


def _heed() -> None:
    """A process started in the background may have been told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
