"""What happens to one method costs its own tests and is named."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget import bench, process
from pytest_quantbudget.measurement import Request, Subject, Task
from pytest_quantbudget.store import Store
from pytest_quantbudget.tasks.questions import BUILTIN_DIR

MANY = Task("wordmath", 2000, 0, 0, str(BUILTIN_DIR / "questions.jsonl"), 96, 4, "strict")


def group_is_alive(group: int) -> bool:
    """Whether any process of a process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def subject(method: str = "fp32", model: Path = BUILTIN_DIR) -> Subject:
    """The built-in model in a method without options."""
    return Subject(str(model), None, method, None, {}, None)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT], ids=lambda s: s.name)
def test_a_process_that_dies_is_named_and_what_it_measured_is_kept(tmp_path: Path, number: signal.Signals) -> None:
    room = bench.Bench(tmp_path, tmp_path, tmp_path, Store(str(tmp_path / "results")))
    request = Request(subject(), tasks=(MANY,))

    def strike() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if list(tmp_path.rglob("batch-*.entry")):
                (child,) = multiprocessing.active_children()
                assert child.pid is not None
                os.kill(child.pid, number)
                return
            time.sleep(0.01)

    striker = threading.Thread(target=strike)
    striker.start()
    measured = room.measure(request)
    striker.join()
    assert measured.weights is not None
    assert measured.task(MANY) is None
    failure = measured.failure(MANY.phase)
    assert failure is not None
    assert failure.kind == "error"
    assert f"was killed by {number.name}" in failure.message
    assert f"during phase '{MANY.phase}'" in failure.message
    assert room.measure(request) is measured, "a crash is tried once"
    assert not multiprocessing.active_children()


def test_broken_weights_cost_only_the_tests_that_need_them(pytester: pytest.Pytester, small: Path) -> None:
    shutil.copytree(BUILTIN_DIR, pytester.path / "cut")
    weights = pytester.path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500_000])
    cut = small.with_name("cut.yaml")
    cut.write_text(small.read_text().replace("model: builtin", "model: ./cut"))
    args = ("--quant-budget", cut.name, "--quant-budget", small.name, "--quant-report", "r.json")
    result = pytester.runpytest(*args)
    result.assert_outcomes(passed=5, failed=5)
    result.stdout.fnmatch_lines(
        [
            "fp32: max_weights not measured: ValueError: cut/model.safetensors is cut off: holds 500,000 bytes of *",
            "cut.yaml:10: this line",
        ]
    )
    failed, passed = json.loads(Path("r.json").read_text())["budgets"]
    assert [m["measurement"]["failures"][0]["phase"] for m in failed["methods"]] == ["load", "load"]
    assert [m["measurement"]["failures"] for m in passed["methods"]] == [[], []]


def test_a_failed_phase_leaves_the_others_their_figures(pytester: pytest.Pytester, small: Path) -> None:
    small.write_text(
        small.read_text()
        .replace("prompt_tokens: 16", "prompt_tokens: 600")
        .replace("{max_weights:", "{max_ttft: 1 s, max_weights:")
    )
    result = pytester.runpytest("--quant-budget", small.name, "-k", "fp32")
    result.assert_outcomes(passed=2, failed=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["fp32: max_ttft not measured: ValueError: the workload needs 608 tokens and the model has 512 positions"]
    )


def test_a_baseline_that_fails_is_named_in_what_is_compared_with_it(pytester: pytest.Pytester, small: Path) -> None:
    small.write_text(
        small.read_text()
        .replace("baseline: fp32", "baseline: fp32\ngpu: false")
        .replace(
            "file: builtin, questions: 12, max_new_tokens: 96", "file: builtin, questions: 12, max_new_tokens: 1000"
        )
    )
    result = pytester.runpytest("--quant-budget", small.name, "-k", "drop")
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines(
        ["bf16: max_wordmath_drop not measured: the baseline fp32: ValueError: task wordmath needs *"]
    )


def test_a_missing_package_skips_with_the_command_that_adds_it(pytester: pytest.Pytester, small: Path) -> None:
    small.write_text(small.read_text().replace("bf16:", "nf4:"))
    pytester.makeconftest(
        """
        import importlib.util

        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)

        def pytest_unconfigure():
            importlib.util.find_spec = real
        """
    )
    result = pytester.runpytest("--quant-budget", small.name, "-rs")
    result.assert_outcomes(passed=2, skipped=3)
    result.stdout.fnmatch_lines(["*nf4 needs bitsandbytes: pip install 'pytest-quantbudget[[]bitsandbytes[]]'*"])


@pytest.fixture
def short_temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for the fork server's socket."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def heed_interrupts() -> None:
    """A process started in the background may have been told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_the_children_and_leaves_a_report(
    pytester: pytest.Pytester, small: Path, short_temporary: Path
) -> None:
    small.write_text(small.read_text().replace("questions: 12", "questions: 2000, batch_size: 2"))
    command = [sys.executable, "-m", "pytest", "--quant-budget", small.name, "--quant-report", "r.json", "-v"]
    with Path("out.txt").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, preexec_fn=heed_interrupts)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if list(pytester.path.rglob("batch-*.entry")):
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
        deadline = time.monotonic() + 20
        while group_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)  # the fork server leaves when it sees its caller gone
        assert not group_is_alive(process.pid)
    finally:
        if group_is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert "NOT RUN: max_weights" in Path("out.txt").read_text()
    report = json.loads(Path("r.json").read_text())
    limits = [limit for m in report["budgets"][0]["methods"] for limit in m["limits"]]
    assert {limit["verdict"]["outcome"] for limit in limits} == {"not run"}
    assert not list(short_temporary.glob("quantbudget-*"))


def test_a_report_that_cannot_be_written_hides_no_verdict(pytester: pytest.Pytester, small: Path) -> None:
    (pytester.path / "file").write_text("")
    args = ("--quant-budget", small.name, "-k", "max_weights", "--quant-report", "file/r.json")
    result = pytester.runpytest(*args)
    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines(["fp32 *1 within", "the report could not be written to file/r.json: *"])


def test_where_the_fork_server_cannot_start_processes_start_afresh(
    pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("x" * 100)))  # sockets have paths of at most 107 bytes
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "-k", "max_weights")
    result.assert_outcomes(passed=2, deselected=3)


def test_a_fork_that_cannot_use_the_gpu_is_started_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[tuple[str, int | None]] = []

    def run(context: process.Context, *args: Any, **more: Any) -> process.Outcome:
        outcome = original(context, *args, **more)
        codes.append((type(context).__name__, outcome.code if codes else 78))
        return replace(outcome, code=codes[-1][1])

    original = process.run
    monkeypatch.setattr(process, "run", run)
    measured = bench.Bench(tmp_path, tmp_path, tmp_path, Store(str(tmp_path))).measure(Request(subject()))
    assert codes == [("ForkServerContext", 78), ("SpawnContext", 0)]
    assert measured.failures == ()
