"""How far a measurement is: counted from the messages of its process, and written as one line."""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.core.units import format_value

Clock = Callable[[], float]

RECENT_S = 30.0  # the rate is that of at least so long, and of the last half of a longer phase
STALE_S = 10.0  # a worker that has not written its state for so long is dead or done


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
    """Shows a state, or passes it on to another process."""

    def show(self, state: State) -> None:
        """Show the state. Called often; the view decides how often it writes."""

    def clear(self) -> None:
        """Nothing is being measured now."""


class Progress:
    """Counts the progress of one measuring process after another; shows nothing without a view."""

    def __init__(self, view: View | None = None, clock: Clock = time.monotonic) -> None:
        self.view, self.clock = view, clock
        self.marks: collections.deque[tuple[float, int]] = collections.deque()  # time, answers by then
        self.now = State("", "", 0.0)
        self.began = 0.0

    def begin(self, method: str) -> None:
        """A process is about to be started."""
        self._phase(method, "imports")

    def hear(self, message: Mapping[str, Any]) -> None:
        """Count a message of the process."""
        if "phase" in message:
            self._phase(self.now.method, message["phase"])
        if "answered" in message:
            total = message["answered"]["total"]
            # Where memory ran out, some questions are answered twice.
            done = min(message["answered"]["done"], total)
            self.marks.append((self.clock(), done))
            self.now = replace(self.now, done=done, total=total)

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


def read_state(path: Path) -> State | None:
    """The state in a worker's file; None where there is no file, or it is old or not whole."""
    try:
        if time.time() - path.stat().st_mtime > STALE_S:
            return None
        return State(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def line(state: State) -> str:
    """A line for people: `bf16: task gsm8k 412/1,319 (31 %), 2.31/s, 6:33 left`."""
    name, took = f"{state.method}: {state.phase}", clock_time(state.seconds)
    if not state.total:
        return printable(f"{name} {took}")
    # Before there is a rate, the time that the phase has taken.
    left, rate = state.left_s, format_value(state.rate or 0, "")
    rest = took if left is None else f"{rate}/s, {clock_time(left)} left"
    return printable(f"{name} {state.done:,}/{state.total:,} ({100 * state.done // state.total} %), {rest}")


def clock_time(seconds: float) -> str:
    """Whole seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
