"""Limits on recovery, the form of answers, energy and a published score, from a budget to the report."""

import json
from pathlib import Path

import pytest
from builders import outcomes

from pytest_quantbudget.core.verdict import OVER, SKIPPED, WITHIN

BUDGET = """model: builtin
baseline: fp32
reference: {wordmath: 50 +- 5}
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
tasks: {wordmath: {file: builtin, questions: 40}}
methods:
  fp32: {}
  bf16:
    budget:
      max_wordmath_drop: 50
      min_wordmath_recovery: 80 %
      max_wordmath_tokens_ratio: 1.5
      max_wordmath_absent: 20 %
      max_energy_per_token: 1 J
      max_quantize_time: 1 h
"""
WANTED = {
    "b.yaml::fp32::reference_wordmath": OVER,
    "b.yaml::bf16::max_wordmath_drop": WITHIN,
    "b.yaml::bf16::min_wordmath_recovery": WITHIN,
    "b.yaml::bf16::max_wordmath_tokens_ratio": WITHIN,
    "b.yaml::bf16::max_wordmath_absent": WITHIN,
    "b.yaml::bf16::max_energy_per_token": SKIPPED,
}


def test_each_is_a_test_with_its_verdict_in_the_report(pytester: pytest.Pytester, simulated_engine: str) -> None:
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(simulated_engine)
    path = pytester.path / "b.yaml"
    path.write_text(BUDGET.replace("      max_quantize_time: 1 h\n", ""))
    result = pytester.runpytest_subprocess("--quant-budget", path.name, "--quant-report", "r.json", "-W", "error")
    result.assert_outcomes(passed=4, failed=1, skipped=1)
    assert outcomes(Path("r.json")) == WANTED
    doubted = "fp32 itself has 100.0 %, and 50 ± 5 is published: believe no drop before that is settled"
    verdicts = {
        limit["name"]: limit["verdict"]
        for method in json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
        for limit in method["limits"]
    }
    assert doubted in verdicts["max_wordmath_drop"]["message"]
    assert "no GPU" in verdicts["max_energy_per_token"]["message"]
    assert verdicts["reference_wordmath"]["limit_text"] == "50 ± 5"


def test_one_test_alone_is_selected_by_its_id(pytester: pytest.Pytester, simulated_engine: str) -> None:
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(simulated_engine)
    (pytester.path / "b.yaml").write_text(
        BUDGET.replace("      max_quantize_time: 1 h\n", "").replace("50 +- 5", "99 ± 9")
    )
    result = pytester.runpytest_subprocess("b.yaml::fp32::reference_wordmath", "--quant-no-cache")
    result.assert_outcomes(passed=1)


def test_a_method_that_makes_no_checkpoint_is_refused_a_time_for_it(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\n")
    (pytester.path / "b.yaml").write_text(BUDGET)
    result = pytester.runpytest_inprocess("--quant-budget", "b.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*b.yaml:15: max_quantize_time needs a method that quantizes: bf16 stores*"])
