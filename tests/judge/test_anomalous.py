"""A method that is better than its baseline beyond noise passes, and is called anomalous."""

import numpy as np
import pytest
from judged import Load, answers, measured

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.verdict import OVER, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.intervals import Paired
from pytest_quantbudget.judge.noise import Noise, TaskNoise
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.report import table
from pytest_quantbudget.report.document import BudgetReport, MethodReport


def judged(budget: Budget, b: int, c: int, noise: Noise | None = None) -> Verdict:
    """The verdict where nf4 lost `b` and won `c` of 1,000 questions of which fp16 has 800 right."""
    task = budget.tasks["gsm8k"]
    base = answers((800, True), (200, False))
    own = answers((800 - b, True), (b, False), (c, True), (200 - c, False))
    records = {
        name: measured(budget, name, tasks=(TaskResult(task, each, 1.0),))
        for name, each in (("fp16", base), ("nf4", own))
    }
    method = budget.method("nf4")
    return judge(budget, method, method.limits[0], records, noise)


@pytest.mark.parametrize("limit", ["max_gsm8k_drop: 2", "min_gsm8k_recovery: 98"])
@pytest.mark.parametrize(
    ("b", "c", "anomalous"), [(10, 40, True), (0, 10, True), (10, 20, False), (40, 10, False), (0, 0, False)]
)
def test_a_gain_beyond_chance_is_anomalous(load: Load, limit: str, b: int, c: int, anomalous: bool) -> None:
    found = judged(load(limit), b, c)
    assert found.anomalous == anomalous
    words = f"; anomalous: {(c - b) / 10:.1f} points better than fp16 beyond noise (p "
    assert (words in found.message) == anomalous
    assert found.outcome == (OVER if b > c else WITHIN)


@pytest.mark.parametrize("limit", ["max_gsm8k_flips: 10", "min_gsm8k: 50"])
def test_other_limits_say_nothing_of_it(load: Load, limit: str) -> None:
    assert not judged(load(limit), 10, 40).anomalous


def test_a_gain_as_large_as_repeat_runs_differ_is_not(load: Load) -> None:
    budget = load("max_gsm8k_drop: 2")
    for apart, anomalous in ((20, True), (31, False)):
        noise = Noise("fp16", 1, tasks=(TaskNoise("gsm8k", 1000, (apart,), (0,)),))
        assert judged(budget, 10, 40, noise).anomalous == anomalous


def test_by_chance_it_is_said_once_in_a_hundred() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(500, [0.04, 0.04, 0.92], 4000)
    share = np.mean([Paired(500, int(b), int(c)).p_gain() <= 0.01 for b, c, _ in draws])
    assert 0.004 < share < 0.016


def test_table_and_report_tell_it(load: Load) -> None:
    budget = load("max_gsm8k_drop: 2")
    found = judged(budget, 10, 40)
    assert codec.from_builtins(Verdict, codec.to_builtins(found)) == found
    assert not codec.from_builtins(Verdict, {"outcome": "within", "message": ""}).anomalous
    limit = LimitReport("b.yaml::nf4::max_gsm8k_drop", "max_gsm8k_drop", 1, found)
    method = MethodReport("nf4", measured(budget, "nf4"), (limit,))
    report = BudgetReport("b.yaml", "m", None, "fp16", budget.workload, "", (), (method,))
    lines = [line.text for line in table._table(report, 200)]
    assert any("1 within (1 anomalous)" in line for line in lines)
    assert found.message in lines
