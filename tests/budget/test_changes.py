"""`max_change`: what may stand there, and the words for what may not."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from pytest_quantbudget.budget import schema
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Method
from pytest_quantbudget.core.problems import BudgetError

TEXT = """model: m
baseline: fp16
undecided: fail
tasks:
  {{gsm8k: {{questions: 1000, undecided: pass}}, vram: &t {{file: builtin}}, change_x: *t, x: *t}}
methods:
  fp16: {{}}
  nf4:
    budget:
      {}
"""


def read(folder: Path, limits: str) -> Method:
    (folder / "b.yaml").write_text(TEXT.format(limits))
    return load_budget(folder / "b.yaml").method("nf4")


def test_each_entry_is_a_limit_with_an_id_of_its_own(tmp_path: Path) -> None:
    method = read(
        tmp_path,
        "max_change: {tokens_per_s: -5 %, ttft: +10 %, weights: 0 %, gsm8k: -1.5 points, gsm8k_drop: 1 point, "
        "speedup: -.5 %, against: median of 7, in_a_row: 3, "
        "since: 2026-12-01T14:30Z, confidence: 0.95}",
    )
    assert [change.name.removeprefix("max_change_") for change in method.changes] == [
        "tokens_per_s", "ttft", "weights", "gsm8k", "gsm8k_drop", "speedup",
    ]  # fmt: skip
    assert [change.allowed for change in method.changes] == [5, 10, 0, 1.5, 1, 0.5]
    assert [change.unit for change in method.changes] == ["%", "%", "%", "points", "points", "%"]
    (
        speed,
        *_,
    ) = method.changes
    assert (speed.median_of, speed.in_a_row, speed.since) == (7, 3, "2026-12-01T14:30:00Z")
    assert (speed.text, speed.line, speed.limit.judging.undecided, speed.limit.judging.confidence) == (
        "-5 %", 10, "fail", 0.95,
    )  # fmt: skip
    assert method.changes[3].limit.judging.undecided == "pass", "the task's own policy"
    assert method.limits == ()
    assert [limit.name for limit in method.all_limits][:1] == ["max_change_tokens_per_s"]


def test_what_is_not_said_is_the_median_of_five_at_99_percent(tmp_path: Path) -> None:
    (change,) = read(tmp_path, "max_change: {tokens_per_s: -5 %, ttft: null}").changes
    assert (change.median_of, change.in_a_row, change.since, change.limit.judging.confidence) == (5, 1, "", 0.99)
    (change,) = read(tmp_path, "max_change: {tokens_per_s: -5 %, against: last, since: 2026-12-01}").changes
    assert (change.median_of, change.since) == (1, "2026-12-01T00:00:00Z")
    assert read(tmp_path, "max_change: null").changes == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("7", "max_change takes figures and how much they may get worse, as in {tokens_per_s: -5 %}"),
        ("{against: last}", "max_change takes figures and how much they may get worse"),
        ("{tokens_per_s: 5 %}", "max_change: tokens_per_s gets worse when it is less: write -5 %"),
        ("{tokens_per_s: +5 %}", "tokens_per_s gets worse when it is less: write -5 %"),
        ("{ttft: -5 %}", "max_change: ttft gets worse when it is more: write +5 %"),
        ("{tokens_per_s: -100 %}", "can never be exceeded: nothing loses more than all of it"),
        ("{tokens_per_s: -5}", "tokens_per_s must be how much it may change, such as -5 %, not -5"),
        ("{tokens_per_s: auto}", "takes no `auto`: what runs differ by is in its bounds"),
        ('{tokens_per_s: {"NVIDIA L4": -5 %}}', "takes one value: it is a share of what the same machine had before"),
        ("{gsm8k: -5 %}", "gsm8k changes by points, as in -1 points: -5 % is ambiguous, of what?"),
        ("{tokens_per_s: -5 points}", "tokens_per_s changes by %, as in -5 %"),
        ("{min_tokens_per_s: -5 %}", "max_change names figures, not limits on them: write tokens_per_s"),
        ("{tokns_per_s: -5 %}", "no limit is on a figure 'tokns_per_s'; did you mean 'tokens_per_s'?"),
        ("{kernel: -5 %}", "no limit is on a figure 'kernel'"),
        ("{vram: +5 %}", "vram may be the figure of max_vram and min_vram: name the task otherwise"),
        (
            "{tokens_per_s: -5 %, against: median}",
            "must be `last`, or `median of N` with at most 99 runs, not 'median'",
        ),
        ("{tokens_per_s: -5 %, in_a_row: 0}", "in_a_row: must be a whole number from 1 to 20, not 0"),
        ("{tokens_per_s: -5 %, since: today}", "since: must be a day, or a time in UTC, such as 2026-12-01"),
        ("{tokens_per_s: -5 %, confidence: 95}", "confidence: must be above 0.5 and below 1, not 95"),
    ],
)
def test_a_mistake_is_told_with_the_right_thing(tmp_path: Path, changes: str, words: str) -> None:
    with pytest.raises(BudgetError) as error:
        read(tmp_path, f"max_change: {changes}")
    (problem,) = error.value.problems
    assert words in problem.message
    assert problem.line == 10


def test_two_tests_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="another limit of the method is called max_change_x_drop"):
        read(
            tmp_path.joinpath(),
            "max_change_x_drop: 10\n      max_change: {change_x_drop: +1 points, x_drop: +1 points}",
        )


def test_a_baseline_is_not_compared_with_itself(tmp_path: Path) -> None:
    text = TEXT.replace("fp16: {{}}", "fp16: {{budget: {{max_change: {{speedup: -5 %}}}}}}").format("min_speedup: 0.5")
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(BudgetError, match="max_change_speedup compares the baseline fp16 with itself"):
        load_budget(tmp_path / "b.yaml")


def test_a_child_changes_one_entry_and_keeps_the_others(tmp_path: Path) -> None:
    read(tmp_path, "max_change: {tokens_per_s: -5 %, ttft: +10 %, in_a_row: 2}")
    child = "extends: b.yaml\nmethods: {nf4: {budget: {max_change: {ttft: null, tokens_per_s: -8 %}}}}\n"
    (tmp_path / "child.yaml").write_text(child)
    (change,) = load_budget(tmp_path / "child.yaml").method("nf4").changes
    assert (change.text, change.in_a_row) == ("-8 %", 2)


@pytest.mark.parametrize(
    ("changes", "valid"),
    [
        ("{tokens_per_s: -5 %, gsm8k: -1 points, against: median of 5, in_a_row: 3}", True),
        ("{tokens_per_s: -5}", False),
        ("{tokens_per_s: auto}", False),
        ("{against: mean}", False),
        ("7", False),
    ],
)
def test_editors_see_what_a_schema_can_see(changes: str, valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema.budget_schema())
    assert validator.is_valid(yaml.safe_load(TEXT.format(f"max_change: {changes}"))) == valid
