"""The limit on how long it takes to make a quantized checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judged import CPU

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import LOAD, QUANTIZE
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, WITHIN, Verdict
from pytest_quantbudget.judge import margin
from pytest_quantbudget.judge.verdict import judge

MADE: dict[str, Any] = {"quantized": "gptq-int4-00ff", "quantize_s": 90.0, "quantized_at": "2026-01-01T00:00:00Z"}


def verdict(
    folder: Path, limit: str, method: str = "gptq-int4", more: str = "calibration: builtin", **made: Any
) -> Verdict:
    path = folder / "b.yaml"
    path.write_text(f"model: m\n{more}\nmethods:\n  {method}: {{budget: {{max_quantize_time: {limit}}}}}\n")
    budget = load_budget(path)
    (found,) = budget.methods
    return judge(budget, found, found.limits[0], {method: Measurement(found.subject, device=CPU, **made)})


@pytest.mark.parametrize(("limit", "outcome"), [("2 min", WITHIN), ("90 s", WITHIN), ("1 min", OVER)])
def test_it_is_the_time_when_the_checkpoint_was_made(tmp_path: Path, limit: str, outcome: str) -> None:
    found = verdict(tmp_path, limit, **MADE)
    assert (found.outcome, found.measured) == (outcome, 90.0)
    assert "(made 2026-01-01T00:00:00Z, and kept since)" in found.message


@pytest.mark.parametrize(
    ("method", "made", "why"),
    [
        (
            "gptq-int4",
            {**MADE, "quantize_s": None},
            "made by an earlier release, which did not note how long that took",
        ),
        ("gptq-int4", {**MADE, "quantized_at": None}, "made by an earlier release"),
        ("nf4", {}, "no checkpoint is made for it: what it quantizes, it does while it loads (`max_load_time`)"),
        ("nf4", {**MADE, "quantized": "merged-00ff"}, "no checkpoint is made for it"),
    ],
)
def test_where_it_is_not_known_it_is_skipped_in_words(
    tmp_path: Path, method: str, made: dict[str, Any], why: str
) -> None:
    found = verdict(tmp_path, "1 h", method, **made)
    assert found.outcome == SKIPPED
    assert why in found.message


def test_who_made_a_ready_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\nmethods:\n  gptq-int4: {checkpoint: m/x, budget: {max_quantize_time: 1 h}}\n")
    budget = load_budget(path)
    (method,) = budget.methods
    found = judge(budget, method, method.limits[0], {method.name: Measurement(method.subject, device=CPU)})
    assert found.outcome == SKIPPED
    assert "its checkpoint is a ready one: who made it knows" in found.message


@pytest.mark.parametrize("phase", [QUANTIZE, LOAD])
def test_a_checkpoint_that_could_not_be_made_is_no_skip(tmp_path: Path, phase: str) -> None:
    found = verdict(tmp_path, "1 h", failures=(Failure(phase, "error", "out of memory"),))
    assert (found.outcome, "out of memory" in found.message) == (FAILED, True)


def test_it_is_refused_of_methods_that_do_not_quantize(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="max_quantize_time needs a method that quantizes: bf16 stores every value"):
        verdict(tmp_path, "1 h", "bf16", "")


def test_auto_is_given_no_number(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\ncalibration: builtin\nmethods: {gptq-int4: {budget: {max_quantize_time: auto}}}\n")
    budget = load_budget(path)
    (method,) = budget.methods
    record = replace(Measurement(method.subject, device=CPU), **MADE)
    with pytest.raises(margin.NoMargin, match="by how much another time would differ is not known: write a number"):
        margin.calibrated(budget, method.name, method.limits[0], "s", {method.name: record})
