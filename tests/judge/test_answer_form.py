"""Limits on the form of answers: how long they are, and in how many nothing was found."""

from dataclasses import replace

import numpy as np
import pytest
from judged import Load, answers, measured, verdict

from pytest_quantbudget.core.answers import INVALID, Answer, TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.request import Request, Rule, Subject
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.judge import intervals, sequential


def told(budget: Budget, sizes: list[int], absent: int = 0, cut_off: int = 0, **more: object) -> TaskResult:
    """Answers of so many tokens each, the first of them absent, and the last of them truncated."""
    n = len(sizes)
    each = tuple(
        Answer(i, "", INVALID if i < absent else "1", "1", i >= absent, True, i >= n - cut_off, size)
        for i, size in enumerate(sizes)
    )
    return TaskResult(budget.tasks["gsm8k"], each, 1.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "outcome", "decision"), [("2 %", WITHIN, WITHIN), ("0.5", OVER, OVER), ("1.1", WITHIN, UNDECIDED)]
)
def test_absent_answers_are_a_share_with_exact_bounds(load: Load, limit: str, outcome: str, decision: str) -> None:
    budget = load(f"max_gsm8k_absent: {limit}")
    found = verdict(budget, measured(budget, "nf4", tasks=(told(budget, [5] * 1000, absent=10, cut_off=3),)))
    assert (found.outcome, found.decision) == (outcome, decision)
    assert "measured 1.0" in found.message
    assert "(in 10 of 1,000 answers nothing was found by `strict`, 0 truncated)" in found.message
    exact = intervals.proportion_interval(10, 1000, 0.95)
    assert (found.low, found.high) == (exact.low, exact.high)


def test_what_the_harness_reads_nothing_out_of_is_never_absent(load: Load) -> None:
    budget = load("max_gsm8k_absent: 2")
    task = replace(budget.tasks["gsm8k"], harness="arc_easy")
    budget = replace(budget, tasks={"gsm8k": task})
    for metric, outcome in (("acc,none", SKIPPED), ("exact_match,strict-match", WITHIN)):
        result = replace(told(budget, [0] * 1000), task=task, metric=metric)
        assert verdict(budget, measured(budget, "nf4", tasks=(result,))).outcome == outcome


@pytest.mark.parametrize(
    ("limit", "outcome", "decision"), [("1.3", WITHIN, WITHIN), ("1.1", OVER, OVER), ("1.2", WITHIN, UNDECIDED)]
)
def test_answers_that_got_longer_are_told_by_pairs(load: Load, limit: str, outcome: str, decision: str) -> None:
    budget = load(f"max_gsm8k_tokens_ratio: {limit}")
    # Lengths differ tenfold between questions, and little between the models.
    base = [20 + 10 * (i % 20) for i in range(200)]
    own = [round(1.2 * size) + (i % 7) - 3 for i, size in enumerate(base)]
    records = [measured(budget, name, tasks=(told(budget, s),)) for name, s in (("nf4", own), ("fp16", base))]
    found = verdict(budget, *records)
    assert (found.outcome, found.decision) == (outcome, decision)
    assert f"{np.mean(own):.0f} tokens an answer against fp16's {np.mean(base):.0f}" in found.message
    assert (found.n, found.of) == (200, "questions")


def test_truncated_answers_are_told(load: Load) -> None:
    budget = load("max_gsm8k_tokens_ratio: 2")
    own, base = told(budget, [5] * 98 + [256] * 2, cut_off=2), told(budget, [5] * 99 + [256], cut_off=1)
    found = verdict(budget, *(measured(budget, n, tasks=(r,)) for n, r in (("nf4", own), ("fp16", base))))
    assert "; truncated answers, 2 of nf4 and 1 of fp16, count as 256 tokens" in found.message


