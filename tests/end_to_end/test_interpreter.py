"""Methods that another interpreter measures: figures, reuse, faults, and nothing left behind."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from environments import environment

from pytest_quantbudget.core.codec import from_builtins
from pytest_quantbudget.core.measurement import Measurement

NEEDED = ("torch", "transformers", "accelerate", "safetensors")
BUDGET = """
model: builtin
baseline: fp32
tasks: {{wordmath: {{file: builtin, questions: 12, max_new_tokens: 96, divergence: true}}}}
methods:
  fp32: {{budget: {{max_weights: 3 MiB}}}}
{}
"""


def room(pytester: pytest.Pytester, methods: str, **interpreters: str) -> None:
    """A budget with some methods besides fp32, in a room that allows some interpreters."""
    lines = "".join(f"    {name} = {path}\n" for name, path in interpreters.items())
    pytester.makeini(f"[pytest]\nquant_interpreters =\n{lines}")
    (pytester.path / "b.yaml").write_text(BUDGET.format(methods))


def run(pytester: pytest.Pytester, *more: str) -> tuple[pytest.RunResult, dict[str, Measurement]]:
    """A run, and the measurements of its report by method."""
    args = ("--quant-budget", "b.yaml", "--quant-cache", "cache", "--quant-report", "r.json", "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*args, *more)
    (budget,) = json.loads((pytester.path / "r.json").read_text())["budgets"]
    return result, {each["name"]: from_builtins(Measurement, each["measurement"]) for each in budget["methods"]}


def modules(python: str) -> Path:
    (site,) = Path(python).parents[1].glob("lib/python*/site-packages")
    return site


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with transformers, and neither pytest nor this package."""
    made = environment(tmp_path_factory.mktemp("other") / "venv", *NEEDED)
    there = {path.name for path in modules(made).iterdir()}
    assert not there & {"pytest", "_pytest", "pytest_quantbudget", "pynvml.py", "bitsandbytes"}
    return made


@pytest.fixture
def imports(tmp_path: Path) -> Any:
    """An environment whose torch does one thing when it is imported."""

    def made(body: str) -> str:
        python = environment(tmp_path / "venv")
        site = modules(python)
        for name in ("transformers", "accelerate"):
            (site / f"{name}.py").write_text("")
        (site / "torch.py").write_text(body)
        return python

    return made


@pytest.mark.model
def test_another_interpreter_measures_the_same_figures_and_they_are_kept(
    pytester: pytest.Pytester, python: str
) -> None:
    limits = "{max_weights: 3 MiB, max_wordmath_flips: 5, max_kl: 0.001}"
    room(pytester, f"  there: {{kind: fp32, python: other, budget: {limits}}}", other=python)
    result, measured = run(pytester)
    result.assert_outcomes(passed=4)
    here, there = measured["fp32"], measured["there"]
    assert there.weights == here.weights
    assert [answer.ids for answer in there.tasks[0].answers] == [answer.ids for answer in here.tasks[0].answers]
    assert there.libraries is not None
    assert here.libraries is not None
    # What is there, and not what is here.
    assert "pytest" in here.libraries
    assert "pytest" not in there.libraries
    assert there.libraries["python"] == ".".join(map(str, sys.version_info[:3]))
    assert there.libraries["torch"] == here.libraries["torch"]
    again, _ = run(pytester)
    again.assert_outcomes(passed=4)
    again.stdout.fnmatch_lines(["*there: all reused, measured *"])
    # The interpreter has another library now, and what was measured says nothing about that.
    (modules(python) / "accelerate").unlink()
    lacking, _ = run(pytester)
    lacking.assert_outcomes(passed=1, skipped=3)
    lacking.stdout.fnmatch_lines([f"*there needs accelerate in {python}: {python} -m pip install accelerate*"])


