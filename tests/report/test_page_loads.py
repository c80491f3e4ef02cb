"""Requests under load on the page: each level has a row, and what failed or was not told is not taken for a figure."""

from dataclasses import replace

import pytest
from builders import LOAD, MEASUREMENT, REPORT

from pytest_quantbudget.core.load import Level, LoadResult, Served
from pytest_quantbudget.report.document import BudgetReport
from pytest_quantbudget.report.page import loads


def loaded(*served: Served) -> BudgetReport:
    """A budget whose method answered these requests at each level of its load."""
    budget = REPORT.budgets[0]
    levels = tuple(Level(way, value, 2.0, served) for way, value in LOAD.levels)
    record = replace(MEASUREMENT, loads=(LoadResult(LOAD, levels),))
    return replace(budget, methods=(replace(budget.methods[0], measurement=record, load=LOAD),))


def test_each_level_has_its_figures() -> None:
    served = [Served(0.0, 0.1 + i / 1000, "20000 20000", 3) for i in range(101)]
    rows = loads.levels(loaded(*served))
    assert [row.level for row in rows] == ["concurrency 2", "1.5 requests/s"][: len(LOAD.levels)]
    assert rows[0].throughput.startswith("15")
    assert list(rows[0].ttft) == ["150 ms", "195 ms", "199 ms"]
    assert list(rows[0].tpot) == ["20.0 ms"] * 3
    assert rows[0].errors == "0 of 101"
    # No latency limit says which requests are good.
    assert rows[0].goodput == loads.UNKNOWN


def test_failed_requests_are_the_latest_and_whole_answers_in_one_chunk_tell_no_waits() -> None:
    bad = loads.levels(loaded(Served(0.0, 0.1, "", 3), Served(0.0, error="timeout")))[0]
    assert list(bad.ttft) == [loads.LATE] * 3
    assert list(bad.tpot) == [loads.UNKNOWN] * 3
    assert "1 timeout" in bad.errors


def test_the_page_leads_to_them() -> None:
    pytest.importorskip("jinja2", reason="the extra `report` brings Jinja2")
    from pytest_quantbudget.report.page import render

    html = render.render(REPORT)
    assert 'href="#b1-load"' in html
    assert 'id="b1-load"' in html
    both = render.render(replace(REPORT, budgets=REPORT.budgets * 2))
    assert 'href="#b2-load"' in both
