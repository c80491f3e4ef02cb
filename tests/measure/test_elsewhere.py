"""Processes in another interpreter: what is there, what it is asked, and how it fails."""

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from environments import environment, found

from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.measure import elsewhere, interpreter, probe, process
from pytest_quantbudget.measure.interpreter import Interpreters, Unusable
from pytest_quantbudget.measure.probe import Found, Wanted
from pytest_quantbudget.models import methods


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with nothing but the standard library."""
    return environment(tmp_path_factory.mktemp("bare") / "venv")


def program(folder: Path, text: str, name: str = "python") -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def framed(data: bytes) -> bytes:
    """A message as it goes through a connection of multiprocessing."""
    return struct.pack("!i", len(data)) + data


def modules(python: str, body: str, folder: Path) -> Path:
    """What the interpreter runs whenever it starts."""
    (site,) = Path(python).parents[1].glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(body)
    return site


def test_what_an_interpreter_has_is_asked_there(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "pyyaml", "filelock")
    told = Interpreters().find(python)
    here = interpreter.here()
    assert told.python == here.python
    assert told.libraries == {"pyyaml": here.libraries["pyyaml"]}
    assert str(tmp_path / "venv" / "lib") in " ".join(told.folders)
    assert not set(told.folders) & {path for path in sys.path if "site-packages" in path}


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_an_interpreter_of_another_version_tells_it(version: str) -> None:
    python = found(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    assert interpreter.ask(python).python.startswith(f"{version}.")


def test_nothing_of_this_process_is_seen_there(bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name in ((tmp_path, "only_here"), (tmp_path / "cwd", "in_cwd"), (tmp_path / "path", "in_pythonpath")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    wanted = ("only_here", "in_cwd", "in_pythonpath", "pytest", "yaml", "json", "pytest_quantbudget")
    monkeypatch.setattr(interpreter, "_wanted", lambda: Wanted(wanted, ("pytest", "pyyaml")))
    there = interpreter.ask(bare)
    assert (there.modules, there.libraries) == (("json", "pytest_quantbudget"), {})
    environ = elsewhere.environ(bare)
    assert not [name for name in environ if name.startswith(("PYTHON", "VIRTUAL_ENV"))]
    assert environ["PATH"].startswith(str(Path(bare).parent) + os.pathsep)


def test_an_interpreter_is_asked_once_and_again_when_something_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(tmp_path / "venv")
    asked = []
    ask = interpreter.ask

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return ask(*arguments)

    monkeypatch.setattr(interpreter, "ask", counted)
    known = Interpreters()
    assert known.find(python).modules == known.find(python).modules == ()
    assert len(asked) == 1
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "accelerate.py").write_text("")
    os.utime(site, (1, 1))
    assert known.find(python).modules == ("accelerate",)
    assert len(asked) == 2


SLEEPS = "#!/bin/sh\necho waiting\nexec sleep 60\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "#!/bin/sh\necho hello\n",
            r"did not run as a Python interpreter: it ended with exit code 0; it printed 'hello'",
        ),
        ("#!/bin/sh\nexit 3\n", r"did not run as .*: it ended with exit code 3 and printed nothing"),
        ("#!/bin/sh\nkill -SEGV $$\n", r"did not run as .*: it was killed by SIGSEGV and printed nothing"),
        ("#!/bin/sh\nwhile :; do echo y; done\n", r"did not say what it has within 2\.00 s; it printed 'y'"),
        (SLEEPS, r"did not say what it has within 2\.00 s; it printed 'waiting'"),
        ("\x7fELF rubbish", r"cannot be started: OSError"),
        ("", r"cannot be started: OSError"),
    ],
    ids=["other", "code", "crash", "endless", "hang", "garbage", "empty"],
)
def test_what_is_no_python_is_told_as_such(tmp_path: Path, text: str, why: str) -> None:
    python = program(tmp_path, text)
    began = time.monotonic()
    with pytest.raises(Unusable, match=why) as told:
        Interpreters(2.0).find(python)
    assert python in str(told.value)
    assert not told.value.missing
    assert time.monotonic() - began < 30


# A program that tells what no interpreter would: its arguments are those that Python gets.
RUBBISH = """#!{}
import os, struct, sys
data = {}
os.write(int(sys.argv[6]), data)
"""
FOUND = {"python": "3.11", "modules": [], "libraries": {}, "folders": ["/x"]}


@pytest.mark.parametrize(
    "data",
    [
        framed(b"[" * 100_000),
        framed(b"{"),
        framed(b"[]"),
        framed(b'"text"'),
        framed(b"\xff"),
        framed(json.dumps({"found": [1]}).encode()),
        framed(json.dumps({"found": {**FOUND, "folders": [1]}}).encode()),
        struct.pack("!iQ", -1, 2**62),
        struct.pack("!iQ", -1, 2**64 - 1),
    ],
    ids=["deep", "cut", "list", "text", "bytes", "another record", "a number", "too long", "longer"],
)
def test_what_cannot_be_read_is_told_as_no_interpreters(tmp_path: Path, data: bytes) -> None:
    python = program(tmp_path, RUBBISH.format(sys.executable, data))
    with pytest.raises(Unusable, match=rf"{python} is no Python interpreter: it sent what cannot be read"):
        Interpreters().find(python)


@pytest.mark.parametrize("folder", ["\0", "\ud800", "x" * 10_000], ids=["nul", "surrogate", "long"])
def test_folders_that_are_no_paths_harm_nothing(tmp_path: Path, folder: str) -> None:
    told = framed(json.dumps({"found": {**FOUND, "folders": [folder]}}).encode())
    assert Interpreters().find(program(tmp_path, RUBBISH.format(sys.executable, told))).folders == (folder,)


def test_what_failed_once_is_not_tried_again(tmp_path: Path) -> None:
    python = program(tmp_path, f"#!/bin/sh\necho x >> {tmp_path}/runs\n")
    known = Interpreters()
    for _ in range(3):
        with pytest.raises(Unusable, match="did not run as a Python interpreter"):
            known.find(python)
    assert (tmp_path / "runs").read_text() == "x\n"


def test_a_path_without_a_program_is_told_without_running_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run", None)
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "plain").write_text("")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text("")
    for name, why, missing in (
        ("none", "does not exist", True),
        ("link", "is a link to gone, which does not exist", True),
        ("plain", "is not executable", False),
        ("venv", f"is a directory; did you mean {tmp_path}/venv/bin/python?", False),
        ("venv/bin", f"is a directory; did you mean {tmp_path}/venv/bin/python?", False),
    ):
        with pytest.raises(Unusable) as told:
            Interpreters().find(str(tmp_path / name))
        assert (str(told.value), told.value.missing) == (f"the interpreter {tmp_path / name} {why}", missing)


@pytest.mark.parametrize("version", ["2.7", "3.8", "3.9"])
def test_an_old_python_is_told_by_its_version(version: str) -> None:
    python = found(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    with pytest.raises(Unusable, match=rf"{python} is Python {version}\.\d+; measuring needs 3\.10 or later"):
        interpreter.ask(python)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit(5)", "ended with exit code 1; it printed 'SystemExit: 5'"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        (
            "import time\nprint('in sitecustomize', flush=True)\ntime.sleep(60)",
            "within 3.00 s; it printed 'in sitecustomize'",
        ),
    ],
    ids=["exit", "abort", "hang"],
)
def test_an_interpreter_that_fails_at_its_start(tmp_path: Path, body: str, why: str) -> None:
    python = environment(tmp_path / "venv")
    modules(python, body, tmp_path)
    with pytest.raises(Unusable, match=why):
        interpreter.ask(python, 3.0)


def test_an_interpreter_that_prints_at_its_start_is_understood(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    modules(python, "print('welcome'); import sys; print('{\"found\": 1}', file=sys.stderr)", tmp_path)
    assert interpreter.ask(python).python == interpreter.here().python


def test_the_command_that_installs_is_that_of_the_interpreter() -> None:
    told = methods.pip_command("torch", "llama_cpp", "lm_eval", python="/a b/python")
    assert told == "'/a b/python' -m pip install torch llama-cpp-python lm-eval"


HANGING = """
import sys, time
from pathlib import Path
from pytest_quantbudget.measure import elsewhere, process, probe
sys.path.insert(0, sys.argv[2])
context = elsewhere.Context(sys.argv[1])
process.run(context, probe.main, (probe.Wanted((), ()),), print, name="x")
"""


def test_a_killed_parent_takes_the_process_and_its_children_along(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # Looked for by the probe, and never found: the process is there until it is ended.
    body = (
        "import os, subprocess, sys, threading, time, json, multiprocessing.connection\n"
        "def hang(self, data):\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "    time.sleep(60)\n"
        "multiprocessing.connection.Connection.send_bytes = hang\n"
    )
    (site / "sitecustomize.py").write_text(body)
    environ = {**os.environ, "PYTHONPATH": str(elsewhere.PACKAGE.parent)}
    parent = subprocess.Popen([sys.executable, "-c", HANGING, python, str(tmp_path)], env=environ)
    ends = time.monotonic() + 30
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text().count(" "):
        assert time.monotonic() < ends
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(is_running, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(is_running, pids)):
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends what does not watch its parent itself")
def test_a_killed_parent_takes_a_program_along_that_never_read_this_package(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    # It hangs at once; what it writes comes later than the parent's last step of starting it.
    python = program(tmp_path, f"#!/bin/sh\nsleep 60 &\nchild=$!\nsleep 1\necho $$ $child > {pids}\nwait\n")
    environ = {**os.environ, "PYTHONPATH": str(elsewhere.PACKAGE.parent)}
    parent = subprocess.Popen([sys.executable, "-c", HANGING, python, str(tmp_path)], env=environ)
    ends = time.monotonic() + 30
    while not pids.exists() or not pids.read_text().endswith("\n"):
        assert time.monotonic() < ends
        time.sleep(0.05)
    running = [int(pid) for pid in pids.read_text().split()]
    assert all(map(is_running, running))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(is_running, running)):
        assert time.monotonic() < ends
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_hung_process_prints_its_stack_and_is_ended_whole(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    modules(
        python,
        "import faulthandler, multiprocessing.connection, signal, time\n"
        "faulthandler.register(signal.SIGUSR1)\n"
        "def where_it_hangs(self, data):\n    time.sleep(60)\n"
        "multiprocessing.connection.Connection.send_bytes = where_it_hangs\n",
        tmp_path,
    )
    heard: list[Mapping[str, Any]] = []
    started = elsewhere.Context(python)
    until = time.monotonic() + 3
    wanted = Wanted((), ())
    outcome = process.run(started, probe.main, (wanted,), heard.append, name="hung", until=until)
    assert (outcome.code, heard) == (None, [])
    assert "where_it_hangs" in outcome.tail


def test_a_job_of_many_megabytes_crosses(bare: str) -> None:
    heard: list[Mapping[str, Any]] = []
    wanted = Wanted((*(f"module_{i:01000}" for i in range(4_000)), "json"), ())
    outcome = process.run(
        elsewhere.Context(bare),
        probe.main,
        (wanted,),
        heard.append,
        name="large",
        until=time.monotonic() + 60,
    )
    assert len(json.dumps(wanted.modules)) > 4_000_000
    assert (outcome.code, heard[0]["found"]["modules"]) == (0, ["json"])


@pytest.mark.parametrize(
    ("libraries", "told"),
    [
        ({"transformers": "4.57.1"}, "transformers 4.57.1 in /v/python: /v/python -m pip install 'transformers>=5.14'"),
        ({"torch": "unknown"}, "torch unknown in /v/python: /v/python -m pip install 'torch>=2.8'"),
        ({"transformers": "5.14.0", "torch": "2.13.0+cpu"}, None),
        ({"transformers": "5.20.0.dev0", "torch": "2.13.0a0+git1"}, None),
        ({"bitsandbytes": "0.40"}, None),
        ({}, None),
    ],
    ids=["old", "half removed", "new enough", "development", "not needed", "unknown"],
)
def test_a_library_there_that_is_too_old_is_told_with_the_command(libraries: dict[str, str], told: str | None) -> None:
    subject = Subject("m", None, "ours", None, {}, None, kind="fp32", python="/v/python")
    found = Found("3.11", (), libraries, ())
    assert interpreter.outdated(subject, found) == (f"ours finds {told}" if told else None)


@pytest.mark.parametrize(
    "source",
    [None, "import nowhere\n", "raise PermissionError(13, 'Permission denied')\n"],
    ids=["gone", "module", "denied"],
)
def test_a_package_that_cannot_be_read_from_there_is_told(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None
) -> None:
    package = tmp_path / "pytest_quantbudget"
    package.mkdir()
    if source is not None:
        (package / "__init__.py").write_text(source)
    monkeypatch.setattr(elsewhere, "PACKAGE", package)
    with pytest.raises(Unusable, match=rf"{bare} cannot read this package in {package}: "):
        interpreter.ask(bare)


def test_a_distribution_that_is_half_removed_has_no_version(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for name in ("torch-1.0.dist-info", "accelerate-1.0.dist-info"):
        (site / name).mkdir()
    (site / "torch-1.0.dist-info" / "METADATA").write_text("Name: torch\n")
    there = interpreter.ask(python)
    assert set(there.libraries.values()) <= {"unknown"}
