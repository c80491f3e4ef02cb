"""Which budget files a name stands for."""

from pathlib import Path

import pytest

from pytest_quantbudget.budget.find import Budgets, find_budgets
from pytest_quantbudget.core.files import SHIPPED_BUDGETS, Roots
from pytest_quantbudget.core.problems import BudgetError


def test_a_name_finds_a_file_a_folder_or_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = [(tmp_path / name).resolve() for name in ("a.yaml", "sub/b.yml", "sub/c.yaml")]
    for path in (*files, tmp_path / "sub/notes.txt"):
        path.touch()
    assert find_budgets("a.yaml", tmp_path) == files[:1]
    assert find_budgets(str(files[0]), Path("/")) == files[:1]
    assert find_budgets(".", tmp_path) == files
    assert find_budgets("sub/*.y*ml", tmp_path) == files[1:]
    assert find_budgets("**/*.yaml", tmp_path) == [files[0], files[2]]


def test_a_budget_that_only_the_package_has_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as error:
        find_budgets("budgets/builtin.yaml", tmp_path)
    assert f"no such budget; the package ships {SHIPPED_BUDGETS / 'builtin.yaml'}, which `extends" in str(error.value)


def test_a_budget_may_extend_a_shipped_one_wherever_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: builtin.yaml\nmethods: {bf16: {budget: {min_speedup: 0.1}}}\n")
    assert Budgets(Roots((tmp_path,))).load(path).tasks.keys() == {"wordmath"}


def test_a_file_is_read_once_and_may_refer_to_the_folder_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/texts.txt").write_text("a text\n" * 128)
    path = tmp_path / "sub/b.yaml"
    path.write_text("model: m\ncalibration: texts.txt\nmethods: {gptq-int4: {budget: {max_weights: 1 GiB}}}\n")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BudgetError, match="lies outside the repository"):
        Budgets(Roots((other,))).load(path)
    budgets = Budgets(Roots((other,)))
    assert budgets.named("sub", tmp_path) == [path.resolve()]
    assert budgets.load(path) is budgets.load(path.parent / "../sub/b.yaml")
    assert budgets.texts == {path.resolve(): path.read_bytes()}
