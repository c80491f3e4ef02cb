"""What other packages add: the example of the documentation, installed and run; and packages with mistakes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import entry_points
from pytest_quantbudget.core.problems import BudgetError

DOCS = Path(__file__).parents[2] / "docs"


def install(folder: Path) -> Path:
    """The example in a folder, as pip puts it there."""
    source = folder / "source"
    shutil.copytree(DOCS / "example", source)
    target = folder / "site"
    words = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target))
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True, capture_output=True)
    return target


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.model
def test_the_example_adds_a_method_an_engine_a_metric_and_questions(tmp_path: Path) -> None:
    install(tmp_path)
    shutil.copy(DOCS / "example" / "budget.yaml", tmp_path / "b.yaml")
    result = run(tmp_path, "--quant-budget", "b.yaml", "--quant-report", "r.json", "--quant-cache", "cache", "-v")
    assert "5 passed" in result.stdout, result.stdout + result.stderr
    (budget,) = json.loads((tmp_path / "r.json").read_text())["budgets"]
    limits = {limit["name"]: limit for method in budget["methods"] for limit in method["limits"]}
    dense, rounded, autocast = (method["measurement"] for method in budget["methods"])
    assert limits["max_change_tokens"]["verdict"]["low"] < limits["max_change_tokens"]["verdict"]["measured"]
    assert {each["name"] for each in rounded["receipt"]["layers"] if each["bits"] == 8} == {"Int8Linear"}
    assert rounded["weights"] < 0.6 * dense["weights"]
    assert autocast["weights"] == dense["weights"]
    (answers,) = (each["answers"] for each in rounded["tasks"])
    assert len(answers) == 12


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a package of which there is little but its entry points."""

    def install(name: str, group: str, *points: str) -> None:
        told = tmp_path / name / f"{name}-1.0.dist-info"
        told.mkdir(parents=True)
        (tmp_path / name / f"{name}.py").write_text("OBJECT = 3\n")
        (told / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (told / "entry_points.txt").write_text("\n".join([f"[pytest_quantbudget.{group}]", *points, ""]))
        monkeypatch.syspath_prepend(tmp_path / name)
        entry_points.added.cache_clear()

    yield install
    entry_points.added.cache_clear()


@pytest.mark.parametrize(
    ("group", "point", "budget", "words"),
    [
        ("methods", "own = broken:OBJECT", "own: {}", "broken:OBJECT is of type int, and no Spec"),
        ("methods", "own = broken:NONE", "x: {kind: own}", "AttributeError: .* has no attribute 'NONE'"),
        ("methods", "own = not_there:SPEC", "own: {}", "ModuleNotFoundError: No module named 'not_there'"),
        ("engines", "own = broken:OBJECT", "fp32: {engine: own}", "is of type int, and no EngineSpec"),
        ("metrics", "own = broken:OBJECT", "fp32: {budget: {max_own: 3}}", "is of type int, and no Metric"),
        ("tasks", "own = broken:OBJECT", "fp32: {}\ntasks: {own: {}}", "is of type int, and no TaskSet"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_named_and_nowhere_else(
    group: str, point: str, budget: str, words: str, package: Callable[..., None], tmp_path: Path
) -> None:
    package("broken", group, point)
    (tmp_path / "b.yaml").write_text(f"model: builtin\nmethods:\n  {budget}\n")
    (tmp_path / "other.yaml").write_text("model: builtin\nmethods:\n  fp32: {budget: {max_weights: 3 MiB}}\n")
    with pytest.raises(BudgetError, match=rf"b\.yaml:\d.*that of broken cannot be used: .*{words}"):
        load_budget(tmp_path / "b.yaml")
    assert load_budget(tmp_path / "other.yaml").methods


def test_names_of_this_package_stay_its_own_and_each_name_is_one_packages(package: Callable[..., None]) -> None:
    package("one", "methods", "fp32 = one:OBJECT", "math = math:pi")
    found = entry_points.added("methods", object, ("fp32",))
    assert not found.objects
    assert found.why_not("fp32") == "; that of one is not used, because this package has its own"
    assert found.why_not("math").endswith("math:pi is called None, and its entry point 'math'")
    assert found.why_not("nf4") == ""


def test_of_two_packages_with_one_name_neither_takes_the_others_place(package: Callable[..., None]) -> None:
    for name in ("one", "two"):
        package(name, "tasks", f"set = {name}:OBJECT")
        module = Path(sys.path[0]) / f"{name}.py"
        module.write_text("class Named:\n    name = 'set'\nOBJECT = Named()\n")
    found = entry_points.added("tasks", object, ())
    assert [type(each).__module__ for each in found.objects.values()] in (["one"], ["two"])
    assert "because another package has one, too" in found.why_not("set")
    assert {"one", "two"} <= set(entry_points.packages.__wrapped__())
