"""pytest-quantbudget: quantization budgets as tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_quantbudget.core.gpus import Gpu
    from pytest_quantbudget.core.measurement import Measurement
    from pytest_quantbudget.core.problems import BudgetError
    from pytest_quantbudget.plugin.fixtures import QuantModel
    from pytest_quantbudget.plugin.stash import QuantBudgetWarning

__all__ = ["BudgetError", "Gpu", "Measurement", "QuantBudgetWarning", "QuantModel"]
MODULES = {
    "BudgetError": "core.problems",
    "Gpu": "core.gpus",
    "Measurement": "core.measurement",
    "QuantBudgetWarning": "plugin.stash",
    "QuantModel": "plugin.fixtures",
}

if not TYPE_CHECKING:  # type checkers know the names above, and should refuse all others

    def __getattr__(name: str) -> object:
        """A public name, imported when it is asked for: every run of pytest imports this package."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
