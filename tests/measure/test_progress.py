"""How far a measurement is: the line, its figures, and that it leaves pytest's own output as it was."""

import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pytest_quantbudget.measure import progress
from pytest_quantbudget.measure.progress import Progress, State, StateFile
from pytest_quantbudget.plugin import live

HALF = State("bf16", "task gsm8k", 179.0, 412, 1319, 2.31)


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A terminal that keeps what is written."""

    width = 80
    column = 11

    def __init__(self) -> None:
        self.written: list[str] = []

    def put(self, text: str) -> None:
        self.written.append(text)

    line = put


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (HALF, "bf16: task gsm8k 412/1,319 (31 %), 2.31/s, 6:32 left"),
        (State("bf16", "load", 7.9), "bf16: load 0:07"),
        (State("bf16", "load", 3725.0), "bf16: load 1:02:05"),
        (State("bf16", "task a", 12.0, 0, 40), "bf16: task a 0/40 (0 %), 0:12"),
        (State("bf16", "task a", 12.0, 3, None), "bf16: task a 0:12"),
        (State("bf16", "task a", 12.0, 3, 40, 0.0009), "bf16: task a 3/40 (7 %), 0.0009/s, 11:25:11 left"),
        (State("bf16", "task a", 12.0, 40, 40, 4.0), "bf16: task a 40/40 (100 %), 4.00/s, 0:00 left"),
        (State("bf16", "task \x1b[2Jx", 1.0), "bf16: task \ufffd[2Jx 0:01"),
    ],
)
def test_a_line_says_method_phase_count_rate_and_time_left(state: State, told: str) -> None:
    assert progress.line(state) == told


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (79, "bf16: task gsm8k [#########---------------------]  412/1,319  2.31/s  6:32 left"),
        (60, "bf16: task gsm8k [###--------]  412/1,319  2.31/s  6:32 left"),
        (50, "bf16: task gsm8k  412/1,319  2.31/s  6:32 left"),
        (40, "bf16: task gsm8k  412/1,319  6:32 left"),
        (30, "bf16: task gsm8k  6:32 left"),
        (20, "bf16: ta~  6:32 left"),
        (5, "6:32~"),
        (1, "~"),
        (0, ""),
    ],
)
def test_a_bar_fits_its_terminal(width: int, told: str) -> None:
    assert progress.bar(HALF, width) == told
    assert len(progress.bar(HALF, width)) <= width


def test_a_bar_with_long_and_wide_names_fits_too() -> None:
    for name in ("task " + "x" * 500, "task " + "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 50):
        for width in (0, 1, 9, 20, 39, 60, 99):
            for state in (State("bf16", name, 9e9, 10**9, 10**10, 1e-9), State("bf16", name, 1.0)):
                wide = progress.bar(state, width).count("\N{CJK UNIFIED IDEOGRAPH-4E00}")
                assert len(progress.bar(state, width)) + wide <= width


def answered(done: int, total: int = 100) -> dict[str, object]:
    return {"answered": {"task": "t", "done": done, "total": total, "extract": "strict", "answers": []}}


def test_the_rate_is_that_of_the_last_part() -> None:
    clock, screen = Clock(), Screen()
    states: list[State] = []

    class View:
        def show(self, state: State) -> None:
            states.append(state)

        def clear(self) -> None:
            screen.put("cleared")

    told = Progress(View(), clock)
    told.begin("bf16")
    told.hear({"phase": "task t"})
    told.tick()
    assert (states[-1].done, states[-1].total, states[-1].rate, states[-1].left_s) == (0, None, None, None)
    told.hear(answered(500, 2000))  # an earlier run's
    told.tick()
    assert (states[-1].done, states[-1].rate) == (500, None)
    for second in range(1, 101):
        clock.now += 1
        told.hear(answered(500 + second, 2000))
    told.tick()
    assert states[-1].rate == pytest.approx(1.0)
    assert states[-1].left_s == pytest.approx(1400)
    clock.now += 25  # nothing for a while
    told.tick()
    assert states[-1].rate == pytest.approx(38 / 62.5, abs=0.01)
    clock.now += 1000
    told.tick()
    assert (states[-1].rate, states[-1].left_s, states[-1].seconds) == (None, None, 1125)
    told.hear(answered(2031, 2000))
    told.tick()
    assert states[-1].done == 2000, "answered twice after memory ran out"
    told.hear({"phase": "task u"})
    clock.now += 2
    told.tick()
    assert states[-1] == State("bf16", "task u", 2.0)
    told.over()
    assert screen.written == ["cleared"]


def test_a_terminal_that_is_gone_costs_nothing() -> None:
    class Gone:
        def show(self, state: State) -> None:
            raise BrokenPipeError

        def clear(self) -> None:
            raise ValueError("closed")

    told = Progress(Gone())
    told.begin("bf16")
    told.over()
    told.tick()
    assert told.view is None
    told = Progress(Gone())
    told.begin("bf16")
    told.tick()
    assert told.view is None


def test_a_bar_is_redrawn_four_times_a_second_and_wiped() -> None:
    clock, screen = Clock(), Screen()
    bar = live.Bar(screen, clock)  # type: ignore[arg-type]
    bar.clear()
    assert screen.written == []
    for _ in range(1000):
        bar.show(HALF)
        clock.now += 0.01
    assert len([text for text in screen.written if "bf16" in text]) == pytest.approx(40, abs=2)
    assert screen.written[0] == "\n"
    bar.clear()
    bar.clear()
    assert screen.written[-1] == "\r\x1b[K\x1b[A\x1b[11C"
    assert screen.written.count(screen.written[-1]) == 1
    screen.column, screen.written = 0, []
    bar.show(HALF)
    bar.clear()
    assert screen.written[0] == ""
    assert screen.written[-1] == "\r\x1b[K"


def test_a_log_gets_a_line_a_minute_after_the_first_minute() -> None:
    clock, screen = Clock(), Screen()
    lines = live.Lines(screen, "[gw1] ", clock)  # type: ignore[arg-type]
    for _ in range(3):
        for _ in range(599):
            lines.show(HALF)
            clock.now += 0.1
        lines.clear()
    assert len(screen.written) == 2
    assert screen.written[0] == "[gw1] " + progress.line(HALF)


def test_a_worker_tells_its_state_in_a_file(tmp_path: Path) -> None:
    clock = Clock()
    path = live.worker_file(tmp_path, "gw1")
    file = StateFile(path, clock)
    file.show(HALF)
    assert progress.told(path) == HALF
    path.write_text("")
    file.show(HALF)
    assert path.read_text() == "", "once a second"
    clock.now += 1
    file.show(HALF)
    assert progress.told(path) == HALF
    os.utime(path, (0, time.time() - 60))
    assert progress.told(path) is None, "its worker is dead"
    path.write_text(json.dumps({"method": "bf16"}))
    assert progress.told(path) is None
    path.write_text('{"method": "b')
    assert progress.told(path) is None
    file.clear()
    file.clear()
    assert progress.told(path) is None


# Real runs.

SOON = """
from pytest_quantbudget.plugin import live

