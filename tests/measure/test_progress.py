"""How far a measurement is: the line, its figures, and that it leaves pytest's own output as it was."""

import json
import os
import time
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


def test_a_line_is_redrawn_four_times_a_second_and_wiped() -> None:
    clock, screen = Clock(), Screen()
    status = live.StatusLine(screen, clock)  # type: ignore[arg-type]
    status.clear()
    assert screen.written == []
    for _ in range(1000):
        status.show(HALF)
        clock.now += 0.01
    assert len([text for text in screen.written if "bf16" in text]) == pytest.approx(40, abs=2)
    assert screen.written[0] == "\n"
    status.clear()
    status.clear()
    assert screen.written[-1] == "\r\x1b[K\x1b[A\x1b[11C"
    assert screen.written.count(screen.written[-1]) == 1
    screen.column, screen.width, screen.written = 0, 12, []
    status.show(HALF)
    assert screen.written[1] == "\rbf16: task \x1b[K"
    status.clear()
    assert screen.written[0] == ""
    assert screen.written[-1] == "\r\x1b[K"


def test_a_log_gets_a_line_after_ten_seconds_and_then_one_a_minute() -> None:
    clock, screen = Clock(), Screen()
    lines = live.Lines(screen, "[gw1] ", clock)  # type: ignore[arg-type]
    for _ in range(99):
        lines.show(HALF)
        clock.now += 0.1
    assert screen.written == []
    for _ in range(3):
        for _ in range(599):
            lines.show(HALF)
            clock.now += 0.1
        lines.clear()
    assert len(screen.written) == 3
    assert screen.written[0] == "[gw1] " + progress.line(HALF)


def test_a_worker_tells_its_state_in_a_file(tmp_path: Path) -> None:
    clock = Clock()
    path = live.worker_file(tmp_path, "gw1")
    file = StateFile(path, clock)
    file.show(HALF)
    assert progress.read_state(path) == HALF
    path.write_text("")
    file.show(HALF)
    assert path.read_text() == "", "once a second"
    clock.now += 1
    file.show(HALF)
    assert progress.read_state(path) == HALF
    os.utime(path, (0, time.time() - 60))
    assert progress.read_state(path) is None, "its worker is dead"
    path.write_text(json.dumps({"method": "bf16"}))
    assert progress.read_state(path) is None
    path.write_text('{"method": "b')
    assert progress.read_state(path) is None
    file.clear()
    file.clear()
    assert progress.read_state(path) is None


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
    lines.due = lines.clock()
    workers.look()
    workers.look()
    assert screen.written == ["[gw1] " + progress.line(HALF)]
