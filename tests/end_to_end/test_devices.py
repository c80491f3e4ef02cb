"""Workers and their GPUs, which are simulated here: what is measured runs on the CPU."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FOUR_GPUS = """
import json
import os
import time

from pytest_quantbudget.measure import hardware, process
from pytest_quantbudget.core.gpus import Gpu

GIB = 2**30
GPUS = [Gpu(i, "NVIDIA L4", f"GPU-{i}", 24 * GIB, 23 * GIB, "8.9", "580.1") for i in range(5)]
hardware.all_gpus = lambda: GPUS
original = process.run

def noted(context, target, arguments, hear, *, name, **more):
    (job,) = arguments
    note = {"method": job.request.subject.method, "gpus": job.environ["CUDA_VISIBLE_DEVICES"].split(",")}
    note |= {"worker": os.environ.get("PYTEST_XDIST_WORKER", "gw0"), "start": time.monotonic()}
    try:
        return original(context, target, arguments, hear, name=name, **more)
    finally:
        with open(f"note-{note['method']}-{os.getpid()}.json", "w") as file:
            json.dump(note | {"end": time.monotonic()}, file)

process.run = noted
"""
BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
tasks:
  wordmath: {file: builtin, questions: 8, max_new_tokens: 96}
methods:
  fp32: {budget: {max_weights: 3 MiB}}
  bf16: {budget: {max_wordmath_drop: 50, max_weights: 3 MiB}}
  fp16: {gpus: 2, budget: {max_wordmath_drop: 50, max_weights: 3 MiB}}
  int8: {gpus: 2, budget: {max_wordmath_drop: 50, max_weights: 3 MiB}}
"""


def notes() -> list[dict[str, Any]]:
    """Every process that was started: method, GPUs, worker, start and end."""
    return [json.loads(path.read_text()) for path in Path().glob("note-*.json")]


def test_no_two_measurements_share_a_device_and_each_method_is_measured_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, simulated_engine: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,2,1,GPU-0")
    monkeypatch.setenv("SIMULATED_SECONDS", "0.5:0.01")
    pytester.makeconftest(simulated_engine + FOUR_GPUS)
    (pytester.path / "b.yaml").write_text(BUDGET)
    # Methods on two GPUs ask for them; torch has none here, and a CPU may not stand in for them: their limits skip.
    args = ("--quant-budget", "b.yaml", "-n", "3", "--dist", "loadscope", "--quant-report", "r.json")
    result = pytester.runpytest_subprocess(*args)
    result.assert_outcomes(passed=3, skipped=4)
    started = notes()
    assert sorted(note["method"] for note in started) == ["bf16", "fp16", "fp32", "int8"]
    visible = ["GPU-4", "GPU-2", "GPU-1", "GPU-0"]
    for note in started:
        first = visible.index(note["gpus"][0])
        assert first == int(note["worker"].removeprefix("gw"))
        assert note["gpus"] == visible[first : first + (2 if note["method"] in ("fp16", "int8") else 1)]
    for one, other in itertools.combinations(started, 2):
        if set(one["gpus"]) & set(other["gpus"]):
            assert one["end"] <= other["start"] or other["end"] <= one["start"]


def test_on_a_cpu_one_measurement_runs_at_a_time(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, simulated_engine: str
) -> None:
    monkeypatch.setenv("SIMULATED_SECONDS", "0.5:0.01")
    pytester.makeconftest(
        simulated_engine + FOUR_GPUS.replace("GPUS\n", "[]\n").replace('job.environ["CUDA_VISIBLE_DEVICES"]', '"cpu"')
    )
    (pytester.path / "b.yaml").write_text(BUDGET.replace("gpus: 2, ", ""))
    args = ("--quant-budget", "b.yaml", "-n", "2", "-k", "fp", "--quant-report", "r.json")
    pytester.runpytest_subprocess(*args).assert_outcomes(passed=3)
    one, other = notes()
    assert one["end"] <= other["start"] or other["end"] <= one["start"]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_that_is_stored(
    pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_text(small.read_text().replace("questions: 12", "questions: 300, batch_size: 8"))
    command = [sys.executable, "-m", "pytest", "--quant-budget", small.name, "-n", "1", "--quant-report", "r.json"]
    with Path("out.txt").open("w") as out:
        run = subprocess.Popen([*command, "--quant-cache", "kept"], start_new_session=True, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while len(list(Path("kept").rglob("fp32-*/batch-*.entry"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(worker_of(run.pid), signal.SIGKILL)
        assert run.wait(timeout=200) == pytest.ExitCode.TESTS_FAILED
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert "crashed while running 'small.yaml::fp32::max_weights'" in Path("out.txt").read_text()
    fp32, bf16 = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    assert fp32["measurement"]["tasks"][0]["resumed"] >= 24
    outcomes = {limit["name"]: limit["verdict"]["outcome"] for limit in fp32["limits"] + bf16["limits"]}
    assert outcomes.pop("max_weights") == "failed"
    assert set(outcomes.values()) == {"within"}


def worker_of(run: int) -> int:
    """The process of the only xdist worker of a run."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == run and b"exec(eval" in (path / "cmdline").read_bytes():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("no worker was found")
