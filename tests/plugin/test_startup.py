"""A run without a budget pays almost nothing for the plugin: it imports neither the package's parts nor libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_quantbudget
from pytest_quantbudget.budget import find
from pytest_quantbudget.budget.yaml import MAX_BYTES
from pytest_quantbudget.plugin import hooks

PARTS = ["budget", "core", "engine", "judge", "measure", "models", "report", "tasks"]
HEAVY = {*(f"pytest_quantbudget.{part}" for part in PARTS), "yaml", "filelock", "fsspec", "pynvml"}
PROBE = "import sys, pytest; code = pytest.main(sys.argv[1:]); print('LOADED', *sys.modules); sys.exit(code)"


def run(folder: Path, *args: str, **environ: str) -> tuple[str, set[str]]:
    """The output of a pytest of its own, with no other plugin, and which of the heavy modules it imported."""
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ}
    command = [sys.executable, "-c", PROBE, "-p", "quantbudget", "-p", "no:cacheprovider", *args]
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    output, _, loaded = done.stdout.rpartition("LOADED")
    return output, HEAVY & {*loaded.split()}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A user's project with a test, and YAML files that are no business of the plugin."""
    (tmp_path / "test_mine.py").write_text("def test_it(): pass")
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    (tmp_path / "budget.yaml").write_text("model: m\nmethods: {fp16: {budget: {max_weights: 1 GiB}}}\n")
    return tmp_path


@pytest.mark.parametrize("args", [(), ("test_mine.py",), (".", "-W", "error"), ("--fixtures",), ("--markers",)])
def test_without_a_budget_nothing_is_imported(room: Path, args: tuple[str, ...]) -> None:
    output, loaded = run(room, *args)
    assert not loaded
    assert "test_mine.py" in output or "quant_model" in output or "min_capability" in output


def test_help_tells_all_options_and_imports_nothing(room: Path) -> None:
    output, loaded = run(room, "--help")
    assert not loaded
    assert output.count("--quant-") >= 18
    assert "{auto,dummy}" in output


@pytest.mark.parametrize("named", ["--quant-budget=budget.yaml", "budget.yaml", "budget.yaml::fp16", "ini"])
def test_a_budget_that_is_named_is_read(room: Path, named: str) -> None:
    (room / "pytest.ini").write_text("[pytest]\nquant_budget = budget.yaml\n" if named == "ini" else "[pytest]\n")
    output, loaded = run(room, "--co", "-q", *([named] if named != "ini" else []))
    assert "budget.yaml::fp16::max_weights" in output
    assert {"pytest_quantbudget.budget", "yaml"} <= loaded


FOREIGN = """
import pytest

def pytest_collect_file(file_path, parent):
    if file_path.name.endswith(".tavern.yaml"):
        return Foreign.from_parent(parent, path=file_path)

class Foreign(pytest.File):
    def collect(self):
        yield ForeignItem.from_parent(self, name="stage")

class ForeignItem(pytest.Item):
    def runtest(self):
        assert True
"""


@pytest.mark.parametrize(
    "text",
    [
        "test_name: a\nstages: []\n",
        "test_name: a\n---\ntest_name: b\n",
        "test_name: !anything {methods: 1}\n",
        "request: {methods: {GET: 1}}\n",
        "methods: [GET]\nextends: recommended\n",
        "a: [\n",
    ],
)
@pytest.mark.parametrize("beside", [(), ("budget.yaml",), ("--quant-budget", "budget.yaml")])
def test_an_argument_that_is_no_budget_is_left_to_other_plugins(room: Path, text: str, beside: tuple[str, ...]) -> None:
    (room / "x.tavern.yaml").write_text(text)
    (room / "conftest.py").write_text(FOREIGN)
    for name in ("x.tavern.yaml", "x.tavern.yaml::stage"):
        output, loaded = run(room, "--co", "-q", name, *beside)
        assert "x.tavern.yaml::stage" in output
        assert ("budget.yaml::fp16::max_weights" in output) == bool(beside)
        assert beside or "methods" in text or not loaded


@pytest.mark.parametrize("text", ["model: m\nmethods: {fp61: {}}\n", "methods:\n  fp16: [\n", "methods:\n\tfp16: {}\n"])
def test_an_argument_that_is_a_budget_with_a_mistake_is_told(pytester: pytest.Pytester, text: str) -> None:
    (pytester.path / "b.yaml").write_text(text)
    result = pytester.runpytest("b.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: b.yaml:[1-3]: *"])


def test_an_option_names_a_file_whatever_it_looks_like(pytester: pytest.Pytester) -> None:
    (pytester.path / "b.yaml").write_text("services: {}\n")
    result = pytester.runpytest("--quant-budget", "b.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: b.yaml:1: a budget has no key 'services'*"])
    pytester.makeini("[pytest]\nquant_budget = b.yaml\n")
    assert pytester.runpytest().ret == pytest.ExitCode.USAGE_ERROR


def test_the_ini_files_budgets_are_not_read_where_others_tests_are_named(room: Path) -> None:
    (room / "pytest.ini").write_text("[pytest]\nquant_budget = budget.yaml\n")
    assert not run(room, "test_mine.py")[1]


