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
    "file URL": (with_("words.jsonl", '"file:///etc/passwd"'), "data_files: 'file:///etc/passwd' is a URL"),
    "web URL": (with_("words.jsonl", '"http://x.y/z.jsonl"'), "data_files: 'http://x.y/z.jsonl' is a URL"),
    "chained URL": (with_("words.jsonl", '"zip://a::words.jsonl"'), "is a URL; name a file of the repository"),
    "folder of data": (
        with_("  data_files: {test: words.jsonl}", "  data_dir: ../outside"),
        "'data_dir' is not one of",
    ),
    "cache": (with_("  data_files", "  cache_dir: /tmp/x\n  data_files"), "'cache_dir' is not one of data_files"),
    "storage": (with_("  data_files", "  storage_options: {a: 1}\n  data_files"), "'storage_options' is not one of"),
    "merged key": (
        with_("dataset_kwargs:", "metadata: &m {cache_dir: x}\ndataset_kwargs:\n  <<: *m"),
        "'cache_dir' is not one of",
    ),
    "loader of neither list": (with_("dataset_path: json", "dataset_path: imagefolder"), "the loader 'imagefolder' is"),
    "path as a URL": (with_("dataset_path: json", "dataset_path: 's3://bucket/x'"), "is neither a data set of the hub"),
    "path out of a hub set": (
        with_(
            "dataset_path: json\ndataset_kwargs:\n  data_files: {test: words.jsonl}",
            "dataset_path: org/set\ndataset_kwargs:\n  data_files: {test: /etc/passwd}",
        ),
        "data_files: '/etc/passwd' is no file of a data set on the hub",
    ),
    "up out of a hub set": (
        with_(
            "dataset_path: json\ndataset_kwargs:\n  data_files: {test: words.jsonl}",
            "dataset_path: org/set\ndataset_kwargs:\n  data_dir: ../../x",
        ),
        "data_files: '../../x' is no file of a data set on the hub",
    ),
    "data deep in the file": (
        with_("output_type:", "metadata: {dataset_kwargs: {data_files: /etc/passwd}}\noutput_type:"),
        "dataset_kwargs has to stand at the top of a task file",
    ),
    "prompts from elsewhere": (with_("output_type:", "use_prompt: '/etc/x.yaml:y'\noutput_type:"), "use_prompt reads"),
    "tasks in a list": (with_("task: words", "task: [words]"), "declares no single `task`"),
    "no YAML": (lambda _: "task: [", "is not a task file: while parsing a flow node"),
    "a list": (lambda _: "[1]", "is not a task file: it needs keys"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.model
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


def test_the_loader_in_one_file_and_the_path_in_another_are_seen_together(room: Path) -> None:
    """Each alone is harmless: a loader without files, and files without a loader."""
    kwargs = "dataset_kwargs:\n  data_files: {test: words.jsonl}\n"
    (room / "base.yaml").write_text(WORDS.replace(kwargs, ""))
    (room / "words.yaml").write_text(f"include: base.yaml\ntask: words\n{kwargs}".replace("words.jsonl", "/etc/passwd"))
    with pytest.raises(BudgetError, match="data_files: '/etc/passwd' lies outside the repository"):
        load_budget(room / "budget.yaml", Roots([room]))
    (room / "words.yaml").write_text(f"include: base.yaml\ntask: words\n{kwargs}")
    load_budget(room / "budget.yaml", Roots([room]))
    assert room / "words.jsonl" in harness_file.described(room / "words.yaml").files
    # What is replaced in the end is not loaded: the library's loader with a path of our own is.
    (room / "base.yaml").write_text(WORDS.replace("words.jsonl", "/etc/passwd"))
    load_budget(room / "budget.yaml", Roots([room]))


def test_an_alias_to_itself_ends() -> None:
    import yaml

    root = yaml.compose("&a {<<: *a, task: x}", Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    assert [key for _, key, _ in harness_file._entries(root)] == ["task"]
