"""With pytest-xdist: workers share the controller's exchange folder, and the controller learns what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.measure.progress import StateFile
from pytest_quantbudget.plugin import live
from pytest_quantbudget.plugin.session import Session


def connect(config: pytest.Config, session: Session) -> None:
    """Join a worker to its run, or get the controller ready for workers. Without xdist, nothing."""
    handed = getattr(config, "workerinput", None)
    if handed is not None:
        session.folder = Path(handed["quantbudget_folder"])
        session.deadline = float(handed["quantbudget_deadline"])
        session.worker = int(str(handed["workerid"]).removeprefix("gw"))
        session.answers = Path(handed["quantbudget_answers"]) if handed["quantbudget_answers"] else None
        session.view = StateFile(live.worker_file(session.folder, handed["workerid"]))
    elif config.pluginmanager.hasplugin("dsession") or config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Controller(config, session), "quantbudget-xdist")


class _Controller:
    """Hooks that only xdist calls; registered only where it is loaded."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.workers: live.Workers | None = None

    def pytest_configure_node(self, node: Any) -> None:
        """Every worker measures into the same folder."""
        node.workerinput["quantbudget_folder"] = str(self.session.exchange)
        node.workerinput["quantbudget_deadline"] = self.session.deadline
        node.workerinput["quantbudget_answers"] = str(self.session.answers or "")
        self.workers = self.workers or live.Workers(self.config, self.session.exchange)

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """The controller collects nothing itself."""
        self.session.select(ids)

    def pytest_sessionfinish(self) -> None:
        """What is printed from now on is the summary."""
        if self.workers is not None:
            self.workers.stop()
