"""With pytest-xdist: workers share the controller's exchange folder, and the controller learns what was selected."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.measure import answers_file
from pytest_quantbudget.measure.progress import StateFile, View
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.plugin import live
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.plugin.session import Session


@dataclass(frozen=True)
class Shared:
    """What the processes of one run have in common; see `Runner`."""

    deadline: float
    folder: Path | None = None
    answers: Path | None = None
    view: View | None = None

    @classmethod
    def of(cls, config: pytest.Config, options: Options) -> Shared:
        """What the controller sent to this worker; in any other process, what the options say."""
        sent = getattr(config, "workerinput", None)
        if sent is None:
            answers = answers_file.beside(options.report) if options.report is not None else None
            return cls(time.monotonic() + options.timeout_s, answers=answers)
        folder = Path(sent["quantbudget_folder"])
        return cls(
            float(sent["quantbudget_deadline"]),
            folder,
            Path(sent["quantbudget_answers"]) if sent["quantbudget_answers"] else None,
            StateFile(live.worker_file(folder, sent["workerid"])),
        )


def register(config: pytest.Config, session: Session, runner: Runner | None) -> None:
    """Register the controller's hooks where pytest-xdist is loaded."""
    if config.pluginmanager.hasplugin("dsession") or config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Controller(config, session, runner), "quantbudget-xdist")


class _Controller:
    """Hooks that only xdist calls."""

    def __init__(self, config: pytest.Config, session: Session, runner: Runner | None) -> None:
        self.config = config
        self.session = session
        self.runner = runner
        self.workers: live.Workers | None = None

    def pytest_configure_node(self, node: Any) -> None:
        """Every worker measures into the same folder."""
        if self.runner is not None:
            node.workerinput["quantbudget_folder"] = str(self.runner.exchange)
            node.workerinput["quantbudget_deadline"] = self.runner.deadline
            node.workerinput["quantbudget_answers"] = str(self.runner.answers or "")
            self.workers = self.workers or live.Workers(self.config, self.runner.exchange)

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """The controller collects nothing itself."""
        self.session.select(ids)

    def pytest_sessionfinish(self) -> None:
        """What is printed from now on is the summary."""
        if self.workers is not None:
            self.workers.stop()
