"""Kernels that are compiled just in time: on a GPU in a process of their own, before the clock of loading runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import with_method

pytestmark = pytest.mark.model

# Measures fp32-prepared, and then fp32, as a run on a machine with a GPU does; torch sees none, and takes the CPU.
MEASURE = """
import json, sys, tempfile
from pathlib import Path
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import LoadTime, Request, Subject
from pytest_quantbudget.measure.bench import Bench
from pytest_quantbudget.measure.progress import Progress
from pytest_quantbudget.measure.store import Store

class Seen:
    phases = []
    def show(self, state):
        if state.phase not in self.phases:
            self.phases.append(state.phase)
    def clear(self):
        pass

def main(gpus, backend, timeout):
    here = Path.cwd()
    run = Path(tempfile.mkdtemp(dir=here))
    cards = [Gpu(0, "NVIDIA H200", "GPU-0", 1, 1, "9.0", "580")] * gpus
    bench = Bench(run, here / "cache", here, Store(str(here / "results"), refresh=True), cards)
    bench.progress = Progress(Seen())
    measured = {}
    for method, options in ("fp32-prepared", {"backend": backend}), ("fp32", {}):
        subject = Subject(str(BUILTIN_DIR), None, method, None, options, None)
        measured[method] = codec.to_builtins(bench.measure(Request(subject, (LoadTime(),), timeout_s=timeout)))
    print(json.dumps([measured, Seen.phases]))

if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a copy of the package that knows the method."""
    with_method(tmp_path, "fp32-prepared", "prepared_method.py")
    (tmp_path / "measure.py").write_text(MEASURE)
    return tmp_path


def measure(
    room: Path, *, gpus: int = 1, backend: str = "auto", timeout: float = 300, seconds: float = 8
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What was measured of both methods, and the phases that progress has shown."""
    told = {"PYTHONPATH": str(room), "KERNELS": str(room / "kernels"), "KERNELS_SECONDS": str(seconds)}
    command = [sys.executable, "measure.py", str(gpus), backend, str(timeout)]
    done = subprocess.run(
        command, cwd=room, env={**os.environ, **told}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    measured, phases = json.loads(done.stdout.splitlines()[-1])
    return measured["fp32-prepared"], measured["fp32"], phases


def test_compiling_has_a_process_of_its_own_and_is_no_load_time(room: Path) -> None:
    own, other, phases = measure(room)
    assert own.get("failures", []) == []
    assert own["load_time_s"] < 8 <= own["kernels_s"]
    assert phases.index("kernels") < phases.index("load")
    (compiler,) = (room / "kernels.pids").read_text().split()
    loader, backend, kept = (room / "kernels.loaded").read_text().split()
    assert loader != compiler
    assert (backend, kept) == ("slow", "compiled")
    said = "its kernels are slow; tried before, and unusable here: fast (RuntimeError: no nvcc)"
    assert own["notes"] == [f"fp32-prepared: {said}"]
    assert other.get("kernels_s") is None

    made = (room / "kernels").stat().st_mtime_ns
    again, _, _ = measure(room)
    assert again["kernels_s"] > 0
    assert (room / "kernels").stat().st_mtime_ns == made
    assert len((room / "kernels.pids").read_text().split()) == 2


def test_without_a_gpu_no_process_is_started_for_it(room: Path) -> None:
    own, _, phases = measure(room, gpus=0)
    assert own.get("kernels_s") is None
    assert "kernels" not in phases
    (compiler,) = (room / "kernels.pids").read_text().split()
    assert (room / "kernels.loaded").read_text().split() == [compiler, "slow", "compiled"]
    assert own["load_time_s"] < 8


def test_compiling_that_hangs_is_ended_and_costs_no_other_method(room: Path) -> None:
    own, other, _ = measure(room, timeout=40, seconds=600)
    (failure,) = own["failures"]
    said = "not finished within its timeout of 40.0 s: ended during phase 'kernels'"
    assert (failure["phase"], failure["message"], failure["fatal"]) == ("kernels", said, True)
    assert other.get("failures", []) == []
    assert other["load_time_s"] > 0
    (compiler,) = map(int, (room / "kernels.pids").read_text().split())
    assert not Path(f"/proc/{compiler}").exists()


def test_kernels_that_cannot_be_compiled_are_a_failure_in_words(room: Path) -> None:
    own, other, _ = measure(room, backend="fast")
    (failure,) = own["failures"]
    assert (failure["phase"], failure["message"], failure["fatal"]) == ("kernels", "RuntimeError: no nvcc", True)
    assert not (room / "kernels.loaded").exists()
    assert other["load_time_s"] > 0
