"""A history of real runs, in processes of their own: kept, compared, and judged."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantbudget.report import document, history

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  wordmath: {file: builtin, questions: 12, max_new_tokens: 96}
methods:
  fp32:
    budget: {min_wordmath: 50}
  bf16:
    budget: {min_tokens_per_s: 1, max_weights_ratio: 0.51, max_wordmath_drop: 60}
"""


@pytest.fixture
def room(pytester: pytest.Pytester, simulated_engine: str) -> pytest.Pytester:
    pytester.makeconftest(simulated_engine)
    pytester.makeini("[pytest]\n")
    (pytester.path / "b.yaml").write_text(BUDGET)
    return pytester


def run(room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, decode_s: float, *more: str) -> pytest.RunResult:
    monkeypatch.setenv("SIMULATED_DECODE", str(decode_s))
    args = ("--quant-budget", "b.yaml", "--quant-no-cache", "--quant-history", "past", "--quant-report", "r.json")
    return room.runpytest_subprocess(*args, *more)


def test_runs_are_kept_and_compared(room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(room, monkeypatch, 0.1)
    first.assert_outcomes(passed=4)
    first.stdout.fnmatch_lines(["added to the history *past"])
    assert document.read(Path("r.json")).budgets[0].changes == ()
    run(room, monkeypatch, 0.2, "-n", "2").assert_outcomes(passed=4)
    past = history.read("past")
    assert past.notes == ()
    assert [(each.budget, each.method) for each in past.runs] == [("b.yaml", "bf16"), ("b.yaml", "fp32")] * 2
    assert past.runs[0].verdicts.keys() == {"min_tokens_per_s", "max_weights_ratio", "max_wordmath_drop"}
    moved = {(each.method, each.name): each for each in document.read(Path("r.json")).budgets[0].changes}
    speed = moved["bf16", "min_tokens_per_s"]
    assert (speed.before, speed.now, speed.change) == pytest.approx((70.0, 35.0, -50.0))
    assert speed.worse
    assert moved["fp32", "min_wordmath"].change == 0
    # Judged again, the same measurements are no other run; into another history they come with their own time.
    judge = ("--quant-budget", "b.yaml", "--quant-from", "r.json", "--quant-history")
    for place, told in (
        ("past", "nothing was added to the history *past: it holds all that there is *"),
        ("new", "added *"),
    ):
        again = room.runpytest_subprocess(*judge, place)
        again.assert_outcomes(passed=4)
        again.stdout.fnmatch_lines([told])
    assert len(list(Path("past").iterdir())) == 2
    assert {each.at for each in history.read("new").runs} < {each.at for each in history.read("past").runs}
    at = {each.at for each in history.read("past").runs}
    assert len(at) == 2, "a report that is judged is of the time of its measuring"


def test_a_history_that_cannot_be_written_is_told_and_fails_the_run(
    room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room.path / "past").write_text("a file")
    result = run(room, monkeypatch, 0.1)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-history: past is a file; a history is a directory, or a URL"])
    (room.path / "past").unlink()
    room.makeini("[pytest]\nquant_history = file:///proc/none\n")
    result = room.runpytest_subprocess("--quant-budget", "b.yaml", "--quant-no-cache")
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["the history file:///proc/none could not be read or written: *"])


def test_a_change_is_skipped_at_first_over_at_a_regression_and_told_without_a_history(
    room: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room.path / "b.yaml").write_text(BUDGET.replace("min_tokens_per_s: 1", "max_change: {tokens_per_s: -5 %}"))
    first = run(room, monkeypatch, 0.1, "-rs")
    first.assert_outcomes(passed=3, skipped=1)
    first.stdout.fnmatch_lines(
        ["*bf16: max_change_tokens_per_s has nothing to compare with: the history holds no earlier*"]
    )
    # Four runs more, as other jobs would have added them.
    (kept,) = (each for each in history.read("past").runs if each.method == "bf16")
    for number, change in enumerate((1.01, 0.99, 1.005, 0.995)):
        speed = kept.figures["min_tokens_per_s"]
        figures = {"min_tokens_per_s": replace(speed, value=speed.value * change, measured=f"t{number}")}
        at = f"2026-01-0{number + 1}T00:00:00Z"
        history.write("past", [replace(kept, run=history.name_of(at), at=at, figures=figures)])
    (Path("past") / "torn.jsonl").write_text('{"version": 1, "run')
    worse = run(room, monkeypatch, 0.125, "-n", "2")
    worse.assert_outcomes(passed=3, failed=1)
    worse.stdout.fnmatch_lines(
        [
            "*max_change_tokens_per_s*",
            "measured 20.0 % less, limit 5.0 %, 99 % bounds 1?.? to 2?.? (56.0 tokens/s, 70.0 tokens/s in the median *",
            "b.yaml:11: this line",
            "history: torn.jsonl:1 is left out (torn?): *",
        ]
    )
    budget = document.read(Path("r.json")).budgets[0]
    (moved,) = (each for each in budget.changes if (each.method, each.figure) == ("bf16", "tokens_per_s"))
    assert moved.beyond_noise
    assert len(moved.trend) == 6
    verdicts = {limit.name: limit.verdict for method in budget.methods for limit in method.limits}
    assert (verdicts["max_change_tokens_per_s"].outcome, verdicts["max_change_tokens_per_s"].limit) == ("over", 5.0)
    without = room.runpytest_subprocess("b.yaml::bf16::max_change_tokens_per_s", "-rs")
    without.assert_outcomes(skipped=1)
    without.stdout.fnmatch_lines(["*has no history to compare with: --quant-history PLACE names one*"])
