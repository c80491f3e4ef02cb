"""The rules of the structure: who may import whom, where torch and pytest may be imported, sizes, public names."""

import ast
import re
from pathlib import Path

import pytest
import structure

import pytest_quantbudget

PACKAGE = Path(pytest_quantbudget.__file__).parent
TESTS = Path(__file__).parent
MAX_LINES = 400

# What each package may import of the others; `judge.sequential` is one module of a package.
MAY_IMPORT = {
    "core": set(),
    "judge": {"core"},
    "tasks": {"core"},
    "models": {"core"},
    "budget": {"core", "judge", "tasks", "models", "report"},
    "engine": {"core", "models", "tasks", "judge.sequential"},
    "measure": {"core", "judge", "tasks", "models", "engine"},
    "report": {"core", "judge", "tasks", "models"},
    "commands": {"core", "judge", "tasks", "models", "budget", "engine", "measure", "report"},
    "plugin": {"core", "judge", "tasks", "models", "budget", "engine", "measure", "report"},
}
HEAVY = {"torch", "transformers", "numpy", "bitsandbytes", "gptqmodel", "lm_eval", "safetensors", "llama_cpp", "gguf"}
# Besides the engines and the loaders of methods: what both ask transformers for, dummy weights, the fork server, and
# the process that it forks.
MAY_IMPORT_HEAVY = (
    "engine/", "models/methods/", "models/auto.py", "models/dummy.py", "measure/preload.py", "measure/child.py"
)  # fmt: skip
MAY_IMPORT_PYTEST = ("plugin/",)


def wrong_arrows(arrows: structure.Graph) -> list[str]:
    """The imports between packages that no rule allows."""
    wrong = []
    for name, targets in arrows.items():
        _, package, *_ = [*name.split("."), ""]
        for target in sorted(targets):
            inner = target.partition(".")[2]
            allowed = MAY_IMPORT.get(package, {inner}) | {package}
            if not any(inner == rule or inner.startswith(f"{rule}.") for rule in allowed):
                wrong.append(f"{name} imports {target}")
    return wrong


def wrong_libraries(sources: dict[str, str], libraries: set[str], places: tuple[str, ...]) -> list[str]:
    """The imports of libraries in files elsewhere than in some places."""
    return [
        f"{file} imports {library}"
        for file, source in sources.items()
        if not file.startswith(places)
        for library in sorted({name.partition(".")[0] for name in structure.imported(source)} & libraries)
    ]


def too_long(sources: dict[str, str]) -> list[str]:
    """The files of more lines than can be read at once."""
    return [file for file, source in sources.items() if source.count("\n") > MAX_LINES]


def sources(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}


def test_each_package_imports_only_what_its_rule_says() -> None:
    arrows = structure.graph(PACKAGE)
    assert {name.split(".")[1] for name in arrows if name.count(".") > 1} == MAY_IMPORT.keys()
    assert wrong_arrows(arrows) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = structure.graph(PACKAGE)
    assert structure.circles(arrows) == structure.circles(structure.rooms(arrows)) == []


def test_torch_and_its_like_stay_in_engines_and_loaders() -> None:
    assert wrong_libraries(sources(PACKAGE), HEAVY, MAY_IMPORT_HEAVY) == []


def test_pytest_stays_in_the_plugin() -> None:
    assert wrong_libraries(sources(PACKAGE), {"pytest", "_pytest", "xdist"}, MAY_IMPORT_PYTEST) == []


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    assert too_long(sources(PACKAGE)) == []
    assert too_long(sources(TESTS)) == []


def test_each_promise_of_the_security_page_names_tests_that_there_are() -> None:
    _, promises, table = re.split(r"## Promises|What shows each of them", (TESTS.parent / "SECURITY.md").read_text())
    told = [promise.rstrip(".") for promise in re.findall(r"^\*\*(.+?)\*\*", promises, re.MULTILINE)]
    rows = [row.split(" | ") for row in re.findall(r"^\| (?!Promise)(.+) \|$", table, re.MULTILINE)]
    assert [promise for promise, _ in rows] == told
    for named in re.findall(r"`(.+?)`", "".join(tests for _, tests in rows)):
        file, _, test = named.partition("::")
        assert f"def {test}(" in (TESTS / file).read_text(), named


def test_public_names_are_sorted_complete_and_there() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    names = [alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert pytest_quantbudget.__all__ == sorted(names)
    for name in pytest_quantbudget.__all__:
        assert getattr(pytest_quantbudget, name).__name__ == name


@pytest.mark.parametrize(
    ("name", "target", "wrong"),
    [
        ("p.core.units", "p.core.files", False),
        ("p.core.units", "p.judge.verdict", True),
        ("p.engine.hf.load", "p.judge.sequential", False),
        ("p.engine.hf.load", "p.judge.intervals", True),
        ("p.report.table", "p.measure.bench", True),
        ("p.plugin.hooks", "p.measure.bench", False),
        ("p.commands.table", "p.report.table", False),
        ("p.commands.table", "p.plugin.hooks", True),
    ],
)
def test_an_arrow_against_the_rule_is_seen(name: str, target: str, wrong: bool) -> None:
    assert bool(wrong_arrows({name: {target}, target: set()})) == wrong


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import torch", True),
        ("def f():\n    from torch.nn import Linear", True),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("import torchlight", False),
    ],
)
def test_a_library_in_the_wrong_place_is_seen(source: str, wrong: bool) -> None:
    assert bool(wrong_libraries({"judge/x.py": source}, HEAVY, MAY_IMPORT_HEAVY)) == wrong
    assert wrong_libraries({"engine/x.py": source}, HEAVY, MAY_IMPORT_HEAVY) == []


def test_circles_chains_and_sizes_are_measured(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The package."""\n')
    (package / "a.py").write_text("from p import b\n\n\ndef late():\n    # Late.\n    from p.inner import c\n")
    (package / "b.py").write_text('import p.inner.c\n\nX = """\nno docstring\n"""\n')
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "c.py").write_text("if TYPE_CHECKING:\n    import p.a\n")
    arrows = structure.graph(package)
    assert arrows["p.a"] == {"p.b", "p.inner.c"}
    assert structure.circles(arrows) == []
    assert structure.chain(arrows) == ["p.a", "p.b", "p.inner.c"]
    assert structure.rooms(arrows)["p.a"] == {"p.b", "p.inner"}
    assert structure.circles({**arrows, "p.inner.c": {"p.a"}}) == [["p.a", "p.b", "p.inner.c"]]
    assert [structure.code_lines(path.read_text()) for path in (package / "__init__.py", package / "a.py")] == [0, 3]
    assert structure.code_lines((package / "b.py").read_text()) == 4
    assert too_long({"short.py": "\n" * MAX_LINES, "long.py": "\n" * (MAX_LINES + 1)}) == ["long.py"]
