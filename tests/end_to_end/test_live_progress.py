"""Progress in real runs: in a log, on a terminal, of workers; and that it leaves pytest's own output as it was."""

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SOON = """
from pytest_quantbudget.plugin import live

live.FIRST_S = live.LINE_S = 0.3
"""


@pytest.fixture
def longer(pytester: pytest.Pytester, small: Path, simulated_engine: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small budget with enough questions that there is something to see."""
    monkeypatch.setenv("SIMULATED_SECONDS", "0.6:0.005")
    pytester.makeconftest(simulated_engine + SOON)
    small.write_text(small.read_text().replace("questions: 12", "questions: 200, batch_size: 16"))
    return small


LINE = re.compile(
    r"(\[gw\d\] )?(fp32|bf16): (imports|load|workload|reply|task wordmath)( [\d,]+/200 \(\d+ %\),.*| \d+:\d\d)"
)


def progress_lines(result: pytest.RunResult) -> list[str]:
    """The lines of progress; above the table, there is nothing else that begins as they do."""
    above = itertools.takewhile(lambda line: " quantization budget " not in line, result.outlines)
    told = [line for line in above if re.match(r"(\[gw\d\] )?(fp32|bf16): ", line)]
    assert all(LINE.fullmatch(line) for line in told), told
    return told


@pytest.mark.parametrize("more", [(), pytest.param(("-v", "-s"), marks=pytest.mark.slow)], ids=" ".join)
def test_a_log_shows_lines_and_intact_results(pytester: pytest.Pytester, longer: Path, more: tuple[str, ...]) -> None:
    result = pytester.runpytest_subprocess("--quant-budget", longer.name, "--quant-no-cache", "-W", "error", *more)
    result.assert_outcomes(passed=5)
    told = progress_lines(result)
    assert any(re.search(r"task wordmath \d+/200 \(\d+ %\), [\d.]+/s, \d:\d\d left", line) for line in told), told
    if "-v" in more:
        result.stdout.fnmatch_lines(
            ["small.yaml::fp32::max_weights PASSED*", "small.yaml::bf16::max_weights_ratio PASSED*"]
        )
    else:
        begun = [line for line in result.outlines if re.fullmatch(r"(small\.yaml )?\.*( +\[100%\])?", line) and line]
        assert all(line.startswith("small.yaml ") for line in begun)
        assert re.fullmatch(r"small\.yaml \.{5} +\[100%\]", begun[-1]), "the line of dots is whole"


@pytest.mark.slow
def test_quiet_and_reused_runs_print_nothing_and_short_ones_neither(
    pytester: pytest.Pytester, longer: Path, simulated_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--quant-budget", longer.name, "-k", "fp32", "--quant-cache")
    quiet = pytester.runpytest_subprocess(*arguments, "kept", "-q")
    quiet.assert_outcomes(passed=2, deselected=3)
    assert progress_lines(quiet) == []
    reused = pytester.runpytest_subprocess(*arguments, "kept")
    assert [line for line in reused.outlines if LINE.fullmatch(line)] == []
    pytester.makeconftest(simulated_engine)
    monkeypatch.setenv("SIMULATED_SECONDS", "0:0")
    short = pytester.runpytest_subprocess(*arguments, "other")
    assert progress_lines(short) == []


@pytest.mark.slow
def test_workers_of_xdist_are_shown_by_the_controller(pytester: pytest.Pytester, longer: Path) -> None:
    longer.write_text(longer.read_text().replace("questions: 200", "questions: 900"))
    arguments = ("--quant-budget", longer.name, "--quant-no-cache", "-k", "fp32", "-n", "2")
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=2)
    told = [line for line in result.outlines if re.match(r"\[gw\d\] fp32: ", line)]
    assert told
    summary = next(i for i, line in enumerate(result.outlines) if "quantization budget small.yaml" in line)
    assert not any(line in told for line in result.outlines[summary:])


def heed_ctrl_c() -> None:
    """A process that is started in the background may ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Run:
    """pytest in a pseudo-terminal of 100 columns."""

    def __init__(self, *arguments: str) -> None:
        self.fd, slave = pty.openpty()
        environ = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
        command = [sys.executable, "-m", "pytest", "--quant-budget", "small.yaml", "--quant-no-cache", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environ,
            preexec_fn=heed_ctrl_c,
        )
        os.close(slave)
        self.said = ""

    def read(self, enough: Callable[[str], bool] = lambda said: False) -> str:
        """What it writes until that is enough, or until it ends."""
        ends = time.monotonic() + 120
        while not enough(self.said) and time.monotonic() < ends:
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                break
            if not data:
                break
            self.said += data.decode()
        return self.said


def shown(said: str) -> list[str]:
    """What a terminal shows in the end: the lines, after carriage returns, erasing and moves of the cursor."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[^\x1b]", said):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token == "\x1b[K":
            lines[row] = lines[row][:column]
        elif token == "\x1b[A":
            row -= 1
        elif token.endswith("C") and token.startswith("\x1b"):
            column += int(token[2:-1])
        elif not token.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.slow), ("-v",)], ids=" ".join)
def test_a_line_is_drawn_and_wiped_on_a_terminal(longer: Path, more: tuple[str, ...]) -> None:
    run = Run(*more)
    said = run.read()
    assert run.process.wait() == 0
    assert re.search(r"\rfp32: (imports|load) 0:\d\d\x1b\[K", said)
    for method in ("fp32", "bf16"):
        assert re.search(rf"\r{method}: task wordmath \d+/200 \(\d+ %\), [\d.]+/s, 0:\d\d left\x1b\[K", said)
    lines = shown(said)
    assert not any("left" in line or "task wordmath" in line for line in lines), lines
    before = lines.index(next(line for line in lines if line.startswith("collected 5 items")))
    if "-v" in more:
        ids = ["fp32::max_weights", "fp32::min_wordmath", "bf16::max_weights_ratio"]
        results = [re.sub(" +", " ", line) for line in lines[before + 2 : before + 5]]
        assert results == [f"small.yaml::{name} PASSED [ {20 * (i + 1)}%]" for i, name in enumerate(ids)]
    else:
        assert re.fullmatch(r"small\.yaml \.\.\.\.\. +\[100%\]", lines[before + 2])
        assert len(lines[before + 2]) == 99, "the percentage is where it would be without progress"
    assert lines[-2].endswith("=") or lines[-1].endswith("=")


def test_what_is_imported_first_is_no_silence(longer: Path, simulated_engine: str) -> None:
    Path("slow_imports.py").write_text("import time\n\ntime.sleep(1.5)\nimport simulated.preload\n")
    Path("conftest.py").write_text(simulated_engine.replace("simulated.preload", "slow_imports"))
    run = Run("-k", "fp32 and max_weights")
    said = run.read()
    assert run.process.wait() == 0
    assert "\rfp32: imports 0:01\x1b[K" in said
    assert not any("imports" in line for line in shown(said))


def test_ctrl_c_leaves_a_clean_line(longer: Path) -> None:
    longer.write_text(longer.read_text().replace("questions: 200", "questions: 2000"))
    run = Run()
    run.read(lambda said: "/2,000" in said)
    os.kill(run.process.pid, signal.SIGINT)
    lines = shown(run.read())
    assert run.process.wait() == pytest.ExitCode.INTERRUPTED
    assert not any("left" in line or "/2,000" in line for line in lines), lines
    assert any(re.fullmatch("!+ KeyboardInterrupt !+", line) for line in lines)


@pytest.mark.parametrize("more", [("--collect-only",), ("-q",)], ids=" ".join)
def test_nothing_is_shown_with_q_or_while_collecting(longer: Path, more: tuple[str, ...]) -> None:
    run = Run(*more, "-k", "fp32 and max_weights")
    said = run.read()
    assert run.process.wait() == 0
    assert not re.search("fp32: (imports|load|task)", said)
