"""The whole way once: a budget in, tests, a table and a report out."""

import json
from pathlib import Path

import pytest

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  wordmath: {file: builtin, questions: 20, max_new_tokens: 96}
methods:
  fp32:
    budget: {max_weights: 3 MiB, min_wordmath: 50}
  bf16:
    budget: {max_weights_ratio: 0.51, min_speedup: 0.001, max_wordmath_drop: 20}
"""


def test_a_budget_becomes_tests_and_a_report(pytester: pytest.Pytester) -> None:
    pytester.makefile(".yaml", b=BUDGET)
    result = pytester.runpytest("--quant-budget", "b.yaml", "--quant-report", "out/r.json", "-v")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        ["b.yaml::fp32::max_weights PASSED*", "b.yaml::bf16::min_speedup PASSED*", "bf16 * within"]
    )
    report = json.loads(Path("out/r.json").read_text())
    verdicts = [limit["verdict"]["outcome"] for m in report["budgets"][0]["methods"] for limit in m["limits"]]
    assert verdicts == ["within"] * 5
