"""A fault of one method costs its own tests and is named; most faults are rows of test_fault_table.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Request, Subject
from pytest_quantbudget.measure import bench, process
from pytest_quantbudget.measure.store import Store


def subject(method: str = "fp32", model: Path = BUILTIN_DIR) -> Subject:
    """The built-in model in a method without options."""
    return Subject(str(model), None, method, None, {}, None)


def test_a_failed_phase_leaves_the_others_their_figures(pytester: pytest.Pytester, small: Path) -> None:
    small.write_text(
        small.read_text()
        .replace("prompt_tokens: 16", "prompt_tokens: 600")
        .replace("{max_weights:", "{max_ttft: 1 s, max_weights:")
    )
    result = pytester.runpytest("--quant-budget", small.name, "-k", "fp32")
    result.assert_outcomes(passed=2, failed=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["not measured: ValueError: the workload needs 608 tokens and the model has 512 positions"]
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
    result.stdout.fnmatch_lines(["not measured: the baseline fp32: ValueError: task wordmath needs *"])


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_one_load_error_prints_its_traceback_once(
    pytester: pytest.Pytester,
    small: Path,
    simulated_engine: str,
    monkeypatch: pytest.MonkeyPatch,
    workers: tuple[str, ...],
) -> None:
    monkeypatch.setenv("SIMULATED_FAILURE", "bf16")
    pytester.makeconftest(simulated_engine)
    args = ("--quant-budget", small.name, "--quant-no-cache", "--junitxml", "j.xml")
    result = pytester.runpytest_subprocess(*args, *workers)
    result.assert_outcomes(passed=2, failed=3)
    printed = [line for line in result.outlines if line.startswith("| Traceback")]
    others = [
        line for line in result.outlines if line.startswith("what was printed last stands under small.yaml::bf16::")
    ]
    happened = [line for line in result.outlines if line.startswith("not measured: RuntimeError: no kernel image")]
    assert (len(printed), len(others), len(happened)) == (1, 2, 3)
    (under,) = {line.rpartition("::")[2] for line in others}
    result.stdout.fnmatch_lines([f"* bf16::{under} *", "| Traceback *", "| RuntimeError: no kernel image *"])


def test_a_report_that_cannot_be_written_hides_no_verdict(pytester: pytest.Pytester, measured_small: Path) -> None:
    (pytester.path / "file").write_text("")
    args = ("--quant-budget", measured_small.name, "-k", "max_weights", "--quant-report", "file/r.json")
    result = pytester.runpytest(*args)
    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines(["fp32 *1 within", "the report could not be written to file/r.json: *"])


@pytest.mark.slow
def test_where_the_fork_server_cannot_start_processes_start_afresh(
    pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("x" * 100)))  # sockets have paths of at most 107 bytes
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "-k", "max_weights")
    result.assert_outcomes(passed=2, deselected=3)


def test_a_fork_that_cannot_use_the_gpu_is_started_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[tuple[str, int | None]] = []

    def run(context: "process.Context", *args: Any, **more: Any) -> process.Outcome:
        outcome = original(context, *args, **more)
        codes.append((type(context).__name__, outcome.code if codes else 78))
        return replace(outcome, code=codes[-1][1])

    original = process.run
    monkeypatch.setattr(process, "run", run)
    measured = bench.Bench(tmp_path, tmp_path, tmp_path, Store(str(tmp_path))).measure(Request(subject()))
    assert codes == [("ForkServerContext", 78), ("SpawnContext", 0)]
    assert measured.failures == ()