def test_fixtures_and_marker_are_there_without_a_budget(room: Path) -> None:
    (room / "test_mine.py").write_text(
        "import pytest\n@pytest.mark.gpu(count=99)\ndef test_marker(): pass\n"
        "def test_model(quant_model): pass\ndef test_gpu(gpu): raise AssertionError\n"
    )
    output, _ = run(room, "-rs", "--strict-markers", CUDA_VISIBLE_DEVICES="")
    assert "3 skipped" in output
    assert "needs 99 GPUs; no GPU was found" in output


NO_ACCOUNT = """
import pwd

def nobody(key):
    raise KeyError(f"getpwuid(): uid not found: {key}")

pwd.getpwuid = pwd.getpwnam = nobody
"""
# What Python lacks on Windows, and what some systems are built without.
NO_POSIX = """
import multiprocessing.context, os, signal, sys

for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
for place, names in (
    (os, ("fork", "forkpty", "getuid", "geteuid", "killpg", "setpgid", "getpgid", "setsid", "sched_getaffinity")),
    (signal, ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "alarm", "setitimer")),
    (multiprocessing.context, ("ForkServerContext", "ForkContext")),
):
    for name in names:
        delattr(place, name)
"""
HOMES = {
    "none": {},
    "empty": {"HOME": ""},
    "relative": {"HOME": "somewhere"},
    "not there": {"HOME": "/nonexistent"},
    "a file": {"HOME": "/dev/null"},
    "of nobody in a relative cache": {"XDG_CACHE_HOME": "caches"},
    "a cache that is a file": {"XDG_CACHE_HOME": "/dev/null", "HOME": "/root"},
}


def alone(room: Path, prelude: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own whose Python has been changed by a `prelude`, with nothing else in its environment."""
    (room / "sitecustomize.py").write_text(prelude)
    path = os.pathsep.join([str(room), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ}
    command = [sys.executable, "-m", "pytest", "-p", "quantbudget", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, cwd=room, env=kept, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("prelude", [NO_ACCOUNT, NO_POSIX], ids=["no account", "no POSIX"])
@pytest.mark.parametrize("home", HOMES)
def test_without_a_budget_neither_home_nor_system_matters(room: Path, prelude: str, home: str) -> None:
    ended = alone(room, prelude, **HOMES[home])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
    assert "warning" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.model
def test_a_budget_is_measured_without_a_home(
    pytester: pytest.Pytester, small: Path, simulated_engine: str, home: str
) -> None:
    pytester.makeconftest(simulated_engine)
    ended = alone(pytester.path, NO_ACCOUNT, "--quant-budget", small.name, "-W", "default", **HOMES[home])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 passed" in ended.stdout
    assert ("results are not kept: this user has no home directory" in ended.stdout) == ("HOME" not in HOMES[home])
    assert {path.name for path in pytester.path.iterdir()} & {"~", "caches", "nonexistent"} == set()


@pytest.mark.model
def test_without_a_home_a_place_is_named_or_none_wanted(
    pytester: pytest.Pytester, small: Path, simulated_engine: str
) -> None:
    pytester.makeconftest(simulated_engine)
    for options in (["--quant-cache", "kept"], ["--quant-no-cache"]):
        ended = alone(pytester.path, NO_ACCOUNT, "--quant-budget", small.name, "-W", "error", *options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (pytester.path / "kept/results").is_dir()
    ended = alone(pytester.path, NO_ACCOUNT, "--quant-budget", small.name, "-W", "error")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr.startswith("ERROR: results are not kept: this user has no home directory")
    for options in (["--co", "-W", "error"], ["--quant-estimate"]):
        ended = alone(pytester.path, NO_ACCOUNT, "--quant-budget", small.name, *options)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_on_a_system_without_process_groups_a_budget_says_what_is_supported(room: Path) -> None:
    ended = alone(room, NO_POSIX, "budget.yaml")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert ended.stderr.startswith("ERROR: budgets are measured on Linux, with its process groups")
    assert len(ended.stderr.strip().splitlines()) == 1
    collected = alone(room, NO_POSIX, "budget.yaml", "--co", "-q")
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert "budget.yaml::fp16::max_weights" in collected.stdout


@pytest.mark.model
def test_a_report_is_judged_again_on_a_system_without_process_groups(
    pytester: pytest.Pytester, measured_small: Path
) -> None:
    pytester.runpytest("--quant-budget", measured_small.name, "--quant-report", "r.json").assert_outcomes(passed=5)
    ended = alone(pytester.path, NO_POSIX, "--quant-budget", measured_small.name, "--quant-from", "r.json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 passed" in ended.stdout


def test_the_hooks_know_the_suffixes_and_the_size_of_budgets() -> None:
    assert hooks.SUFFIXES == find.SUFFIXES
    assert hooks.MAX_BYTES == MAX_BYTES


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    assert pytest_quantbudget.__all__ == sorted(pytest_quantbudget.MODULES)
    for name in pytest_quantbudget.__all__:
        assert getattr(pytest_quantbudget, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Budget'"):
        _ = pytest_quantbudget.Budget  # type: ignore[attr-defined]


def test_a_budget_runs_in_the_checkout_without_the_extra_for_tests() -> None:
    """Every run there reads the project's own conftest.py."""
    missing = ("sybil", "jsonschema", "scipy", "coverage")
    arguments = ["--quant-budget", "budgets/builtin.yaml", "--collect-only", "-q", "-p", "no:cacheprovider"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import pytest; pytest.main({arguments})"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "budgets/builtin.yaml::fp32::max_weights" in ended.stdout, ended.stdout + ended.stderr
    assert "Warning" not in ended.stdout
