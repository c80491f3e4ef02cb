"""Limits on the tail of the KL divergence: percentiles of tokens that come in answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import measured

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Divergence, Origin
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.verdict import FAILED, OVER, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge import intervals, noise
from pytest_quantbudget.judge.verdict import judge

BUDGET = """model: m
baseline: fp16
tasks: {{gsm8k: {{questions: 100, divergence: true}}}}
methods:
  fp16: {{}}
  nf4: {{budget: {{{}}}}}
"""
SPREAD = 3.0  # of the logarithms of the divergences


def diverged(tokens: list[list[int]], top: int = 0) -> Divergence:
    """What is recorded of tokens whose divergences are given in 1e-9 nats, answer by answer."""
    values = np.concatenate(tokens) * 1e-9
    return Divergence(
        len(values), len(values), float(values.mean()), float(values.max()), float(np.quantile(values, 0.99)), "fp16-f",
        tuple(map(len, tokens)), tuple(map(len, tokens)), tuple(float(sum(each)) * 1e-9 for each in tokens), top,
        0.001 if top else 0.0, 0.01 if top else 0.0, tuple(" ".join(map(str, each)) for each in tokens),
    )  # fmt: skip


def tokens(seed: int = 0, answers: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.lognormal(np.log(1e6), SPREAD, 25).round().astype(int).tolist() for _ in range(answers)]


def verdict(folder: Path, limit: str, found: Divergence) -> Verdict:
    (folder / "b.yaml").write_text(BUDGET.format(limit))
    budget = load_budget(folder / "b.yaml")
    base = measured(budget)
    own = replace(base, tasks=(replace(base.tasks[0], divergence=found),))
    method = budget.method("nf4")
    return judge(budget, method, method.limits[0], {"nf4": own, "fp16": base})


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_the_figure_is_numpys_quantile_of_the_recorded_tokens(tmp_path: Path, percentile: int) -> None:
    told = tokens()
    found = verdict(tmp_path, f"max_kl_p{percentile}: 0.5", diverged(told))
    assert found.measured == pytest.approx(float(np.quantile(np.concatenate(told) * 1e-9, percentile / 100)))
    exact = intervals.clustered_quantile_interval([[kl * 1e-9 for kl in each] for each in told], percentile / 100, 0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert (found.n, found.of) == (40, "answers")
    assert "(1,000 tokens, at most " in found.message


@pytest.mark.parametrize(("limit", "outcome", "decision"), [
    ("100", WITHIN, WITHIN), ("0.05", OVER, OVER), ("1", WITHIN, UNDECIDED),
])  # fmt: skip
def test_it_is_judged_by_its_bounds(tmp_path: Path, limit: str, outcome: str, decision: str) -> None:
    found = verdict(tmp_path, f"max_kl_p99: {limit}", diverged(tokens()))
    assert (found.outcome, found.decision) == (outcome, decision), found.message


def test_a_percentile_of_a_lower_bound_is_never_certainly_within(tmp_path: Path) -> None:
    found = verdict(tmp_path, "max_kl_p99: 1000", diverged(tokens(), top=20))
    assert (found.outcome, found.decision, found.high) == (WITHIN, UNDECIDED, None)
    assert "a lower bound, from the likeliest 20 tokens" in found.message


def test_what_an_earlier_release_has_measured_has_no_single_tokens(tmp_path: Path) -> None:
    found = verdict(tmp_path, "max_kl_p99: 1", replace(diverged(tokens()), token_kls=()))
    assert found.outcome == FAILED
    assert "its single tokens were not recorded: --quant-refresh measures it anew" in found.message


def test_a_lower_percentile_above_a_higher_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(BUDGET.format("max_kl_p90: 2, max_kl_p99: 1"))
    with pytest.raises(BudgetError, match="max_kl_p90 2 contradicts max_kl_p99 1"):
        load_budget(path)
    path.write_text(BUDGET.format("max_kl_p100: 2"))
    with pytest.raises(BudgetError, match="there is no limit 'max_kl_p100'; did you mean 'max_kl_p99'"):
        load_budget(path)
    path.write_text(BUDGET.format("max_kl_p99: 2").replace(", divergence: true", ""))
    with pytest.raises(BudgetError, match="max_kl_p99 needs `divergence: true` on a task"):
        load_budget(path)


def test_a_divergence_of_no_number_is_refused() -> None:
    for text in ("1 x", "", "-1", "1" * 16, "1  2"):
        with pytest.raises(ValueError, match="whole numbers of 1e-9 nats"):
            replace(diverged([[1, 2]]), token_kls=(text,))


def test_repeat_runs_show_the_noise_of_the_listed_percentile_alone(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(BUDGET.format("max_kl_p99: 1, max_kl_p90: 0.5"))
    budget = load_budget(tmp_path / "b.yaml")
    base = replace(measured(budget), loaded=None)
    first = replace(base, subject=budget.method("fp16").subject)
    again = replace(
        base,
        subject=replace(first.subject, again=1),
        loaded=Origin("2026-01-01T00:00:00Z"),
        tasks=(replace(base.tasks[0], divergence=replace(diverged(tokens()), against="fp16-f")),),
    )
    found = noise.of(budget, [first, again])
    assert len(found.values["kl_tail"]) == 1
    tail, lower = (limit.kind for limit in budget.method("nf4").limits)
    assert found.words(tail).startswith("repeat runs have ")
    assert (found.words(lower), found.floor(lower)) == ("", 0.0)


def test_bounds_of_the_tail_hold_for_tokens_that_are_alike_within_answers() -> None:
    rng = np.random.default_rng(0)
    held, plain = [], []
    true = float(np.exp(2.3263478740408408))
    for _ in range(300):
        logs = np.sqrt(0.2) * rng.normal(0, 1, (20, 1)) + np.sqrt(0.8) * rng.normal(0, 1, (20, 50))
        answers = np.exp(logs).tolist()
        bounds = intervals.clustered_quantile_interval(answers, 0.99, 0.95)
        held.append((bounds.low <= true, bounds.high >= true))
        ranks = intervals.quantile_interval(np.exp(logs).ravel().tolist(), 0.99, 0.95)
        plain.append((ranks.low <= true, ranks.high >= true))
    low, high = (sum(side) / len(held) for side in zip(*held, strict=True))
    # Three standard errors of 300 draws below 95 %.
    assert min(low, high) > 0.912
    assert sum(both[1] for both in plain) < sum(both[1] for both in held)
