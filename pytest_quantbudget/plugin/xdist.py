"""With pytest-xdist: workers share the controller's exchange folder, and the controller learns what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantbudget.plugin.session import Session

if TYPE_CHECKING:
    from pytest_quantbudget.plugin.live import Workers


class Controller:
    """Hooks that only xdist calls, in its controller."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.workers: Workers | None = None

    def pytest_configure_node(self, node: Any) -> None:
        """Every worker measures into the same folder."""
        from pytest_quantbudget.measure.runner import Runner
        from pytest_quantbudget.plugin.live import Workers

        runner = self.session.measurer
        if isinstance(runner, Runner):
            node.workerinput["quantbudget_folder"] = str(runner.exchange)
            node.workerinput["quantbudget_deadline"] = runner.deadline
            self.workers = self.workers or Workers(self.config, runner.exchange)

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """The controller collects nothing itself."""
        self.session.select(ids)

    def pytest_sessionfinish(self) -> None:
        """What is printed from now on is the summary."""
        if self.workers is not None:
            self.workers.stop()
