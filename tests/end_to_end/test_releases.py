"""Two releases: the second is measured against the report of the first, of which nothing is loaded again."""

from pathlib import Path
from typing import Any

import pytest
from builders import COUNTING

from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import BudgetReport

pytestmark = pytest.mark.model
LIMITS = "max_wordmath_drop: 60, max_wordmath_flips: 70, min_token_agreement: 50, max_answer_ppl_ratio: 2"


def budget_of(path: str) -> BudgetReport:
    return document.read(Path(path)).budgets[0]


def figures(path: str) -> dict[str, Any]:
    return {limit.name: limit.verdict.measured for m in budget_of(path).methods for limit in m.limits}


def test_a_release_is_measured_against_the_report_of_the_last(pytester: pytest.Pytester, measured_small: Path) -> None:
    text = measured_small.read_text().replace("max_wordmath_drop: 60, max_wordmath_flips: 70", LIMITS)
    measured_small.write_text(text)
    first = pytester.runpytest("--quant-budget", measured_small.name, "--quant-report", "v1.json")
    first.assert_outcomes(passed=7)
    answers = budget_of("v1.json").methods[0].measurement
    assert answers is not None
    assert all(answer.ids and answer.prompt for answer in answers.tasks[0].answers)

    head, _, methods = measured_small.read_text().partition("methods:")
    head = head.replace("baseline: fp32", "use: production\nbaseline: {report: v1.json, method: fp32}")
    bf16 = methods[methods.index("  bf16:") :]
    text = f"{head}methods:\n{bf16}".replace("max_wordmath_drop", "max_kl: 1, max_wordmath_drop")
    (pytester.path / "next.yaml").write_text(text.replace("max_new_tokens: 96", "max_new_tokens: 96, divergence: true"))
    pytester.makeconftest(COUNTING)
    options = ("--quant-budget", "next.yaml", "--quant-report")
    # Measured anew, with the tokens of the report as drafts; a worker does the same.
    again = pytester.runpytest_subprocess(*options, "v2.json", "--quant-no-cache", "-n", "2")
    again.assert_outcomes(passed=5, skipped=2)
    assert Path("started.txt").read_text().split() == ["bf16"]
    kept = dict(figures("v1.json"), max_kl=None)
    new = figures("v2.json")
    assert {name: pytest.approx(kept[name]) for name in new} == new
    again.stdout.fnmatch_lines(
        [
            "fp32 of v1.json *",
            "bf16 *",
            "*fp32 of v1.json has no logits, which no report holds*",
            "on cpu, *against fp32 of v1.json, measured 20*",
            "skipped: use: production: *bf16 is unknown (max_kl skipped*",
        ]
    )
    # The figures that the first run has kept were compared with the same answers.
    known = pytester.runpytest(*options, "v3.json", "-k", "bf16 and not max_kl")
    known.assert_outcomes(passed=5, deselected=2)
    assert Path("started.txt").read_text().split() == ["bf16"]
    assert figures("v3.json") == {
        name: value for name, value in figures("v1.json").items() if name in figures("v3.json")
    }
    # Judged again from the report, with the baseline's beside it.
    judged = pytester.runpytest("--quant-budget", "next.yaml", "--quant-from", "v2.json", "--quant-report", "v4.json")
    judged.assert_outcomes(passed=5, skipped=2)
    assert figures("v4.json") == new
