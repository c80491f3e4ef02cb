"""The verdict on a change, in its words: over, undecided, within, and skipped where nothing can be compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from judged import CPU, H100, measured

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.history import MethodRun
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.judge import series
from pytest_quantbudget.judge.changed import judge_change

TEXT = """model: m
baseline: fp16
workload: {{new_tokens: 101, repeats: 3}}
tasks: {{gsm8k: {{questions: 1000, max_truncated: 100}}}}
methods:
  fp16: {{}}
  nf4:
    budget:
      max_change: {{{}}}
"""
Read = Callable[[str], Budget]
STEADY = (100.0, 101.0, 99.5, 100.5, 99.0, 100.2)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(changes: str) -> Budget:
        (tmp_path / "b.yaml").write_text(TEXT.format(changes))
        return load_budget(tmp_path / "b.yaml")

    return read


def with_speed(budget: Budget, tokens_per_s: float, **more: object) -> Measurement:
    record = measured(budget, "nf4")
    speed = Speed(budget.workload, (0.05,) * 3, (100 / tokens_per_s,) * 3, None, None)
    return replace(record, speeds=(speed,), **more)  # type: ignore[arg-type]


def kept(budget: Budget, record: Measurement, number: int) -> MethodRun:
    """What an earlier run has kept, of the figures that changes are limited of."""
    method = budget.method("nf4")
    kinds = [change.limit.kind for change in method.changes]
    run = series.method_run(budget, method, kinds, {"nf4": record, "fp16": measured(budget, "fp16")}, "a CPU")
    figures = {name: replace(figure, measured=f"t{number}") for name, figure in run.figures.items()}
    return replace(run, run=f"r{number}", at=f"2026-01-{number:02}T00:00:00Z", figures=figures)


def verdict(budget: Budget, past: list[MethodRun], own: Measurement) -> Verdict:
    method = budget.method("nf4")
    records = {"nf4": own, "fp16": measured(budget, "fp16")}
    return judge_change(budget, method, method.changes[0], records, past, "a CPU")


def after(budget: Budget, values: tuple[float, ...], now: float) -> Verdict:
    past = [kept(budget, with_speed(budget, value), i) for i, value in enumerate(values, 1)]
    return verdict(budget, past, with_speed(budget, now))


def test_a_regression_is_over(read: Read) -> None:
    found = after(read("tokens_per_s: -5 %"), STEADY, 80.0)
    assert (found.outcome, found.decision) == ("over", "over")
    assert found.message == (
        "nf4: max_change_tokens_per_s measured 20.2 % less, limit 5.0 %, 99 % bounds 17.9 to 22.3 "
        "(80.0 tokens/s, 100 tokens/s in the median of the last 5 runs; by the spread of 6 runs)"
    )
    assert (found.limit, found.limit_text, found.unit, found.n, found.of) == (5.0, "-5 %", "%", 6, "runs")
    assert found.measured == pytest.approx(20.16, abs=0.01)


def test_what_is_better_passes_and_says_so(read: Read) -> None:
    found = after(read("tokens_per_s: -5 %"), STEADY, 120.0)
    assert (found.outcome, found.decision) == ("within", "within")
    assert (
        "measured 19.8 % more, limit 5.0 % less, 99 % bounds 16.5 to 23.1 (120 tokens/s, 100 tokens/s" in found.message
    )


@pytest.mark.parametrize(
    ("policy", "outcome", "words"),
    [
        ("estimate", "within", "undecided: it is within the noise, and that counts as no change"),
        ("fail", "over", "undecided: it is within the noise, and `undecided: fail` counts that as over"),
        ("pass", "within", "undecided: it is within the noise, and `undecided: pass` lets that through"),
    ],
)
def test_within_the_noise_the_usual_policy_holds(read: Read, policy: str, outcome: str, words: str) -> None:
    budget = read("tokens_per_s: -5 %")
    (change,) = budget.method("nf4").changes
    judged = replace(change, limit=replace(change.limit, judging=replace(change.limit.judging, undecided=policy)))
    method = replace(budget.method("nf4"), changes=(judged,))
    budget = replace(budget, methods=(budget.methods[0], method))
    found = after(budget, (100.0, 92.0, 108.0, 97.0, 104.0), 93.0)
    assert (found.outcome, found.decision) == (outcome, "undecided")
    assert words in found.message


def test_beyond_the_noise_and_on_both_sides_of_the_limit_the_estimate_decides(read: Read) -> None:
    found = after(read("tokens_per_s: -5 %"), STEADY, 94.0)
    assert (found.outcome, found.decision) == ("over", "undecided")
    assert "; undecided: it is more than noise, and the estimate decides" in found.message
    found = after(read("tokens_per_s: -5 %"), STEADY, 96.5)
    assert (found.outcome, found.decision) == ("within", "undecided")


def test_few_runs_show_no_noise_and_are_told(read: Read) -> None:
    found = after(read("tokens_per_s: -5 %"), STEADY[:2], 80.0)
    assert (found.outcome, found.decision) == ("within", "undecided")
    assert "; undecided: 2 earlier runs show no noise, 4 do, and that counts as no change" in found.message
    assert (found.low, found.high) == (None, None)


def test_three_in_a_row_pass_until_there_are_three(read: Read) -> None:
    budget = read("tokens_per_s: -5 %, in_a_row: 3")
    first = after(budget, STEADY, 80.0)
    assert (first.outcome, first.decision) == ("within", "undecided")
    assert "; undecided: it has been so in 1 run of 3 in a row, and passes until then" in first.message
    second = after(budget, (*STEADY, 80.0), 81.0)
    assert "it has been so in 2 runs of 3 in a row" in second.message
    third = after(budget, (*STEADY, 80.0, 81.0), 79.0)
    assert third.outcome == "over"
    assert "(in the mean of 3 runs in a row, this one 79.0 tokens/s, 100 tokens/s in the median" in third.message


def test_against_the_last_run_and_since_a_day(read: Read) -> None:
    found = after(read("tokens_per_s: -5 %, against: last"), STEADY, 80.0)
    assert "(80.0 tokens/s, 100 tokens/s in the last run; by the spread of 6 runs)" in found.message
    found = after(read("tokens_per_s: -5 %, since: 2026-01-07"), STEADY, 80.0)
    assert found.outcome == "skipped"
    assert found.message == (
        "nf4: max_change_tokens_per_s has nothing to compare with: the history holds no earlier run of nf4 since "
        "2026-01-07T00:00:00Z"
    )
    # A level that was accepted is one from then on.
    level = (80.0, 81.0, 79.0, 80.5)
    assert after(read("tokens_per_s: -5 %"), (*STEADY, *level), 80.0).outcome == "over"
    assert after(read("tokens_per_s: -5 %, since: 2026-01-07"), (*STEADY, *level), 80.0).outcome == "within"


def test_a_first_run_is_skipped_in_words(read: Read) -> None:
    budget = read("tokens_per_s: -5 %")
    found = verdict(budget, [], with_speed(budget, 80.0))
    assert found.outcome == "skipped"
    assert found.message == (
        "nf4: max_change_tokens_per_s has nothing to compare with: the history holds no earlier run of nf4"
    )


def test_another_machine_is_named_and_not_compared_with(read: Read) -> None:
    budget = read("tokens_per_s: -5 %")
    other = replace(H100, name="NVIDIA L4")
    past = [kept(budget, with_speed(budget, 200.0, device=other), i) for i in (1, 2)]
    found = verdict(budget, past, with_speed(budget, 80.0))
    assert found.outcome == "skipped"
    assert found.message.endswith(
        "the history holds no comparable run: 2 runs: device was NVIDIA L4 and is NVIDIA H100 80GB HBM3"
    )
    # On a CPU, its name and threads are the machine.
    on_cpu = with_speed(budget, 80.0, device=CPU)
    past = [replace(kept(budget, on_cpu, 1), subject={**kept(budget, on_cpu, 1).subject, "threads": "64"})]
    assert "1 run: threads was 64 and is 2" in verdict(budget, past, on_cpu).message


def test_scores_are_told_by_questions(read: Read) -> None:
    budget = read("gsm8k: -1 points")
    own = measured(budget, "nf4")
    (task,) = own.tasks
    lost = tuple(
        replace(a, strict_correct=a.strict_correct and a.question >= 30, flexible_correct=False) for a in task.answers
    )
    found = verdict(budget, [kept(budget, own, 1)], replace(own, tasks=(TaskResult(task.task, lost, 60.0),)))
    assert (found.outcome, found.decision) == ("over", "over")
    assert "measured 3.0 points less, limit 1.0 points, 99 % bounds " in found.message
    assert "(54.9 %, 57.9 % in the last run; 30 newly wrong, 0 newly right of 1,000)" in found.message
    assert (found.n, found.of, found.unit) == (1000, "questions", "points")
    same = verdict(budget, [kept(budget, own, 1)], own)
    assert same.outcome == "within"


def test_what_is_missing_is_told_as_for_any_limit(read: Read) -> None:
    budget = read("tokens_per_s: -5 %")
    found = verdict(budget, [], replace(with_speed(budget, 80.0), speeds=()))
    assert found.outcome == "failed"
    assert found.message == "nf4: max_change_tokens_per_s not measured: workload gave no figure"


def test_libraries_that_are_others_since_then_are_named(read: Read) -> None:
    budget = read("tokens_per_s: -5 %")
    past = [
        kept(budget, with_speed(budget, value, libraries={"torch": "2.12", "x": "1"}), i)
        for i, value in enumerate(STEADY, 1)
    ]
    found = verdict(budget, past, with_speed(budget, 80.0, libraries={"torch": "2.13", "x": "1"}))
    assert found.message.endswith("; since 2026-01-06T00:00:00Z, torch 2.12 is 2.13")
