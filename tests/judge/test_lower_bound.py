"""What is said of a divergence that is a lower bound."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import measured

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Divergence
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.judge.margin import NoMargin, calibrated
from pytest_quantbudget.judge.verdict import judge

BUDGET = """model: m
baseline: fp16
tasks: {gsm8k: {questions: 1000, divergence: true}}
methods:
  fp16: {}
  nf4: {budget: {max_kl: 0.05}}
"""


def bound(path: Path, text: str, top: int = 20) -> tuple[Budget, dict[str, Measurement]]:
    """A budget, and what was measured for it, of all tokens or of the likeliest alone."""
    (path / "b.yaml").write_text(text)
    budget = load_budget(path / "b.yaml")
    rest = (0.0012, 0.045) if top else (0.0, 0.0)
    each = (0.01, 0.03) * 50
    found = Divergence(1000, 990, 0.002, 0.5, 0.2, "fp16-f", (10,) * 100, (10,) * 100, each, top, *rest)
    base = measured(budget)
    own = replace(base, tasks=(replace(base.tasks[0], divergence=found),))
    return budget, {"nf4": own, "fp16": base}


def verdict(path: Path, text: str, top: int = 20) -> Verdict:
    budget, records = bound(path, text, top)
    method = budget.method("nf4")
    return judge(budget, method, method.limits[0], records)


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
    told = verdict(tmp_path, BUDGET, top)
    assert words in told.message
    assert ("lower bound" in told.message) == bool(top)
    assert (told.outcome, told.decision) == ("within", "undecided" if top else "within")
    assert (told.high is None) == bool(top)
    settled = "the estimate decides; the probabilities of all tokens would settle it"
    assert (settled in told.message) == bool(top)


@pytest.mark.parametrize(
    ("limit", "undecided", "outcome", "decision"),
    [("0.05", "fail", "over", "undecided"), ("0.05", "pass", "within", "undecided"), ("0.001", "pass", "over", "over")],
)
def test_a_lower_bound_may_be_over_and_is_never_certainly_within(
    tmp_path: Path, limit: str, undecided: str, outcome: str, decision: str
) -> None:
    told = verdict(tmp_path, f"undecided: {undecided}\n{BUDGET.replace('0.05', limit)}")
    assert (told.outcome, told.decision) == (outcome, decision)


def test_no_limit_is_written_that_a_lower_bound_fails(tmp_path: Path) -> None:
    for undecided, refused in (("estimate", False), ("fail", True)):
        budget, records = bound(tmp_path, f"undecided: {undecided}\n{BUDGET.replace('0.05', 'auto')}")
        (limit,) = budget.method("nf4").limits
        if not refused:
            assert calibrated(budget, "nf4", limit, "", records).value > 0.002
            continue
        with pytest.raises(NoMargin, match="it takes the probabilities of all tokens to bound it, and `undecided: fai"):
            calibrated(budget, "nf4", limit, "", records)


def test_a_mass_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Divergence(10, 9, 0.1, 0.1, 0.1, max_rest=1.5)