@pytest.mark.model
def test_each_broken_interpreter_costs_its_own_method_and_is_named(pytester: pytest.Pytester, tmp_path: Path) -> None:
    bare = environment(tmp_path / "bare")
    programs = {"other": "#!/bin/sh\necho hello\n", "crash": "#!/bin/sh\nkill -SEGV $$\n", "garbage": "\x7fELF"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    (tmp_path / "plain").write_text("")
    names = {**{name: str(tmp_path / name) for name in (*programs, "plain", "gone")}, "bare": bare}
    lines = [f"  m-{name}: {{kind: fp32, python: {name}, budget: {{max_weights: 3 MiB}}}}" for name in names]
    room(pytester, "\n".join(lines), **names)
    result, _ = run(pytester, "-rs")
    result.assert_outcomes(passed=1, failed=4, skipped=2)
    told = result.stdout.str()
    for message in (
        f"{names['other']} did not run as a Python interpreter: it ended with exit code 0; it printed 'hello'",
        f"{names['crash']} did not run as a Python interpreter: it was killed by SIGSEGV and printed nothing",
        f"the interpreter {names['garbage']} cannot be started: OSError",
        f"the interpreter {names['plain']} is not executable",
        f"the interpreter {names['gone']} does not exist",
        f"m-bare needs torch, transformers, accelerate in {bare}: {bare} -m pip install torch transformers accelerate",
    ):
        assert message in told
    # Each failure shows the line of the budget.
    assert len(re.findall(r"^b\.yaml:\d+: this line$", told, re.MULTILINE)) == 4


def test_collecting_runs_no_interpreter(pytester: pytest.Pytester, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/runs\n")
    program.chmod(stat.S_IRWXU)
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=str(program))
    result = pytester.runpytest_subprocess("--quant-budget", "b.yaml", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["b.yaml::there::max_weights"])
    assert not (tmp_path / "runs").exists()


def test_an_interpreter_that_is_removed_after_collection_is_a_skip(pytester: pytest.Pytester, imports: Any) -> None:
    python = imports("")
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    pytester.makeconftest(f"import os\ndef pytest_collection_finish(session):\n    os.unlink({python!r})\n")
    result, _ = run(pytester, "-k", "there", "-rs")
    result.assert_outcomes(skipped=1, deselected=1)
    result.stdout.fnmatch_lines([f"*the interpreter {python} does not exist*"])


def test_a_crash_there_is_told_with_what_was_printed(pytester: pytest.Pytester, imports: Any) -> None:
    python = imports("import os\nprint('loading the model')\nos.abort()\n")
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    result, _ = run(pytester, "-k", "there")
    result.assert_outcomes(failed=1, deselected=1)
    words = f"not measured: the measuring process in {python} was killed by SIGABRT during phase 'load'"
    result.stdout.fnmatch_lines([words, "*loading the model*", "*torch.py*"])


def test_a_library_that_fails_there_is_told(pytester: pytest.Pytester, imports: Any) -> None:
    python = imports("raise RuntimeError('built for another machine')\n")
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    result, _ = run(pytester, "-k", "there")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["not measured: RuntimeError: built for another machine"])


def test_a_module_that_is_missing_deeper_there_is_a_skip_with_its_command(
    pytester: pytest.Pytester, imports: Any
) -> None:
    python = imports("import tokenizers.models\n")
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    result, _ = run(pytester, "-k", "there", "-rs")
    result.assert_outcomes(skipped=1, deselected=1)
    result.stdout.fnmatch_lines([f"*No module named 'tokenizers'*{python} -m pip install tokenizers*"])


def test_a_hang_there_ends_at_the_timeout_with_its_stack(pytester: pytest.Pytester, imports: Any) -> None:
    python = imports("import time\ndef where_it_hangs():\n    time.sleep(300)\nwhere_it_hangs()\n")
    method = "  there: {kind: fp32, python: other, timeout: 4 s, budget: {max_weights: 3 MiB}}"
    room(pytester, method, other=python)
    result, _ = run(pytester, "-k", "there")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["not measured: not finished within its timeout of 4.00 s: *", "*in where_it_hangs*"])


def test_an_interpreter_that_says_nothing_is_not_waited_for_beyond_the_time_of_the_run(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 300\n")
    program.chmod(stat.S_IRWXU)
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=str(program))
    began = time.monotonic()
    result, _ = run(pytester, "-k", "there", "--quant-timeout", "3 s")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["not measured: not begun: the time for the whole run (--quant-timeout) was used up"])
    assert time.monotonic() - began < 45


def test_killed_pytest_takes_what_runs_there_along(pytester: pytest.Pytester, tmp_path: Path, imports: Any) -> None:
    pids = tmp_path / "pids"
    python = imports(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}.')\n"
        "time.sleep(300)\n"
    )
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    command = [sys.executable, "-m", "pytest", "--quant-budget", "b.yaml", "--quant-no-cache", "-k", "there"]
    parent = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL, env={**os.environ})
    ends = time.monotonic() + 60
    while not pids.exists() or not pids.read_text().endswith("."):
        assert time.monotonic() < ends
        time.sleep(0.05)
    running = [int(pid) for pid in pids.read_text().removesuffix(".").split()]
    assert all(map(runs, running))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(map(runs, running)):
        assert time.monotonic() < ends
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_there_is_no_live_model_of_a_method_of_another_interpreter(pytester: pytest.Pytester, imports: Any) -> None:
    python = imports("")
    room(pytester, "  there: {kind: fp32, python: other, budget: {max_weights: 3 MiB}}", other=python)
    test = pytester.makepyfile("def test_live(quant_model):\n    pass\n")
    result = pytester.runpytest_subprocess(test, "--quant-budget", "b.yaml", "-k", "live and not fp32", "-rs")
    result.assert_outcomes(skipped=1, deselected=3)
    result.stdout.fnmatch_lines([f"*there is measured by {python}: there is no live model in this process*"])
