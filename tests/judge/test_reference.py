"""A published score beside a measured one, and drops against a baseline that is far from its own."""

from pathlib import Path

import pytest
from judged import answers, measured

from pytest_quantbudget.budget import update
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Failure
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.verdict import FAILED, OVER, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.metrics.reference import Reference, read_reference
from pytest_quantbudget.judge.needs import request
from pytest_quantbudget.judge.verdict import judge

BUDGET = """model: m
baseline: fp16
{}
tasks: {{gsm8k: {{questions: 1000, max_truncated: 100}}, math: {{questions: 10, file: builtin}}}}
methods:
  fp16: {{{}}}
  nf4: {{budget: {{max_gsm8k_drop: 5}}}}
"""


def load(folder: Path, file: str = "", method: str = "") -> Budget:
    path = folder / "b.yaml"
    path.write_text(BUDGET.format(file, method))
    return load_budget(path)


def judged(budget: Budget, right: int, name: str = "fp16") -> Verdict:
    """The verdict on a method's first limit, where every method has so many of 1,000 questions right."""
    result = TaskResult(budget.tasks["gsm8k"], answers((right, True), (1000 - right, False)), 1.0)
    records = {method.name: measured(budget, method.name, tasks=(result,)) for method in budget.methods}
    method = budget.method(name)
    return judge(budget, method, method.limits[0], records)


@pytest.mark.parametrize(
    "text", ["89.5 ± 2", "89.5 +- 2", "89.5 +/- 2", "89.5%±2 %", "89.50 ± 2.0 points", "{score: 89.5, within: 2}"]
)
@pytest.mark.parametrize("place", ["file", "method"])
def test_a_score_is_written_in_several_ways_on_the_file_or_the_method(tmp_path: Path, text: str, place: str) -> None:
    line = f"reference: {{gsm8k: {text if text[0] == '{' else repr(text)}}}"
    budget = load(tmp_path, **{place: line})
    (limit,) = budget.method("fp16").limits
    assert (limit.name, limit.targets[0].value, limit.targets[0].text) == ("reference_gsm8k", 89.5, "89.5 ± 2")
    assert limit.line == (3 if place == "file" else 6)
    assert Task in map(type, request(budget, budget.method("fp16"), [limit]).parts)
    assert len(budget.method("nf4").limits) == 1


def test_a_methods_own_score_holds_before_the_files(tmp_path: Path) -> None:
    budget = load(tmp_path, "reference: {gsm8k: 80 ± 1, math: 50 ± 5}", "reference: {gsm8k: 90 ± 2}")
    told = {limit.name: limit.targets[0].text for limit in budget.method("fp16").limits}
    assert told == {"reference_gsm8k": "90 ± 2", "reference_math": "50 ± 5"}


@pytest.mark.parametrize(
    ("file", "method", "why"),
    [
        ("reference: {gsm8k: 89.5}", "", "b.yaml:3: reference: gsm8k must be a score and how far from it one may be"),
        ("reference: {gsm8k: 120 ± 2}", "", "must be at least 0 and at most 100, not 120"),
        ("reference: {gsm8k: 89.5 ± 0}", "", "must be above 0 and below 100, not 0"),
        ("reference: {gsm8k: {score: 89.5}}", "", "takes the keys score and within"),
        ("reference: {gsm8k: {score: 89.5, within: 2, of: x}}", "", "takes the keys score and within"),
        ("reference: {gsm8k: {1: 2}}", "", "takes the keys score and within, as in {score: 89.5, within: 2}, not 1"),
        ("reference: {gsm8k: [89.5, 2]}", "", "must be a score and how far from it one may be"),
        ("reference: {gsm8k: {score: '89', within: 2}}", "", "must be a bare number, and '89' is text"),
        ("reference: {gsm: 89.5 ± 2}", "", "reference: no task 'gsm' is declared; did you mean 'gsm8k'"),
        ("reference: 89.5 ± 2", "", "reference takes a score for each task"),
        ("", "reference: {gsm8k: 90 ± 2}, budget: {reference_gsm8k: 90 ± 2}", "stands in the budget of fp16, too"),
        ("", "budget: {reference_gsm8k: auto}", "takes no `auto`; name what is allowed, as in `reference_gsm8k: 89.5"),
    ],
)
def test_a_score_that_promises_nothing_is_refused_with_its_line(
    tmp_path: Path, file: str, method: str, why: str
) -> None:
    with pytest.raises(BudgetError) as caught:
        load(tmp_path, file, method)
    assert why in str(caught.value)


