"""Values of limits that are written in more than one way, and those that were meant otherwise."""

import re
from pathlib import Path

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.problems import BudgetError

RECOVERY = """model: m
baseline: fp16
tasks: {{t: {{file: builtin}}{}}}
methods:
  fp16: {{}}
  nf4: {{budget: {{min_t_recovery: {}}}}}
"""


def write(folder: Path, value: str, more: str = "") -> Path:
    path = folder / "b.yaml"
    path.write_text(RECOVERY.format(more, value))
    return path


@pytest.mark.parametrize(
    ("text", "value"), [("99 %", 99.0), ("99", 99.0), ("99.5%", 99.5), ("0.5 %", 0.5), ("105", 105.0)]
)
def test_a_recovery_is_in_percent_with_or_without_its_sign(tmp_path: Path, text: str, value: float) -> None:
    (limit,) = load_budget(write(tmp_path, text)).method("nf4").limits
    assert (limit.targets[0].value, limit.targets[0].unit) == (value, "%")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.99", "is in percent: 0.99 is 0.99 % of the baseline's score; write 99 %"),
        ("99 points", "must be a number of percent, such as 99 or 99 %, not '99 points'"),
        ("-1", "must be above 0 and at most 1000, not -1"),
        ("0 %", "must be above 0 and at most 1000, not 0"),
        ("true", "must be a number, not True"),
    ],
)
def test_a_recovery_that_was_meant_otherwise_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"b.yaml:6: min_t_recovery: {why}")):
        load_budget(write(tmp_path, text))


def test_no_task_takes_a_limit_of_another(tmp_path: Path) -> None:
    path = write(tmp_path, "99", ", t_recovery: {file: builtin}")
    with pytest.raises(BudgetError, match="'t_recovery' cannot name a task: its limit min_t_recovery already has"):
        load_budget(path)


def test_a_recovery_of_no_task_names_the_task_that_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, "99")
    path.write_text(path.read_text().replace("min_t_rec", "min_gsm8k_rec"))
    with pytest.raises(BudgetError, match="no limit 'min_gsm8k_recovery', and no task 'gsm8k' is declared"):
        load_budget(path)
