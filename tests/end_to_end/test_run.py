"""The whole way: a budget in; tests, a table and a report out."""

import json
import textwrap
from pathlib import Path

import pytest
from builders import IDS, outcomes


def test_every_line_of_a_budget_is_a_test(pytester: pytest.Pytester, small: Path) -> None:
    result = pytester.runpytest("-W", "error", "--quant-budget", small.name, "--quant-report", "out/r.json", "-v")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines([f"{id_} PASSED*" for id_ in IDS])
    result.stdout.fnmatch_lines(["fp32 * 2.19 MiB  1.00x *2 within", "bf16 * 1.10 MiB  0.50x *3 within", "on cpu, *"])
    assert outcomes(Path("out/r.json")) == dict.fromkeys(IDS, "within")


def test_a_limit_past_the_measured_value_fails_alone_and_says_by_how_much(
    pytester: pytest.Pytester, measured_small: Path
) -> None:
    measured_small.write_text(measured_small.read_text().replace("max_weights_ratio: 0.51", "max_weights_ratio: 0.49"))
    result = pytester.runpytest("-W", "error", "--quant-budget", measured_small.name, "--quant-report", "r.json")
    result.assert_outcomes(passed=4, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*bf16::max_weights_ratio*",
            "measured 0.5*, limit 0.49 (1.10 MiB against fp32's 2.19 MiB)",
            "",
            "small.yaml:12: this line",
            "    budget: {max_weights_ratio: 0.49, *",
            "             ^^^^^^^^^^^^^^^^^^^^^^^",
            "bf16 * 2 within, 1 OVER",
            "over: bf16 max_weights_ratio",
            "FAILED small.yaml::bf16::max_weights_ratio - measured 0.5*",
        ]
    )
    assert outcomes(Path("r.json")) == {**dict.fromkeys(IDS, "within"), IDS[2]: "over"}


def test_only_what_is_selected_is_measured(pytester: pytest.Pytester, small: Path) -> None:
    result = pytester.runpytest("--quant-budget", small.name, "-k", "max_weights", "--quant-report", "r.json")
    result.assert_outcomes(passed=2, deselected=3)
    methods = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    assert [(m["measurement"]["speeds"], m["measurement"]["tasks"]) for m in methods] == [([], []), ([], [])]


def test_the_pytest_process_never_imports_torch(pytester: pytest.Pytester, small: Path, simulated_engine: str) -> None:
    pytester.makeconftest(
        simulated_engine
        + textwrap.dedent("""
        import sys

        def pytest_unconfigure(config):
            heavy = {"torch", "transformers", "numpy", "bitsandbytes", "gptqmodel", "datasets"} & set(sys.modules)
            print("HEAVY", sorted(heavy))
        """)
    )
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "-W", "error")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["HEAVY []"])


@pytest.mark.slow
def test_each_subject_is_loaded_once_even_for_two_files(pytester: pytest.Pytester, small: Path) -> None:
    other = small.with_name("other.yaml")
    other.write_text("extends: small.yaml\nmethods: {bf16: {budget: {min_speedup: 0.0001}}}\n")
    pytester.makeconftest(
        """
        from pytest_quantbudget.measure import process

        started = []
        original = process.run

        def counted(*args, name, **more):
            started.append(name)
            return original(*args, name=name, **more)

        process.run = counted

        def pytest_unconfigure(config):
            process.run = original
            print("STARTED", sorted(started))
        """
    )
    result = pytester.runpytest("--quant-budget", small.name, "--quant-budget", other.name)
    result.assert_outcomes(passed=11)
    result.stdout.fnmatch_lines(["STARTED ['quantbudget-bf16', 'quantbudget-fp32']"])
