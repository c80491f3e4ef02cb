"""How far a measurement is: counted from what its process says, and written as one line. Knows no terminal."""

from __future__ import annotations

import collections
import json
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.core.units import format_value

Clock = Callable[[], float]

RECENT_S = 30.0  # the rate is that of at least so long, and of the last half of a longer phase
STALE_S = 10.0  # a worker that has not told its state for so long is dead or done
SHORTEST_BAR = 8
LONGEST_BAR = 40


@dataclass(frozen=True)
class State:
    """Where one measurement is. `seconds` run since the phase began; `rate` is in answers a second."""

    method: str
    phase: str
    seconds: float
    done: int = 0
    total: int | None = None
    rate: float | None = None

    @property
    def left_s(self) -> float | None:
        """The time that the rest takes at this rate; None where that is not known."""
        return (self.total - self.done) / self.rate if self.total is not None and self.rate else None


class View(Protocol):
    """Who shows a state, or passes it on to who does."""

    def show(self, state: State) -> None:
        """This is the state now. Called often; how often something is written is the view's matter."""

    def clear(self) -> None:
        """Nothing is being measured now."""


class Progress:
    """Counts what one measuring process after another says; shows nothing without a view."""

    def __init__(self, view: View | None = None, clock: Clock = time.monotonic) -> None:
        self.view, self.clock = view, clock
        self.marks: collections.deque[tuple[float, int]] = collections.deque()  # time, answers by then
        self.now = State("", "", 0.0)
        self.began = 0.0

    def begin(self, method: str) -> None:
        """A process is about to be started."""
        self._phase(method, "start")

    def hear(self, message: Mapping[str, Any]) -> None:
        """What the process says."""
        if "phase" in message:
            self._phase(self.now.method, message["phase"])
        if "answered" in message:
            told = message["answered"]
            # Where memory ran out, some questions are answered twice.
            done = min(told["done"], told["total"])
            self.marks.append((self.clock(), done))
            self.now = replace(self.now, done=done, total=told["total"])

    def tick(self) -> None:
        """Some time has passed, a second at most."""
        if self.view is not None:
            now = self.clock()
            self.now = replace(self.now, seconds=now - self.began, rate=self._rate(now))
            try:
                self.view.show(self.now)
            except (OSError, ValueError):  # a terminal that is gone, or a full disk
                self.view = None

    def over(self) -> None:
        """The process has ended, or is being ended."""
        if self.view is not None:
            try:
                self.view.clear()
            except (OSError, ValueError):
                self.view = None

    def _phase(self, method: str, phase: str) -> None:
        self.began = self.clock()
        self.marks.clear()
        self.now = State(method, phase, 0.0)

    def _rate(self, now: float) -> float | None:
        """Answers a second, lately.

        Not from the start: what an earlier run had answered comes at once, and long prompts go first. Not of the last
        few seconds either: the answers of a batch come in a bunch, after a while without any. Time since the last
        answer counts, so that a rate falls when nothing comes.
        """
        if not self.marks:
            return None
        since = now - max(RECENT_S, (now - self.began) / 2)
        while len(self.marks) > 1 and self.marks[1][0] <= since:
            self.marks.popleft()
        at, before = self.marks[0]
        gained = self.marks[-1][1] - before
        return gained / (now - max(at, since)) if gained and now > max(at, since) else None


class StateFile:
    """A worker's state in a file, for the controller to read; rewritten at most once a second."""

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.at = -1.0

    def show(self, state: State) -> None:
        """Write it, unless that was just done."""
        if self.clock() - self.at >= 1.0:
            self.at = self.clock()
            self.path.write_text(json.dumps(asdict(state)), encoding="utf-8")

    def clear(self) -> None:
        """Nothing is being measured."""
        self.path.unlink(missing_ok=True)


def told(path: Path) -> State | None:
    """What a worker says in its file; None where there is none, or none that is whole and new."""
    try:
        if time.time() - path.stat().st_mtime > STALE_S:
            return None
        return State(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def line(state: State) -> str:
    """A line for a log: `bf16: task gsm8k 412/1,319 (31 %), 2.31/s, 6:33 left`."""
    if not state.total:
        return printable(f"{state.method}: {state.phase} {clock_time(state.seconds)}")
    share = f"({100 * state.done // state.total} %)"
    return printable(f"{state.method}: {state.phase} {_count(state)} {share}, " + ", ".join(_speed(state)))


def bar(state: State, width: int) -> str:
    """At most `width` columns. Where it is narrow, the bar goes first, then figures, then the name's end."""
    name = printable(f"{state.method}: {state.phase}")
    if not state.total:
        return _fitted(name, [clock_time(state.seconds)], width)
    figures = [_count(state), *_speed(state)]
    room = min(width - _columns(name) - len("  ".join(["", *figures])) - len(" []"), LONGEST_BAR)
    if room < SHORTEST_BAR:
        return _fitted(name, figures, width)
    full = room * state.done // state.total
    return "  ".join([f"{name} [{'#' * full}{'-' * (room - full)}]", *figures])


def clock_time(seconds: float) -> str:
    """Whole seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(state: State) -> str:
    return f"{state.done:,}/{state.total:,}"


def _speed(state: State) -> list[str]:
    """Rate and time left; before there is a rate, the time that it has taken."""
    if not state.rate or state.left_s is None:
        return [clock_time(state.seconds)]
    return [f"{format_value(state.rate, '')}/s", f"{clock_time(state.left_s)} left"]


def _fitted(name: str, figures: list[str], width: int) -> str:
    while len(figures) > 1 and _columns(name) + len("  ".join(["", *figures])) > width:
        del figures[1 if len(figures) > 2 else 0]  # the rate, then the count: how long it takes is what is asked for
    room = width - len("  ".join(["", *figures]))
    if room < 1:
        return _cut("  ".join(figures), width)
    return "  ".join([_cut(name, room), *figures])


def _cut(text: str, width: int) -> str:
    if _columns(text) <= width:
        return text
    while text and _columns(text) > max(0, width - 1):
        text = text[:-1]
    return text + "~" if width > 0 else ""


def _columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
