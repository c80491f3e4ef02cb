"""Which budget files a name stands for."""

from pathlib import Path

import pytest

from pytest_quantbudget.budget.find import Budgets, find_budgets
from pytest_quantbudget.core.files import SHIPPED_BUDGETS, Roots
from pytest_quantbudget.core.problems import BudgetError

BUDGET = "model: m\nmethods: {fp16: {budget: {max_weights: 1 GiB}}}\n"


def made(folder: Path, *names: str, text: str = BUDGET) -> list[Path]:
    """Files with that text, and the folders that they lie in."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return paths


def test_a_name_finds_a_file_a_folder_or_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = [(tmp_path / name).resolve() for name in ("a.yaml", "sub/b.yml", "sub/c.yaml")]
    for path in (*files, tmp_path / "sub/notes.txt"):
        path.write_text(BUDGET)
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


@pytest.mark.parametrize("name", [".", "**/*.yaml"])
def test_hidden_folders_environments_and_node_modules_are_not_searched(tmp_path: Path, name: str) -> None:
    (mine,) = made(tmp_path, "sub/b.yaml")
    made(tmp_path, ".git/b.yaml", "sub/.x/y/b.yaml", "venv/lib/b.yaml", "sub/node_modules/m/b.yaml", "conda/etc/b.yaml")
    made(tmp_path, "venv/pyvenv.cfg", "conda/conda-meta/history", text="")
    assert find_budgets(name, tmp_path) == [mine]
    # What is named is meant.
    for folder in (".git", "venv", "conda", "sub/node_modules", "sub/.x"):
        assert len(find_budgets(folder, tmp_path)) == 1
    assert find_budgets("**/.git/*.yaml", tmp_path) == [tmp_path / ".git/b.yaml"]


OTHERS = {
    "compose": "services: {db: {image: x}}\n",
    "task of the harness": "task: ours\ndataset_path: json\ndoc_to_text: '{{question}}'\n",
    "code": "task: ours\nprocess: !function utils.process\n",
    "several documents": "test_name: a\n---\ntest_name: b\nstages: [{request: {method: GET, methods: {}}}]\n",
    "list": "- methods: {fp16: {}}\n",
    "list of methods": "methods: [GET, POST]\n",
    "text": "methods",
    "empty": "",
    "linter": "extends: relaxed\nrules: {}\n",
    "broken": "a: [\n  methods: {}\n",
}
BUDGETS = {
    "flow style": "{model: m, methods: {fp16: {}}}\n",
    "quoted": '"model": m\n"methods":\n  fp16: {}\n',
    "byte-order mark": "\ufeffmethods: {fp16: {}}\n",
    "no methods yet": "model: m\nmethods:\n",
    "on top of another": "extends: builtin.yaml\nmodel: m\n",
    "broken": "model: m\nmethods:\n  fp16: {budget: [}\n",
    "twice": "methods: {fp16: {}}\nmethods: {fp16: {}}\n",
    "tab": "methods:\n\tfp16: {}\n",
    "misspelt": "model: m\nmethod: {fp16: {}}\n",
    "capital": "model: m\nMethods: {fp16: {}}\n",
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_yaml_file_that_is_no_budget_is_left_alone(tmp_path: Path, what: str) -> None:
    (other,) = made(tmp_path, "budgets/other.yaml", text=OTHERS[what])
    for name in ("budgets", "budgets/*"):
        with pytest.raises(BudgetError, match="no budget among 1 file: a budget has a mapping `methods`"):
            find_budgets(name, tmp_path)
    (mine,) = made(tmp_path, "budgets/mine.yaml")
    assert find_budgets("budgets", tmp_path) == find_budgets("budgets/*", tmp_path) == [mine]
    assert find_budgets("budgets/other.yaml", tmp_path) == [other]


@pytest.mark.parametrize("what", BUDGETS)
def test_a_budget_is_one_with_its_mistakes(tmp_path: Path, what: str) -> None:
    made(tmp_path, "other.yaml", text="services: {}\n")
    paths = made(tmp_path, "mine.yaml", text=BUDGETS[what])
    assert find_budgets(".", tmp_path) == paths


def test_a_file_that_cannot_be_read_as_text_is_a_budget_where_it_has_the_word(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(BUDGET.encode("utf-16"))
    (tmp_path / "b.yaml").write_bytes(b"model: \xff\nmethods: {}\n")
    (tmp_path / "c.yaml").write_bytes(b"name: \xff\n")
    (tmp_path / "d.yaml").write_text(BUDGET + "# long\n" * 40_000)
    assert [path.name for path in find_budgets(".", tmp_path)] == ["a.yaml", "b.yaml", "d.yaml"]


def mounted(folder: Path, version: str = "..2026_11_27") -> Path:
    """A folder as Kubernetes mounts a ConfigMap: a link for each key, through `..data`, to a hidden folder."""
    made(folder / version, "a.yaml", "sub/b.yaml")
    (folder / "..data").unlink(missing_ok=True)
    (folder / "..data").symlink_to(version)
    for name in ("a.yaml", "sub"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(f"..data/{name}")
    return folder


def test_a_folder_of_links_has_each_file_once_under_its_visible_name(tmp_path: Path) -> None:
    folder = mounted(tmp_path / "config")
    visible = [folder / "a.yaml", folder / "sub/b.yaml"]
    assert find_budgets("config", tmp_path) == visible
    assert find_budgets("config/a.yaml", tmp_path) == find_budgets("config/*.yaml", tmp_path) == visible[:1]
    budgets = Budgets(Roots((tmp_path,)))
    assert budgets.all_named(["config", "config/a.yaml", "config/..data/a.yaml"], tmp_path) == visible
    budget = budgets.load(visible[0])
    assert budget.path == budget.methods[0].limits[0].file == visible[0]
    assert budgets.load(folder / "..data/a.yaml") is budget


def test_links_in_a_circle_and_two_names_of_a_file_are_followed_once(tmp_path: Path) -> None:
    (mine,) = made(tmp_path, "m/b.yaml")
    (tmp_path / "a.yaml").symlink_to("m/b.yaml")
    (tmp_path / "l").symlink_to("m")
    (tmp_path / "m/up").symlink_to("..")
    (tmp_path / "out").symlink_to("/")
    assert find_budgets(".", tmp_path) == [mine]


def test_what_a_linked_budget_names_lies_beside_its_target(tmp_path: Path) -> None:
    (target,) = made(tmp_path, "shared/b.yaml", text="extends: base.yaml\nmethods: {fp16: {}}\n")
    made(tmp_path, "shared/base.yaml")
    (tmp_path / "mine.yaml").symlink_to(target)
    assert Budgets().load(tmp_path / "mine.yaml").model == "m"
