"""Progress on pytest's terminal: a line that is redrawn in place, or a line now and then in a log."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pytest_quantbudget.measure import progress
from pytest_quantbudget.measure.progress import Clock, State, View

REDRAW_S = 0.25
FIRST_S = 10.0
LINE_S = 60.0
LOOK_S = 1.0
WORKERS = "*.progress"  # the files in the exchange folder


def view(config: pytest.Config) -> View | None:
    """What suits the output: one line redrawn, lines in a log, or nothing with -q or without a terminal reporter."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.get_verbosity() < 0:
        return None
    terminal = Terminal(config, reporter)
    return StatusLine(terminal) if reporter.isatty() and os.environ.get("TERM") != "dumb" else Lines(terminal)


def worker_file(folder: Path, name: str) -> Path:
    """The file of a worker's state."""
    return folder / WORKERS.replace("*", name)


class Terminal:
    """pytest's terminal, written to from within a test."""

    def __init__(self, config: pytest.Config, reporter: pytest.TerminalReporter) -> None:
        self.reporter = reporter
        self.writer = config.get_terminal_writer()
        self.capture = config.pluginmanager.get_plugin("capturemanager")
        self.verbose = config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) > 0

    @property
    def width(self) -> int:
        """Columns of the terminal, now."""
        return self.writer.fullwidth

    @property
    def column(self) -> int:
        """Columns of the line that pytest has begun."""
        return max(0, self.writer.width_of_current_line)

    def put(self, text: str) -> None:
        """Write without pytest counting it as part of its line."""
        with self._uncaptured():
            self.writer.write_raw(text, flush=True)

    def line(self, text: str) -> None:
        """Write a line of its own, and after it once more what pytest had written of its line of dots."""
        with self._uncaptured():
            if self.verbose:
                # Then pytest begins the line of each test anew by itself.
                self.reporter.ensure_newline()
            begun = self.writer._current_line
            self.writer.write_raw(f"\n{text}\n{begun}" if begun else f"{text}\n", flush=True)

    def _uncaptured(self) -> AbstractContextManager[None]:
        # While a test runs, what goes to the terminal's file descriptor ends in the test's captured output.
        return self.capture.global_and_fixture_disabled() if self.capture else contextlib.nullcontext()


class StatusLine:
    """A line below the one that pytest has begun, redrawn in place, and wiped before pytest goes on with its own."""

    def __init__(self, terminal: Terminal, clock: Clock = time.monotonic) -> None:
        self.terminal, self.clock = terminal, clock
        self.drawn = self.below = False
        self.at = 0.0

    def show(self, state: State) -> None:
        """Draw, a few times a second at most."""
        now = self.clock()
        if self.drawn and now - self.at < REDRAW_S:
            return
        if not self.drawn:
            self.drawn, self.below = True, self.terminal.column > 0
            self.terminal.put("\n" if self.below else "")
        self.at = now
        # One column stays free: a full line would leave the cursor in a place that terminals do not agree on.
        self.terminal.put(f"\r{progress.line(state)[: self.terminal.width - 1]}\x1b[K")

    def clear(self) -> None:
        """Wipe it, and go back to where pytest stopped writing."""
        if self.drawn:
            self.drawn = False
            column = self.terminal.column % self.terminal.width
            back = f"\x1b[A\x1b[{column}C" if self.below and column else ""
            self.terminal.put(f"\r\x1b[K{back}")


class Lines:
    """A line a minute, the first after ten seconds: a short run prints none."""

    def __init__(self, terminal: Terminal, prefix: str = "", clock: Clock = time.monotonic) -> None:
        self.terminal, self.prefix, self.clock = terminal, prefix, clock
        self.due: float | None = None

    def show(self, state: State) -> None:
        """Print a line when it is due."""
        now = self.clock()
        if self.due is None:
            self.due = now + FIRST_S
        if now >= self.due:
            self.due = now + LINE_S
            self.terminal.line(self.prefix + progress.line(state))

    def clear(self) -> None:
        """Lines stay; the next follows a minute after the last."""


class Workers:
    """Shows the workers' states in the controller: lines, whatever the terminal is.

    A thread of its own, because the controller's main thread sleeps until a worker has finished a test.
    """

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.folder = folder
        self.ended = threading.Event()
        self.lines: dict[Path, Lines] = {}
        self.thread: threading.Thread | None = None
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and config.get_verbosity() >= 0:
            self.terminal = Terminal(config, reporter)
            self.thread = threading.Thread(target=self._watch, name="quantbudget-progress", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """The workers have ended: no more lines."""
        self.ended.set()
        if self.thread is not None:
            self.thread.join(2 * LOOK_S)

    def _watch(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
            while not self.ended.wait(LOOK_S):
                self.look()

    def look(self) -> None:
        """Read every worker's state, and show it where it is due."""
        for path in sorted(self.folder.glob(WORKERS)):
            state = progress.read_state(path)
            if state is not None:
                self.lines.setdefault(path, Lines(self.terminal, f"[{path.stem}] ")).show(state)
