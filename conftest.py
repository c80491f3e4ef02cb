"""What the project's own tests share. They run in rooms of their own, through pytester."""

# First and once: runs inside a test forget what they imported, and each would start a fork server of its own.
import importlib.util
import multiprocessing.popen_forkserver  # noqa: F401
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import pytest_quantbudget.plugin.measurer
import pytest_quantbudget.plugin.recorder
import pytest_quantbudget.plugin.start  # noqa: F401  # all modules, for the same reason: two copies of one would differ
from pytest_quantbudget.core.budget import Budget

# Tests mean a CPU: on a card, memory has peaks, nothing is skipped, and times are others. Those that mean a card take
# the fixture `with_card`. A worker of pytest-xdist finds the variable as its controller has left it.
CARDS = "QUANTBUDGET_TEST_CARDS"
if CARDS not in os.environ:
    os.environ[CARDS] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Runs inside a test are not the job's: they write into no summary of it, and annotate no line.
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# Coverage is measured in the workers and in the measuring processes that they fork, and not in what is started afresh:
# tracing the imports of torch and transformers takes longer than the tests.
COVERAGE = "COVERAGE_PROCESS_CONFIG"
COUNTING = os.environ.pop(COVERAGE, None) if "PYTEST_XDIST_WORKER" in os.environ else os.environ.get(COVERAGE)


# Without the extra `test` there may be no Sybil, and this file is read by every run of pytest here.
if importlib.util.find_spec("sybil"):
    from documentation import EXAMPLES

    pytest_collect_file = EXAMPLES.pytest()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage is measured in the programs that the test starts, too, which import no torch."""
    if COUNTING is not None:
        monkeypatch.setenv(COVERAGE, COUNTING)


@pytest.fixture(scope="session")
def counting() -> dict[str, str]:
    """What the environment of a program holds in which coverage is to be measured; nothing where it is not."""
    return {} if COUNTING is None else {COVERAGE: COUNTING}


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The real GSM8K test set as JSON lines, from `GSM8K_JSONL`."""
    path = os.environ.get("GSM8K_JSONL")
    if not path:
        pytest.skip("GSM8K_JSONL does not name the GSM8K test set")
    return Path(path)


SMALL = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  wordmath: {file: builtin, questions: 12, max_new_tokens: 96}
methods:
  fp32:
    marks: [slow]
    budget: {max_weights: 3 MiB, min_wordmath: 50}
  bf16:
    budget: {max_weights_ratio: 0.51, max_wordmath_drop: 60, max_wordmath_flips: 70}
"""


@pytest.fixture
def small(pytester: pytest.Pytester) -> Path:
    """A budget of five limits on the built-in model, as `small.yaml` in an empty room; all of them hold."""
    pytester.makeini("[pytest]\nmarkers = slow: takes long\n")
    path = pytester.path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def with_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts see the GPUs that are hidden from all others; without one the test is skipped."""
    from pytest_quantbudget.measure.hardware import LocalGpus

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ[CARDS])
    if os.environ[CARDS] == "all":
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if not LocalGpus().usable:
        pytest.skip("needs a GPU; no GPU was found")


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Budget]:
    """A budget with one limit on nf4, as tests/judged.py has it."""
    from judged import BUDGET

    from pytest_quantbudget.budget.reader import load_budget

    def load(limit: str) -> Budget:
        path = tmp_path / "b.yaml"
        path.write_text(BUDGET.format(limit))
        return load_budget(path)

    return load


@pytest.fixture
def simulated_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """The conftest of runs in processes of their own that measure without a model (tests/simulated/engine.py)."""
    from simulated.engine import CONFTEST

    paths = [str(Path(__file__).parent / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return CONFTEST


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share, for what takes long to make."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def measured_cache(shared_folder: Path) -> Path:
    """The cache of one run of the small budget, with every figure that it can have."""
    cache = shared_folder / "measured"
    with FileLock(f"{cache}.lock"):
        if not cache.is_dir():
            making = shared_folder / "measuring"
            making.mkdir()
            text = SMALL.replace("{max_weights:", "{max_ttft: 60 s, max_load_time: 60 s, max_weights:")
            (making / "small.yaml").write_text(text.replace("    marks: [slow]\n", ""))
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quant-budget", "small.yaml"]
            ended = subprocess.run([*command, "--quant-cache", "cache"], cwd=making, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stdout
            (making / "cache").rename(cache)
    return cache


@pytest.fixture
def measured_small(small: Path, measured_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small budget, whose figures are in the cache of its runs: for what comes after measuring."""
    caches = small.parent / "caches"
    shutil.copytree(measured_cache, caches / "pytest-quantbudget")
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    return small


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fails, instead of hanging, a test that waits for a pipe or reads without end."""

    def late(*_: object) -> None:
        raise AssertionError("took longer than a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of the fault table, where tests of it were run: see tests/end_to_end/test_fault_table.py."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    told = [dict(report.user_properties) for report in reports if getattr(report, "when", "") == "call"]
    rows = [properties["fault"] for properties in told if "fault" in properties]
    if rows:
        tests, lost, orphans, locks = (sum(row[name] for row in rows) for name in ("tests", "lost", "orphans", "locks"))
        terminalreporter.write_sep("=", "fault table")
        terminalreporter.write_line(
            f"fault table: {len(rows)} faults tried, {tests} tests affected, {lost} tests lost, {orphans} orphans, "
            f"{locks} locks left"
        )
