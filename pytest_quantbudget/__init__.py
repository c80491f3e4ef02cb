"""pytest-quantbudget: quantization budgets as tests."""

from pytest_quantbudget.collect import QuantBudgetWarning
from pytest_quantbudget.fixtures import QuantModel
from pytest_quantbudget.hardware import Gpu
from pytest_quantbudget.measurement import Measurement
from pytest_quantbudget.yamlfile import BudgetError

__all__ = ["BudgetError", "Gpu", "Measurement", "QuantBudgetWarning", "QuantModel"]