live.LINE_S = 0.3
"""


@pytest.fixture
def longer(pytester: pytest.Pytester, small: Path) -> Path:
    """The small budget with enough questions that there is something to see."""
    pytester.makeconftest(SOON)
    small.write_text(small.read_text().replace("questions: 12", "questions: 200, batch_size: 16"))
    return small


LINE = re.compile(
    r"(\[gw\d\] )?(fp32|bf16): (start|load|workload|reply|task wordmath)( [\d,]+/200 \(\d+ %\),.*| \d+:\d\d)"
)


def progress_lines(result: pytest.RunResult) -> list[str]:
    """The lines of progress; above the table, there is nothing else that begins as they do."""
    above = itertools.takewhile(lambda line: " quantization budget " not in line, result.outlines)
    told = [line for line in above if re.match(r"(\[gw\d\] )?(fp32|bf16): ", line)]
    assert all(LINE.fullmatch(line) for line in told), told
    return told


@pytest.mark.model
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
        dots = [line for line in result.outlines if re.fullmatch(r"(small\.yaml )?\.+( +\[100%\])?", line)]
        assert sum(line.replace(".yaml", "").count(".") for line in dots) == 5
        assert dots[-1].endswith("[100%]")


@pytest.mark.slow
def test_quiet_and_reused_runs_print_nothing_and_short_ones_neither(pytester: pytest.Pytester, longer: Path) -> None:
    arguments = ("--quant-budget", longer.name, "-k", "fp32", "--quant-cache")
    quiet = pytester.runpytest_subprocess(*arguments, "kept", "-q")
    quiet.assert_outcomes(passed=2, deselected=3)
    assert progress_lines(quiet) == []
    reused = pytester.runpytest_subprocess(*arguments, "kept")
    assert [line for line in reused.outlines if LINE.fullmatch(line)] == []
    pytester.makeconftest("")
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


def test_workers_are_looked_at_where_somebody_listens(pytester: pytest.Pytester, tmp_path: Path) -> None:
    live.worker_file(tmp_path, "gw1").write_text(json.dumps(asdict(HALF)))
    quiet = live.Workers(pytester.parseconfigure("-q"), tmp_path)
    assert quiet.thread is None
    quiet.stop()
    workers = live.Workers(pytester.parseconfigure(), tmp_path)
    workers.stop()
    assert workers.thread is not None
    assert not workers.thread.is_alive()
    screen = Screen()
    workers.terminal = screen  # type: ignore[assignment]
    workers.look()
    (lines,) = workers.lines.values()
    lines.at = lines.clock() - 61
    workers.look()
    workers.look()
    assert screen.written == ["[gw1] " + progress.line(HALF)]


def heed_ctrl_c() -> None:
    """Whoever runs these tests in the background has them ignore it."""
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


@pytest.mark.model
@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.slow), ("-v",)], ids=" ".join)
def test_a_bar_is_drawn_and_wiped_on_a_terminal(longer: Path, more: tuple[str, ...]) -> None:
    run = Run(*more)
    said = run.read()
    assert run.process.wait() == 0
    for method in ("fp32", "bf16"):
        assert re.search(rf"\r{method}: load  0:0\d\x1b\[K", said)
        assert re.search(rf"\r{method}: task wordmath \[#+-+\]  \d+/200  [\d.]+/s  0:\d\d left\x1b\[K", said)
    lines = shown(said)
    assert not any("left" in line or "task wordmath" in line for line in lines), lines
    before = lines.index(next(line for line in lines if line.startswith("collected 5 items")))
    if "-v" in more:
        ids = ["fp32::max_weights", "fp32::min_wordmath", "bf16::max_weights_ratio"]
        results = [re.sub(" +", " ", line) for line in lines[before + 2 : before + 5]]
        assert results == [f"small.yaml::{name} PASSED [ {20 * (i + 1)}%]" for i, name in enumerate(ids)]
    else:
        assert re.fullmatch(r"small\.yaml \.\.\.\.\. +\[100%\]", lines[before + 2])
        assert len(lines[before + 2]) == 99, "the percentage is where it would be without a bar"
    assert lines[-2].endswith("=") or lines[-1].endswith("=")


@pytest.mark.model
def test_ctrl_c_leaves_a_clean_line(longer: Path) -> None:
    longer.write_text(longer.read_text().replace("questions: 200", "questions: 2000"))
    run = Run()
    run.read(lambda said: "#-" in said)
    os.kill(run.process.pid, signal.SIGINT)
    lines = shown(run.read())
    assert run.process.wait() == pytest.ExitCode.INTERRUPTED
    assert not any("left" in line or "/2,000" in line for line in lines), lines
    assert any(re.fullmatch("!+ KeyboardInterrupt !+", line) for line in lines)


@pytest.mark.parametrize("more", [("--collect-only",), ("-q",)], ids=" ".join)
def test_nothing_is_shown_where_nobody_wants_it(longer: Path, more: tuple[str, ...]) -> None:
    run = Run(*more, "-k", "fp32 and max_weights")
    said = run.read()
    assert run.process.wait() == 0
    assert "fp32: " not in said
