"""All that knows pytest."""

from pytest_quantbudget.plugin.fixtures import gpu, quant_measurement, quant_method, quant_model
from pytest_quantbudget.plugin.hooks import (
    pytest_cmdline_main,
    pytest_configure,
    pytest_generate_tests,
    pytest_load_initial_conftests,
    pytest_runtest_setup,
)
from pytest_quantbudget.plugin.options import pytest_addoption

__all__ = [
    "gpu",
    "pytest_addoption",
    "pytest_cmdline_main",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_load_initial_conftests",
    "pytest_runtest_setup",
    "quant_measurement",
    "quant_method",
    "quant_model",
]
