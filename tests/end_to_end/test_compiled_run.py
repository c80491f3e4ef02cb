"""A budget whose workload is decoded by compiled steps, from the command line to the report."""

import json
from pathlib import Path
from typing import Any

import pytest

BUDGET = """
model: builtin
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2, compile: COMPILE}
methods:
  fp32: {budget: {max_weights: 3 MiB, min_tokens_per_s: 0.001, max_ttft: 60 s}}
"""


def speeds(report: str) -> list[dict[str, Any]]:
    budgets = json.loads(Path(report).read_text())["budgets"]
    return [speed for budget in budgets for method in budget["methods"] for speed in method["measurement"]["speeds"]]


def run(pytester: pytest.Pytester, *more: str) -> pytest.RunResult:
    """In a process of its own, whose fork server has the environment of now."""
    return pytester.runpytest_subprocess("--quant-report", "r.json", *more)


@pytest.mark.model
@pytest.mark.slow
def test_both_ways_are_timed_kept_apart_and_used_again(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "kept"))
    for name, value in (("eager", "false"), ("compiled", "true")):
        (pytester.path / f"{name}.yaml").write_text(BUDGET.replace("COMPILE", value))
    with monkeypatch.context() as without:
        without.setenv("CXX", "no-such-compiler")
        without.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
        result = run(pytester, "--quant-budget", "eager.yaml", "--quant-budget", "compiled.yaml")
    result.assert_outcomes(passed=4, failed=2)
    why = "NotCompiled: the workload says `compile: true`, and torch needs a C++ compiler"
    result.stdout.fnmatch_lines(
        [f"*fp32: min_tokens_per_s not measured: {why}*", f"*fp32: max_ttft not measured: {why}*"]
    )
    assert [speed["decode"] for speed in speeds("r.json") if not speed["workload"]["compile"]] == ["eager"] * 2

    result = run(pytester, "--quant-budget", "compiled.yaml", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["on cpu, * threads; decoding compiled; *"])
    (speed,) = speeds("r.json")
    assert (speed["decode"], speed["other_tokens"], speed["origin"]["reused"]) == ("compiled", "", False)
    assert speed["compile_s"] > 0
    result = run(pytester, "--quant-budget", "compiled.yaml")
    result.assert_outcomes(passed=3)
    assert speeds("r.json")[0]["origin"]["reused"]
    assert speeds("r.json")[0]["compile_s"] == speed["compile_s"]
    result = run(pytester, "--quant-budget", "eager.yaml", "--quant-from", "r.json", "--quant-report", "again.json")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*compile is false here and true in r.json*"])