def test_a_files_score_needs_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\nreference: {gsm8k: 90 ± 2}\ntasks: {gsm8k: {questions: 5}}\nmethods: {fp16: {}}\n")
    with pytest.raises(BudgetError, match=r"b\.yaml:2: reference of the file is for the baseline, and the file has no"):
        load_budget(path)


@pytest.mark.parametrize(
    ("reference", "policy", "outcome", "decision"),
    [
        # 800 of 1,000: bounds 77.8 to 82.1.
        ("80 ± 3", "estimate", WITHIN, WITHIN),
        ("80 ± 3", "fail", WITHIN, WITHIN),
        ("90 ± 2", "estimate", OVER, OVER),
        ("90 ± 2", "pass", OVER, OVER),
        ("70 ± 2", "estimate", OVER, OVER),
        ("80 ± 1", "estimate", WITHIN, UNDECIDED),
        ("80 ± 1", "fail", OVER, UNDECIDED),
        ("83 ± 2", "estimate", OVER, UNDECIDED),
        ("83 ± 2", "pass", WITHIN, UNDECIDED),
    ],
)
def test_a_score_is_judged_by_its_bounds_against_both_ends_of_the_band(
    tmp_path: Path, reference: str, policy: str, outcome: str, decision: str
) -> None:
    found = judged(load(tmp_path, f"reference: {{gsm8k: {reference}}}\nundecided: {policy}"), 800)
    assert (found.outcome, found.decision) == (outcome, decision), found.message
    assert f"fp16: reference_gsm8k measured 80.0 %, published {reference}, 95 % bounds 77.8 to 82.1" in found.message
    assert ("is it another model, or are prompt, chat template" in found.message) == (outcome == OVER)
    assert (found.measured, found.limit, found.limit_text, found.n) == (80.0, None, reference, 1000)


@pytest.mark.parametrize(("right", "told"), [(600, True), (895, False)])
def test_drops_tell_that_their_baseline_is_far_from_its_score(tmp_path: Path, right: int, told: bool) -> None:
    budget = load(tmp_path, "reference: {gsm8k: 89.5 ± 2}")
    found = judged(budget, right, "nf4")
    assert found.outcome == WITHIN
    words = "; fp16 itself has 60.0 %, and 89.5 ± 2 is published: believe no drop before that is settled"
    assert found.message.endswith(words) == told


def test_a_reference_of_another_task_says_nothing_of_a_drop(tmp_path: Path) -> None:
    assert "published" not in judged(load(tmp_path, "reference: {math: 99 ± 0.5}"), 600, "nf4").message


def test_what_was_not_measured_is_no_score(tmp_path: Path) -> None:
    budget = load(tmp_path, "reference: {gsm8k: 89.5 ± 2}")
    method = budget.method("fp16")
    record = measured(budget, "fp16", tasks=(), failures=(Failure("load", "error", "out of memory"),))
    assert judge(budget, method, method.limits[0], {"fp16": record}).outcome == FAILED


def test_no_update_moves_a_published_score(tmp_path: Path) -> None:
    budget = load(tmp_path, "reference: {gsm8k: 70 ± 2}")
    found = judged(budget, 800)
    limit = LimitReport("b.yaml::fp16::reference_gsm8k", "reference_gsm8k", 3, found)
    result = TaskResult(budget.tasks["gsm8k"], answers((800, True), (200, False)), 1.0)
    records = {"fp16": measured(budget, "fp16", tasks=(result,))}
    assert [update._propose(budget, limit, records, {}, mode, 0.01) for mode in update.MODES] == [None] * 3


def test_a_band_is_read_back_from_its_text() -> None:
    for odd in (Reference(89.123456, 0.0001), Reference(100.0, 0.5), Reference(0.0, 99.0)):
        assert read_reference(odd.text) == odd
    found = Reference(89.5, 0.25)
    assert (found.band.low, found.band.high) == (89.25, 89.75)
