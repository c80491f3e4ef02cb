"""Figures for other programs are those that limits are judged on, in base units."""

from dataclasses import replace
from pathlib import Path

import pytest
import stored_reports

from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.report.document import Report
from pytest_quantbudget.report.figures import Taken, base_of, figures

ALL = {"max_vram", "max_weights", "min_sums", "max_sums_drop", "max_kl", "max_ppl_ratio"}


def taken(report: Report) -> dict[tuple[str, str], Taken]:
    return {(each.method, each.name): each for each in figures(report.budgets[0], report.cpu_of)}


def test_they_are_the_figures_that_limits_are_judged_on(tmp_path: Path) -> None:
    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    report = stored_reports.report(budget)
    found = taken(report)
    verdicts = stored_reports.judged(tmp_path, stored_reports.TEXT, report)
    assert {name.split()[1] for name in verdicts} == ALL
    for name, verdict in verdicts.items():
        method, _, limit = name.partition(" ")
        each = found[method, limit.partition("_")[2]]
        assert each.figure.value == verdict.measured
        assert (each.low, each.high, each.figure.n or None) == (verdict.low, verdict.high, verdict.n)
        assert each.unit == base_of(verdict.unit)


def test_what_has_no_limit_is_among_them_and_the_baseline_is_not_compared_with_itself(tmp_path: Path) -> None:
    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    found = taken(stored_reports.report(budget))
    assert found["nf4", "weights"].figure.value == stored_reports.GIB
    assert found["nf4", "weights"].unit == "B"
    assert found["nf4", "ttft"].unit == "s"
    assert found["nf4", "weights_ratio"].figure.value == 0.25
    assert not [name for method, name in found if method == "fp16" and name.endswith(("ratio", "drop", "flips"))]


@pytest.mark.parametrize("gone", [{"tasks": ()}, {"weights": None}, {"speeds": ()}])
def test_what_was_not_measured_is_left_out(tmp_path: Path, gone: dict[str, object]) -> None:
    def without(record: Measurement) -> Measurement:
        return replace(record, **gone)  # type: ignore[arg-type]

    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    whole, part = taken(stored_reports.report(budget)), taken(stored_reports.report(budget, nf4=without))
    lost = {name for method, name in whole.keys() - part.keys() if method == "nf4"}
    assert (
        lost >= {"tasks": {"sums", "sums_drop"}, "weights": {"weights"}, "speeds": {"vram", "ttft"}}[next(iter(gone))]
    )
    assert all(method == "nf4" for method, _ in whole.keys() - part.keys())
