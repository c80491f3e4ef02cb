"""Warnings of limits that their questions cannot decide."""

from pathlib import Path

import pytest


def test_a_warning_is_one_and_can_be_made_an_error(pytester: pytest.Pytester, small: Path) -> None:
    small.write_text(small.read_text().replace("max_wordmath_drop: 60", "max_wordmath_drop: 2"))
    args = ("--quant-budget", small.name, "--collect-only", "-q")
    result = pytester.runpytest(*args)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "small.yaml:12",
            "  small.yaml:12: QuantBudgetWarning: bf16: max_wordmath_drop: with 12 *",
            "    budget: {max_weights_ratio: 0.51, max_wordmath_drop: 2, max_wordmath_flips: 70}",
            "                                      ^^^^^^^^^^^^^^^^^^^^",
            "",
        ],
        consecutive=True,
    )
    result = pytester.runpytest(*args, "-W", "error::pytest_quantbudget.QuantBudgetWarning")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: small.yaml:12: bf16: max_wordmath_drop: with 12 *"])
