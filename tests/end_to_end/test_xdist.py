"""Parallel workers: the same verdicts, each method loaded once, one report."""

import json
import textwrap
from pathlib import Path

import pytest
from builders import IDS, outcomes


@pytest.mark.parametrize(
    "dist", ["loadscope", *[pytest.param(how, marks=pytest.mark.slow) for how in ("load", "worksteal")]]
)
def test_two_workers_share_measurements(
    pytester: pytest.Pytester, small: Path, dist: str, simulated_engine: str
) -> None:
    small.write_text(small.read_text().replace("max_weights_ratio: 0.51", "max_weights_ratio: 0.49"))
    pytester.makeconftest(
        simulated_engine
        + textwrap.dedent("""
        from pytest_quantbudget.measure import process

        original = process.run

        def counted(*args, name, **more):
            with open("started.txt", "a") as file:
                file.write(name + "\\n")
            return original(*args, name=name, **more)

        process.run = counted
        """)
    )
    args = ("--quant-budget", small.name, "-n", "2", "--dist", dist, "--quant-report", "r.json", "-W", "error")
    result = pytester.runpytest_subprocess(*args)
    result.assert_outcomes(passed=4, failed=1)
    assert outcomes(Path("r.json")) == {**dict.fromkeys(IDS, "within"), IDS[2]: "over"}
    assert sorted(Path("started.txt").read_text().split()) == ["quantbudget-bf16", "quantbudget-fp32"]
    result.stdout.fnmatch_lines(["fp32 *2 within", "bf16 *2 within, 1 OVER", "report written to r.json"])


def test_limits_of_a_dead_worker_are_not_run_and_the_run_is_not_green(
    pytester: pytest.Pytester, small: Path, simulated_engine: str
) -> None:
    pytester.makeconftest(
        simulated_engine
        + textwrap.dedent("""
        import os
        import pytest

        @pytest.fixture(autouse=True)
        def die(request):
            if request.node.name == "max_wordmath_drop":
                os._exit(9)
        """)
    )
    args = ("--quant-budget", small.name, "-n", "1", "--max-worker-restart", "0", "--quant-report", "r.json")
    result = pytester.runpytest_subprocess(*args)
    assert result.ret != pytest.ExitCode.OK
    verdicts = outcomes(Path("r.json"))
    assert list(verdicts) == IDS
    assert verdicts[IDS[3]] != "within"
    assert verdicts[IDS[4]] == "not run"
    measured = {m["name"] for m in json.loads(Path("r.json").read_text())["budgets"][0]["methods"]}
    assert measured == {"fp32", "bf16"}
