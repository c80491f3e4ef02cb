"""What the plugin's modules share: the key under which pytest keeps the run's session, and the warning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_quantbudget.plugin.session import Session

SESSION: pytest.StashKey[Session] = pytest.StashKey()


class QuantBudgetWarning(pytest.PytestWarning):
    """A limit that its questions cannot decide, or a run that cannot keep its results."""
