"""What a measuring process imports, under the Pythons that may run one, with nothing installed there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from environments import found

import pytest_quantbudget

PACKAGE = Path(pytest_quantbudget.__file__).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Each is imported where a phase needs it, and its lack is told there.
OPTIONAL = {"torch", "lm_eval", "yaml", "filelock", "packaging", "numpy", "llama_cpp", "gguf"}
# What starts measuring processes, and what judges: both stay with the plugin.
NOT_THERE = {"measure.bench", "measure.runner", "measure.run_folder", "measure.interpreter", "judge.margin"}

IMPORTS = """
import importlib, json, pathlib, sys
folder = sys.path[0] = sys.argv[1]
missing = {}
for package in ("core", "tasks", "models", "engine", "measure", "judge"):
    for path in sorted(pathlib.Path(folder, "pytest_quantbudget", package).rglob("*.py")):
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing[module.partition(".")[2]] = error.name
print(json.dumps(missing))
"""

# Those of the environments that archived libraries need.
OLDER = ("3.8", "3.9", "3.12")
# Newer than Python 3.10, by the module or what they are taken from.
NEWER = {
    "datetime.UTC", "contextlib.chdir", "hashlib.file_digest", "asyncio.timeout", "asyncio.TaskGroup",
    "asyncio.Runner", "enum.StrEnum", "typing.Self", "typing.assert_never", "typing.Never", "typing.LiteralString",
    "typing.override", "itertools.batched", "copy.replace", "tomllib", "wsgiref.types",
}  # fmt: skip


@pytest.mark.parametrize("version", PYTHONS)
def test_the_measuring_process_imports_where_nothing_is_installed(tmp_path: Path, version: str) -> None:
    python = found(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    (tmp_path / "pytest_quantbudget").symlink_to(PACKAGE)
    command = [python, "-S", "-B", "-c", IMPORTS, str(tmp_path)]
    ended = subprocess.run(command, env={}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    missing = json.loads(ended.stdout)
    assert set(missing.values()) <= OPTIONAL
    needs_nothing = {"measure.child", "measure.ask", "measure.phases", "engine.hf.engine", "engine.machine.gpus"}
    assert not needs_nothing & set(missing)
    assert set(missing) > NOT_THERE


def newer(source: str) -> set[str]:
    """What a source takes from the standard library, or writes, that Python 3.10 does not know."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.TryStar):
            found.add("except*")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_note":
            found.add("add_note")
        elif isinstance(node, ast.Name) and node.id in ("ExceptionGroup", "BaseExceptionGroup"):
            found.add(node.id)
    return found & (NEWER | {"except*", "add_note", "ExceptionGroup", "BaseExceptionGroup"})


def test_a_measuring_process_needs_no_newer_python() -> None:
    of_plugin = {PACKAGE / f"{name.replace('.', '/')}.py" for name in NOT_THERE}
    parts = ("core", "tasks", "models", "engine", "measure", "judge")
    files = {path for part in parts for path in (PACKAGE / part).rglob("*.py")} - of_plugin
    told = {str(path.relative_to(PACKAGE)): newer(path.read_text()) for path in files}
    # What asks servers runs in pytest's own interpreter, whatever runs the server.
    served = ("engine/openai/", "engine/vllm/")
    assert {name: names for name, names in told.items() if names and not name.startswith(served)} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import datetime\ndatetime.datetime.now(datetime.UTC)",
        "from typing import Self",
        "import tomllib",
        "try:\n    pass\nexcept* ValueError:\n    pass",
        "error.add_note('x')",
        "raise ExceptionGroup('x', [])",
    ],
)
def test_what_is_newer_is_seen(source: str) -> None:
    assert newer(source)


def test_the_package_itself_imports_no_pytest() -> None:
    code = "import sys, pytest_quantbudget; print('pytest' in sys.modules, 'yaml' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True, text=True
    )
    assert ended.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("version", OLDER)
def test_the_server_of_archived_libraries_needs_no_newer_python(version: str) -> None:
    python = found(version)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    script = PACKAGE / "engine" / "archived" / "server.py"
    words = [python, str(script), "auto-gptq", "--model", ".", "--port", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("REFUSED "))
    assert json.loads(line.partition(" ")[2])["words"] == "auto-gptq cannot be imported: No module named 'auto_gptq'"