@pytest.mark.parametrize(
    ("tokenizer", "outcome", "why"),
    [
        ("other", FAILED, "fp16 has answered with another tokenizer: its tokens are others"),
        (None, WITHIN, "measured 1.00"),
    ],
)
def test_lengths_in_other_tokens_are_not_compared(load: Load, tokenizer: str | None, outcome: str, why: str) -> None:
    budget = load("max_gsm8k_tokens_ratio: 1.5")
    own, base = told(budget, [5] * 100, tokenizer="00ff"), told(budget, [5] * 100, tokenizer=tokenizer)
    found = verdict(budget, *(measured(budget, n, tasks=(r,)) for n, r in (("nf4", own), ("fp16", base))))
    assert found.outcome == outcome
    assert why in found.message


def test_lengths_of_answers_that_the_harness_asked_for_are_not_known(load: Load) -> None:
    budget = load("max_gsm8k_tokens_ratio: 1.5")
    task = replace(budget.tasks["gsm8k"], harness="gsm8k")
    budget = replace(budget, tasks={"gsm8k": task})
    result = replace(told(budget, [0] * 100), task=task)
    found = verdict(budget, *(measured(budget, name, tasks=(result,)) for name in ("nf4", "fp16")))
    assert found.outcome == SKIPPED
    assert "lm-evaluation-harness does not tell how many tokens an answer has" in found.message


def test_bounds_of_a_ratio_of_lengths_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        base = np.maximum(1, rng.lognormal(4.5, 0.6, 100)).round()
        own = np.maximum(1, base * rng.lognormal(0.0, 0.3, 100)).round()
        bounds = intervals.clustered_ratio(own.astype(int).tolist(), base.astype(int).tolist(), 0.95)
        true = np.exp(0.3**2 / 2)
        held.append((bounds.low <= true, bounds.high >= true))
    low, high = (sum(side) / len(held) for side in zip(*held, strict=True))
    # Of two samples that forget the pairs, bounds are three times as wide and hold always.
    assert 0.917 < low < 0.985
    assert 0.917 < high < 0.985


def test_where_all_answers_are_as_long_the_bounds_do_not_collapse() -> None:
    few, many = (intervals.clustered_ratio([33] * n, [33] * n, 0.95) for n in (50, 500))
    assert few.low < many.low < 1 < many.high < few.high
    assert few.high < 1.05


def test_a_ratio_of_one_answer_or_of_nothing_has_no_bounds() -> None:
    for own, base in (([5], [5]), ([0, 0], [5, 5]), ([5, 5], [0, 0])):
        assert intervals.clustered_ratio(own, base, 0.95) == intervals.Interval(0.0, float("inf"))


def test_a_growing_task_ends_once_the_form_of_its_answers_is_decided(load: Load) -> None:
    budget = load("max_vram: 7 GiB")
    task = replace(budget.tasks["gsm8k"], start=50)
    budget = replace(budget, tasks={"gsm8k": task})
    request = Request(Subject("m", None, "nf4", None, {}, None), (task,))
    own, base = (replace(told(budget, [size] * 50 + [60] * 50), planned=1000) for size in (65, 60))
    for relation, value, why in (
        ("absent", 20.0, "its limit was decided"),
        ("absent", 0.1, ""),
        ("tokens", 1.5, "its limit was decided"),
        ("tokens", 1.04, ""),
    ):
        rules = (Rule("gsm8k", relation, "max", ("*",), (value,), 0.95),)
        assert sequential.stopped(replace(request, rules=rules), "cpu", own, base) == why, (relation, value)
    rules = (Rule("gsm8k", "tokens", "max", ("*",), (1.5,), 0.95),)
    assert sequential.stopped(replace(request, rules=rules), "cpu", own, None) == ""


def test_answers_without_a_match_count_whatever_the_extraction(load: Load) -> None:
    budget = load("max_gsm8k_absent: 50")
    result = TaskResult(budget.tasks["gsm8k"], answers((579, True), (421, False)), 1.0)
    assert (result.absent, sum(result.missing)) == (421, 421)
