"""In the controller: collects verdicts from test reports; writes the report and the table."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_quantbudget.budget import update
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import display_path
from pytest_quantbudget.core.safetext import Line, quoted, safe
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, WITHIN, Verdict
from pytest_quantbudget.measure import answers_file, flip_rates
from pytest_quantbudget.plugin import summary
from pytest_quantbudget.plugin.collect import verdict_of
from pytest_quantbudget.plugin.keeping import Keeper
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import document, layout, table

NOTHING = "quantization budget run without a verdict"


class Recorder:
    """Hooks that only one process of a run has."""

    def __init__(self, config: pytest.Config, session: Session, options: Options) -> None:
        self.config = config
        self.session = session
        self.options = options
        self.report: document.Report | None = None
        self.written: list[str] = []
        self.whole = True  # all that was to be written has been
        self.updated: list[Line] = []
        self.printed: dict[str, str] = {}  # the last lines of a process, and the test under which they stand

    def pytest_sessionstart(self) -> None:
        """Get ready what the run will write and show.

        A CI that takes its machine back sends SIGTERM: what was measured is reported then, as after Ctrl-C.
        """
        if not self.session.budgets.loaded:
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, _interrupt)
                self.config.add_cleanup(_restore)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A verdict from the test's own body, or from what kept the body from running."""
        # A worker that crashed leaves a report without properties.
        mine = "quant.name" in dict(report.user_properties) or report.nodeid in self.session.limits
        if not mine or report.when == "teardown":
            return
        verdict = verdict_of(report.user_properties)
        if verdict is None and report.skipped:
            verdict = Verdict(SKIPPED, _reason(report))
        elif verdict is None and report.failed:
            when = f"{report.when}: " if report.when in ("setup", "call") else ""
            verdict = Verdict(FAILED, safe(when + report.longreprtext.strip().splitlines()[-1]))
        if verdict is not None:
            self.session.record(report.nodeid, verdict)
            self._print_once(report, verdict.detail)

    def _print_once(self, report: pytest.TestReport, detail: str) -> None:
        """What a process printed last stands under one test; the others that failed by it say which."""
        first = self.printed.setdefault(detail, report.nodeid)
        # What another plugin makes of a failure has no entries.
        entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", ())
        for entry in entries if detail and first != report.nodeid else ():
            told = f"what was printed last stands under {first}"
            entry.lines = [line.replace(quoted(detail), told) for line in entry.lines]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A limit without a verdict fails the run. The report is written however the run ended."""
        option = self.config.option
        limits = self.session.limits
        if getattr(option, "setuponly", False) or getattr(option, "setupplan", False):
            limits.clear()
        skipped = self.session.fail_on_skip and SKIPPED in {limit.verdict.outcome for limit in limits.values()}
        if (self.session.not_run() or skipped) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if not limits:
            return
        measurer = self.session.measurer
        measurements = measurer.measurements()
        if self.options.update:
            self.update(measurements)
        root = self.session.root
        judged = self.session.judged(measurements)
        notes = measurer.notes([part.budget for part in judged])
        machine, commit, judged_from = measurer.origin(root)
        self.report = document.build(root, judged, machine, commit, judged_from, measurer.merged_from, notes)
        if self.options.history is not None:
            keeper = Keeper(self.options.history, self.written)
            self.report = keeper.keep(self.session, self.report, judged)
            self.whole = keeper.whole
        if self.options.report is not None:
            self.write(self.options.report, self.report)
        if self.options.html is not None:
            self.write_page(self.options.html, self.report)
        for target in summary.targets(self.options, os.environ):
            self._try("summary", target.path, partial(target.write, self.report), target.name, needed=target.asked)
        if not self.whole and session.exitstatus == pytest.ExitCode.OK:
            # Who reads what was asked for must not take an old one, or none, for this run's.
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        cache = self.options.cache if self.options.store is not None else None
        if cache is not None and self.options.stored is None:
            flip_rates.remember(cache, self.session.budgets.loaded.values(), measurements)

    def update(self, measurements: Mapping[str, Measurement]) -> None:
        """Write measured values into the budgets, as --quant-update asks."""
        limits, texts = self.session.limits, self.session.budgets.texts
        judged = self.session.judged(measurements)
        updates, self.updated = update.run(judged, texts, self.options.update, self.options.update_rate)
        limits.update({id_: replace(limits[id_], updated=done) for id_, done in updates.items()})

    def write(self, target: Path, report: document.Report) -> None:
        """Write the JSON report, and the answers beside it; a disk that refuses them must not hide the verdicts."""
        beside = answers_file.beside(target)
        self._try("report", target, lambda: document.write(target, report))
        self._try("answers", beside, lambda: answers_file.write(beside, document.measurements(report)))

    def write_page(self, target: Path, report: document.Report) -> None:
        """Write the HTML page."""
        from pytest_quantbudget.report.page import render

        self._try("page", target, lambda: render.write(target, report))

    def _try(self, what: str, target: Path, write: Callable[[], bool], name: str = "", *, needed: bool = True) -> None:
        """Write a file, and say so, or why not; one that is `needed` fails the run where it cannot be written."""
        shown = name or display_path(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if write():
                self.written.append(f"{what} written to {shown}")
        except OSError as error:
            self.whole = self.whole and not needed
            why = error.strerror or error
            self.written.append(f"the {what} could not be written to {shown}: {why}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The trade-off table."""
        if self.report is None:
            return
        on_terminal = terminalreporter.isatty()
        room = layout.room(on_terminal=on_terminal)
        replies = self.config.get_verbosity() > 0
        for line in (*table.lines(self.report, replies=replies, room=room), *self.updated):
            if line.title:
                terminalreporter.write_sep("=", line.text)
                continue
            # In a log each fact stays on its line, for those who search it.
            for text in layout.wrapped(line.text, room) if on_terminal else [line.text]:
                terminalreporter.write_line(text, **line.markup)
        for written in (*self.written, *summary.commands(self.options, self.session, self.report, os.environ)):
            terminalreporter.write_line(written)
        judged = {WITHIN, OVER, FAILED} & {limit.verdict.outcome for limit in self.session.limits.values()}
        if not judged:
            # pytest counts every kind of report in its last line.
            terminalreporter.stats.setdefault(NOTHING, []).append(self)


def _restore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
