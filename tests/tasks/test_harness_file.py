"""Task files of lm-evaluation-harness, read without running them."""

from pathlib import Path

import pytest
from harness_room import WORDS, furnished, with_

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.files import Roots
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.tasks import harness_file


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with two task files of our own, their questions, and a budget."""
    return furnished(tmp_path)


MISTAKES = {
    "group": (with_("task: words", "group: words\ntask: [a, b]"), "declares no single `task`"),
    "outside": (with_("words.jsonl", "/etc/passwd"), "data_files: '/etc/passwd' lies outside the repository"),
    "no such file": (with_("words.jsonl", "word.jsonl"), "data_files: there is no file 'word.jsonl'; did you mean 'w"),
    "pattern": (with_("words.jsonl", "'*.jsonl'"), "data_files: '*.jsonl' is a pattern; name each file"),
    "pickles": (with_("dataset_path: json", "dataset_path: pandas"), "the loader 'pandas' is not one of json, csv"),
    "folder": (with_("dataset_path: json", "dataset_path: ./here"), "dataset_path: './here' is a local path"),
    "include outside": (with_("task: words", "task: words\ninclude: ../../x.yaml"), "include: '../../x.yaml' l"),
    "include itself": (with_("task: words", "task: words\ninclude: words.yaml"), "which includes it"),
    "no YAML": (lambda _: "task: [", "is not a task file: while parsing a flow node"),
    "a list": (lambda _: "[1]", "is not a task file: it needs keys"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_a_task_file_are_told_with_its_line(room: Path, name: str) -> None:
    change, message = MISTAKES[name]
    (room / "words.yaml").write_text(change(WORDS))
    with pytest.raises(BudgetError) as caught:
        load_budget(room / "budget.yaml", Roots([room]))
    assert message in str(caught.value)
    assert "words.yaml" in str(caught.value)


def test_a_file_of_the_library_may_be_included(room: Path) -> None:
    package = pytest.importorskip("lm_eval").__path__[0]
    path = room / "words.yaml"
    path.write_text(f"include: {package}/tasks/arc/arc_easy.yaml\ntask: own_arc\n")
    load_budget(room / "budget.yaml", Roots([room]))
    described = harness_file.described(path)
    assert list(described.files) == [path]
    assert described.datasets == ["allenai/ai2_arc"]
