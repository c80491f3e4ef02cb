"""Nothing is measured twice: later runs, runs after a kill, and runs side by side share what is stored."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from builders import COUNTING, IDS, outcomes

from pytest_quantbudget.core import units
from pytest_quantbudget.measure import store


@pytest.fixture
def room(pytester: pytest.Pytester, small: Path) -> pytest.Pytester:
    """A room with a budget with every kind of figure, whose runs note which methods they start."""
    small.write_text(small.read_text().replace("{max_weights:", "{max_ttft: 60 s, max_load_time: 60 s, max_weights:"))
    pytester.makeconftest(COUNTING)
    return pytester


def run(room: pytest.Pytester, *more: str, passed: int = 7) -> list[str]:
    """Run the budget; the methods that were started, in order."""
    Path("started.txt").write_text("")
    result = room.runpytest("--quant-budget", "small.yaml", "--quant-report", "r.json", "--quant-cache", "kept", *more)
    result.assert_outcomes(passed=passed)
    return Path("started.txt").read_text().split()


def measurements(report: str = "r.json") -> dict[str, Any]:
    """What a report says was measured, by method."""
    methods = json.loads(Path(report).read_text())["budgets"][0]["methods"]
    return {method["name"]: method["measurement"] for method in methods}


def rewrite_entries(pattern: str, **changes: Any) -> int:
    """Give stored entries another content under a right checksum; how many there were."""
    paths = list(Path("kept/results").rglob(pattern))
    for path in paths:
        content = json.loads(path.read_bytes().partition(b"\n")[2])
        payload = {**content["payload"], **changes.get("payload", {})}
        made = changes.get("made") or datetime.datetime.strptime(content["made"], units.ISO)
        path.write_bytes(store.encode(content["key"], payload, made))
    return len(paths)


def test_a_second_run_loads_nothing_and_says_so(room: pytest.Pytester) -> None:
    assert run(room) == ["fp32", "bf16"]
    first = measurements()
    assert run(room) == []
    second = measurements()
    for name in first:
        assert second[name]["loaded"]["reused"]
        # An entry may be written in the next second.
        loaded, stored = (datetime.datetime.strptime(m[name]["loaded"]["at"], units.ISO) for m in (first, second))
        assert (stored - loaded).total_seconds() in (0, 1)
        assert [speed["origin"]["reused"] for speed in first[name]["speeds"] + second[name]["speeds"]][:1] != [True]
        assert all(task["origin"]["reused"] for task in second[name]["tasks"])
        assert second[name]["tasks"][0]["answers"] == first[name]["tasks"][0]["answers"]
        assert second[name]["load_time_s"] == first[name]["load_time_s"]
        assert second[name]["weights"] == first[name]["weights"]
    result = room.runpytest("--quant-budget", "small.yaml", "--quant-cache", "kept")
    result.stdout.fnmatch_lines(["fp32: all reused, measured 20*Z*", "bf16: all reused, measured 20*Z*"])


@pytest.mark.slow
def test_refresh_measures_again_and_no_cache_keeps_nothing(room: pytest.Pytester) -> None:
    assert run(room) == ["fp32", "bf16"]
    assert run(room, "--quant-refresh") == ["fp32", "bf16"]
    assert not measurements()["fp32"]["loaded"]["reused"]
    assert run(room) == []
    Path("started.txt").write_text("")
    for _ in range(2):
        room.runpytest("--quant-budget", "small.yaml", "--quant-no-cache").assert_outcomes(passed=7)
    assert Path("started.txt").read_text().split() == ["fp32", "bf16"] * 2
    room.runpytest("--quant-budget", "small.yaml", "--quant-no-cache", "--quant-refresh").stderr.fnmatch_lines(
        ["ERROR: --quant-refresh is about what is kept, and --quant-no-cache keeps nothing; use one of them"]
    )


def test_a_cache_at_a_url_is_shared(room: pytest.Pytester) -> None:
    url = f"file://{room.path}/shared"
    assert run(room, "--quant-cache", url) == ["fp32", "bf16"]
    assert run(room, "--quant-cache", url) == []
    result = room.runpytest("--quant-budget", "small.yaml", "--quant-cache", "s4://bucket")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-cache s4://bucket: *s4*"])


@pytest.mark.slow
def test_only_what_is_new_in_a_budget_is_measured(room: pytest.Pytester) -> None:
    run(room)
    budget = Path("small.yaml")
    text = budget.read_text()
    budget.write_text(text.replace("max_weights: 3 MiB", "max_weights: 4 MiB"))
    assert run(room) == [], "limits are no part of a measurement"
    budget.write_text(text.replace("questions: 12", "questions: 13"))
    assert run(room) == ["fp32", "bf16"]
    assert [speed["origin"]["reused"] for speed in measurements()["fp32"]["speeds"]] == [True]
    assert not measurements()["fp32"]["tasks"][0]["origin"]["reused"]


@pytest.mark.parametrize(
    "hours", [-13, pytest.param(1, marks=pytest.mark.slow)], ids=["too old", "from a clock that jumped back"]
)
def test_timings_are_taken_again_after_a_while_and_answers_are_not(room: pytest.Pytester, hours: int) -> None:
    run(room)
    made = store.now() + datetime.timedelta(hours=hours)
    assert rewrite_entries("*.entry", made=made) == 10
    assert run(room) == ["fp32"], "no limit on bf16 is a timing"
    fp32, bf16 = measurements().values()
    assert [speed["origin"]["reused"] for speed in fp32["speeds"]] == [False]
    assert not fp32["loaded"]["reused"]
    assert fp32["tasks"][0]["origin"] == {"at": made.strftime(units.ISO), "reused": True}
    assert bf16["loaded"]["reused"]
    Path("small.yaml").write_text(Path("small.yaml").read_text() + "max_age: 1 s\n")
    time.sleep(2.1)
    assert run(room) == ["fp32"]


def test_a_damaged_or_senseless_entry_is_set_aside_and_decides_nothing(room: pytest.Pytester) -> None:
    run(room)
    for task in Path("kept/results").glob("bf16-*/task-*.entry"):  # with the comparison and without it
        task.write_bytes(task.read_bytes().replace(b'"strict_correct": true', b'"strict_correct": null'))
    assert rewrite_entries("fp32-*/load-[0-9a-f]*.entry", payload={"weights": "3 GiB"}) == 1
    assert run(room) == ["fp32", "bf16"]
    assert measurements()["bf16"]["tasks"][0]["origin"]["reused"] is False
    notes = measurements()["bf16"]["notes"]
    assert [note.partition(": ")[2] for note in notes] == ["its checksum is wrong"]
    assert "must be int, not '3 GiB'" in measurements()["fp32"]["notes"][0]
    assert len(list(Path("kept/results").rglob("*.damaged"))) == 2
    assert run(room) == []


def test_a_run_that_was_killed_goes_on_where_it_stopped(
    room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, simulated_engine: str
) -> None:
    monkeypatch.setattr(room, "runpytest", room.runpytest_subprocess)
    monkeypatch.setenv("SIMULATED_SECONDS", "0:0.005")
    Path("conftest.py").write_text(simulated_engine + COUNTING)
    budget = Path("small.yaml")
    budget.write_text(budget.read_text().replace("questions: 12", "questions: 200, batch_size: 8"))
    command = [sys.executable, "-m", "pytest", "--quant-budget", "small.yaml", "--quant-cache", "kept"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(Path("kept").rglob("bf16-*/batch-*.entry"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_the_end_of(process.pid)
    assert run(room) == ["bf16"]
    fp32, bf16 = measurements().values()
    assert fp32["loaded"]["reused"]
    assert fp32["tasks"][0]["origin"]["reused"]
    assert bf16["tasks"][0]["resumed"] >= 24
    assert bf16["tasks"][0]["resumed"] < 200
    assert not bf16["tasks"][0]["origin"]["reused"]
    assert not list(Path("kept").rglob("batch-*.entry")), "the whole task is stored"
    resumed = [answer["text"] for answer in bf16["tasks"][0]["answers"]]
    run(room, "--quant-refresh")
    assert [answer["text"] for answer in measurements()["bf16"]["tasks"][0]["answers"]] == resumed
    assert outcomes(Path("r.json")).keys() >= set(IDS)


QUANTIZING = """
model: builtin
calibration: builtin
methods:
  gptq-int4: {options: {texts: 2}, budget: {max_weights: 1 MiB}}
"""


@pytest.mark.model
def test_no_model_is_left_among_temporary_files_by_quantizing_nor_by_a_kill_while_it_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))  # short: a socket lies there
    monkeypatch.setenv("TMPDIR", str(temporary))
    Path("q.yaml").write_text(QUANTIZING)
    command = [sys.executable, "-m", "pytest", "--quant-budget", "q.yaml", "--quant-cache", "kept"]
    try:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not list(temporary.rglob("gptqmodel_*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        wait_for_the_end_of(process.pid)
        assert list(temporary.rglob("gptqmodel_*"))
        assert list(Path("kept/quantized").glob("*.making"))
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout
        # torch's own folder is every program's that imports it.
        assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
        assert not list(Path("kept").rglob("*.making"))
    finally:
        shutil.rmtree(temporary)


def wait_for_the_end_of(group: int) -> None:
    """Until no process of a group is left: the children end when they see that their run is gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("processes were left behind")
