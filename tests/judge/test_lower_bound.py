"""What is said of a divergence that is a lower bound."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import measured

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Divergence
from pytest_quantbudget.judge.verdict import judge

BUDGET = """model: m
baseline: fp16
tasks: {gsm8k: {questions: 1000, divergence: true}}
methods:
  fp16: {}
  nf4: {budget: {max_kl: 0.05}}
"""


@pytest.mark.parametrize(
    ("top", "words"),
    [
        (0, "1,000 tokens, at most 0.5"),
        (
            20,
            "1,000 tokens, at most 0.5; a lower bound, from the likeliest 20 tokens: the baseline's others held "
            "0.12 % on average, 4.5 % at most",
        ),
    ],
)
def test_a_lower_bound_is_called_one_with_the_mass_of_the_rest(tmp_path: Path, top: int, words: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(BUDGET)
    budget = load_budget(path)
    method = budget.method("nf4")
    each = (0.01, 0.03) * 50
    rest = (0.0012, 0.045) if top else (0.0, 0.0)
    found = Divergence(1000, 990, 0.002, 0.5, 0.2, "fp16-f", (10,) * 100, (10,) * 100, each, top, *rest)
    base = measured(budget)
    own = replace(base, tasks=(replace(base.tasks[0], divergence=found),))
    verdict = judge(budget, method, method.limits[0], {"nf4": own, "fp16": base})
    assert words in verdict.message
    assert ("lower bound" in verdict.message) == bool(top)


def test_a_mass_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Divergence(10, 9, 0.1, 0.1, 0.1, max_rest=1.5)
