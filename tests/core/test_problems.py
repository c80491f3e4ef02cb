"""What messages about mistakes say: where, and the nearest right name."""

import os
from pathlib import Path

import pytest

from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.core.problems import BudgetError, Problem, nearest, text_lines


def test_the_nearest_name_is_never_the_one_that_was_written() -> None:
    assert nearest("fp16", ["fp16", "bf16"]) == "; did you mean 'bf16'?"
    assert nearest("fp16", ["fp16"]) == ""
    assert nearest("fp16", ["FP16", "fp16"]) == "; did you mean 'FP16'?"


def test_a_link_to_nowhere_is_not_named_as_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").symlink_to("nowhere")
    with pytest.raises(BudgetError) as error:
        find_budgets("b.yaml", tmp_path)
    assert "did you mean" not in str(error.value)


def test_a_problem_of_a_whole_file_stands_at_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").touch()
    assert str(Problem(Path("b.yaml"), 0, "is wrong")) == "b.yaml:1: is wrong"
    # What is no file has no lines.
    assert str(Problem(Path("none.yaml"), 0, "is wrong")) == "none.yaml: is wrong"
    assert str(Problem(Path.cwd(), 0, "is wrong")) == f"{os.curdir}: is wrong"


def test_texts_that_cannot_be_read_have_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_bytes(b"a\nb\xff\n")
    with pytest.raises(BudgetError, match=r"^q\.jsonl:2: is not UTF-8 text"):
        list(text_lines(Path("q.jsonl")))
