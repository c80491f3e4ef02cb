"""pytest-quantbudget: quantization budgets as tests."""

from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.plugin.collect import QuantBudgetWarning
from pytest_quantbudget.plugin.fixtures import QuantModel

__all__ = ["BudgetError", "Gpu", "Measurement", "QuantBudgetWarning", "QuantModel"]
