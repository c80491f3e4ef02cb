"""Warnings of limits that their questions cannot decide, which point at the budget's lines."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest

from pytest_quantbudget.core.problems import Problem, display_path
from pytest_quantbudget.plugin.stash import QuantBudgetWarning


class Doubts:
    """Warns when collection begins: pytest's own warnings of the time before it point at the code that warns."""

    def __init__(self, doubts: Sequence[Problem]) -> None:
        self.doubts = doubts

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Issue each warning, under the filters of the run. Raises UsageError for one that is an error (`-W error`)."""
        if session.config.pluginmanager.is_blocked("warnings"):
            return
        for doubt in self.doubts:
            with warnings.catch_warnings(record=True) as records:
                try:
                    warning = QuantBudgetWarning(doubt.message)
                    warnings.warn_explicit(warning, None, display_path(doubt.file), doubt.line)
                except QuantBudgetWarning:
                    raise pytest.UsageError(str(doubt)) from None
            for record in records:
                # The line as it may be shown, and with the limit marked.
                record.line = "\n  ".join(doubt.excerpt)
                told = {"warning_message": record, "when": "collect", "nodeid": "", "location": None}
                session.config.hook.pytest_warning_recorded.call_historic(kwargs=told)
