"""How much of the baseline's score a method keeps: bounds of the ratio of two proportions on the same questions."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import Load, answers, measured, verdict

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.request import Request, Rule, Subject, Task
from pytest_quantbudget.core.verdict import FAILED, OVER, UNDECIDED, WITHIN
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.judge.recovery import Recovered

quick = settings(max_examples=60, deadline=None, derandomize=True)
counts = st.integers(0, 400)


def likeliest(found: Recovered, ratio: float) -> tuple[float, float]:
    """Lost and won questions by maximizing the likelihood with scipy, over the won share that is free."""
    right = found.both + found.b + found.c

    def surprise(won: float) -> float:
        lost = 1 - ratio + ratio * won
        shares = (1 - lost - won, lost, won)
        told = (found.both, found.b, found.c)
        return -sum(count * math.log(max(share, 1e-300)) for count, share in zip(told, shares, strict=True) if count)

    low, high = max(0.0, 1 - 1 / ratio), ratio / (1 + ratio)
    best = scipy.optimize.minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return right * (1 - ratio + ratio * best.x), right * best.x


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.99, 1.0, 1.02, 1.3, 3.0])
@pytest.mark.parametrize("found", [Recovered(90, 8, 3), Recovered(70, 2, 9), Recovered(5, 4, 0), Recovered(40, 1, 30)])
def test_the_rates_of_a_supposed_ratio_are_its_likeliest(found: Recovered, ratio: float) -> None:
    assert found._likeliest(ratio) == pytest.approx(likeliest(found, ratio), abs=2e-4)
    lost, won = likeliest(found, ratio)
    error = math.sqrt(ratio * (lost + won))
    assert found.score(ratio) == pytest.approx(
        (found.both + found.c - ratio * (found.both + found.b)) / error, rel=1e-3
    )


def test_at_a_ratio_of_one_the_score_is_mcnemars() -> None:
    assert Recovered(80, 9, 3).score(1.0) == pytest.approx(-6 / math.sqrt(12))


@quick
@given(counts, counts, counts)
def test_bounds_enclose_the_ratio_never_collapse_and_turn_round_with_the_models(both: int, b: int, c: int) -> None:
    found = Recovered(both, b, c)
    bounds = found.interval(0.95)
    if not both + b:
        assert (bounds.low, bounds.high) == (0.0, math.inf)
        return
    assert 0 <= bounds.low <= 100 * found.ratio * (1 + 1e-9)
    assert 100 * found.ratio <= bounds.high * (1 + 1e-9)
    assert bounds.low < bounds.high
    if both + c:
        other = Recovered(both, c, b).interval(0.95)
        assert 10_000 / other.high == pytest.approx(bounds.low, rel=1e-6, abs=1e-6)


def test_where_nothing_flips_more_questions_tell_more() -> None:
    few, many = Recovered(50, 0, 0).interval(0.95), Recovered(500, 0, 0).interval(0.95)
    # By hand: (1 - r) / r = z^2 / n.
    assert few.low == pytest.approx(100 / (1 + 1.6448536**2 / 50))
    assert few.low < many.low < 100 < many.high < few.high


@pytest.mark.parametrize(("score", "kept", "flips"), [(0.9, 0.97, 0.05), (0.5, 0.9, 0.1), (0.8, 1.0, 0.02)])
def test_each_bound_holds_as_often_as_it_says(score: float, kept: float, flips: float) -> None:
    lost = score * (1 - kept) + flips / 2
    won = lost - score * (1 - kept)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(300, [score - lost, lost, won, 1 - score - won], 400)
    found = [Recovered(int(both), int(b), int(c)).interval(0.95) for both, b, c, _ in draws]
    held = [(bounds.low <= 100 * kept, bounds.high >= 100 * kept) for bounds in found]
    low, high = (sum(side) / len(found) for side in zip(*held, strict=True))
    # Three standard errors of 400 draws: bounds that ignore the pairing, or are two-sided, hold in 99 % and more.
    assert 0.917 < low < 0.983
    assert 0.917 < high < 0.983


def test_questions_in_clusters_tell_less() -> None:
    before = [True] * 100
    after = [n >= 10 for n in range(100)]
    alone = sequential.bounds("recovery", before, after, 0.95)
    alike = sequential.bounds("recovery", before, after, 0.95, [str(n // 10) for n in range(100)])
    assert alike.low < alone.low < 90 < alone.high < alike.high
    four = sequential.bounds("recovery", before, after, 0.95, times=4.0)
    assert alone.low < four.low < 90 < four.high < alone.high


@pytest.mark.parametrize(
    ("limit", "outcome", "decision", "words"),
    [
        (
            "90 %",
            WITHIN,
            WITHIN,
            "measured 95.0 %, limit 90.0 %, 95 % bounds 91.0 to 98.6 (190 right against fp16's 200",
        ),
        ("99", OVER, OVER, "measured 95.0 %, limit 99.0 %"),
        ("96", OVER, UNDECIDED, "undecided: the limit is 1.0 % from the estimate, and the estimate decides; about "),
    ],
)
def test_a_limit_on_recovery_is_judged(load: Load, limit: str, outcome: str, decision: str, words: str) -> None:
    budget = load(f"min_gsm8k_recovery: {limit}")
    task = budget.tasks["gsm8k"]
    base = measured(budget, "fp16", tasks=(TaskResult(task, answers((200, True), (50, False)), 1.0),))
    told = answers((185, True), (15, False), (5, True), (45, False))
    found = verdict(budget, measured(budget, "nf4", tasks=(TaskResult(task, told, 1.0),)), base)
    assert (found.outcome, found.decision) == (outcome, decision)
    assert words in found.message
    assert found.p_over is None


def test_a_baseline_that_gets_nothing_right_leaves_nothing_to_recover(load: Load) -> None:
    budget = load("min_gsm8k_recovery: 90")
    task = budget.tasks["gsm8k"]
    wrong = (TaskResult(task, answers((50, False)), 1.0),)
    found = verdict(budget, measured(budget, "nf4", tasks=wrong), measured(budget, "fp16", tasks=wrong))
    assert found.outcome == FAILED
    assert "fp16 answers none of 50 questions right: there is nothing to recover" in found.message


def test_a_growing_task_ends_once_recovery_is_decided(load: Load) -> None:
    task = Task("math", None, 0, 0, "/q", 64, 8, "strict", start=50, max_truncated=100.0)
    request = Request(Subject("m", None, "nf4", None, {}, None), (task,))
    rule = Rule("math", "recovery", "min", ("*",), (80.0,), 0.95)

    def told(*outcomes: tuple[int, bool]) -> TaskResult:
        return TaskResult(task, answers(*outcomes), 1.0, planned=1000)

    base = told((80, True), (20, False))
    same, lost = base, told((40, True), (60, False))
    near = told((64, True), (36, False))
    asked = replace(request, rules=(rule,))
    ends = [sequential.stopped(asked, "cpu", each, base) for each in (same, lost, near)]
    assert ends == ["its limit was decided", "its limit was decided", ""]
    other = replace(request, rules=(replace(rule, relation="of another package"),))
    assert sequential.stopped(other, "cpu", same, base) == ""


def test_every_count_of_a_few_questions_has_bounds() -> None:
    for both, b, c in itertools.product(range(4), repeat=3):
        bounds = Recovered(both, b, c).interval(0.999)
        assert bounds.low <= 100 * Recovered(both, b, c).ratio
