"""The HTML page of a report: what stands on it, that it is valid, and that nothing which it shows can run."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import GIB, REPORT

pytest.importorskip("jinja2", reason="the extra `report` brings Jinja2")

from tinyhtml5.parser import HTMLParser

from pytest_quantbudget.core.budget import Source
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.page import history, render, view
from pytest_quantbudget.report.page.usage import usage
from pytest_quantbudget.report.ranked import ranked


def limit(name: str, outcome: str = WITHIN, measured: float | None = None, **more: object) -> LimitReport:
    verdict = Verdict(outcome, f"nf4: {name} measured so much", measured, **more)  # type: ignore[arg-type]
    return LimitReport(f"q.yaml::nf4::{name}", name, 3, verdict)


def with_limits(*limits: LimitReport) -> Report:
    budget = REPORT.budgets[0]
    methods = (replace(budget.methods[0], limits=limits),)
    return replace(REPORT, budgets=(replace(budget, methods=methods, uses=()),))


def errors(html: str) -> list[object]:
    """What a parser of the WHATWG's rules finds wrong."""
    parser = HTMLParser()
    parser.parse(html)
    return list(parser.errors)


@pytest.mark.parametrize(
    ("limits", "words", "state"),
    [
        ([limit("max_vram")], "The limit is within", WITHIN),
        ([limit("max_vram"), limit("max_weights")], "All 2 limits are within", WITHIN),
        ([limit("max_vram"), limit("max_weights", SKIPPED)], "The limit is within, 1 skipped", WITHIN),
        ([limit("max_vram", OVER), limit("max_weights")], "1 of 2 limits is over", OVER),
        (
            [limit("a", OVER), limit("b", FAILED), limit("c", NOT_RUN)],
            "Of 3 limits 1 is over, 1 could not be judged, 1 was not run",
            OVER,
        ),
        ([limit("a", FAILED), limit("b", FAILED)], "2 of 2 limits could not be judged", FAILED),
        ([limit("a", decision=UNDECIDED), limit("b")], "1 of 2 limits is undecided", UNDECIDED),
        ([limit("a", SKIPPED)], "1 of 1 limit was skipped", SKIPPED),
        ([], "nothing judged", SKIPPED),
    ],
)
def test_the_verdict_says_the_worst_first(limits: list[LimitReport], words: str, state: str) -> None:
    verdict = view.page(with_limits(*limits)).verdict
    assert (verdict.words, verdict.state) == (words, state)
    assert f"<span>{words}</span></h1>" in render.render(with_limits(*limits))


def test_a_page_is_valid_html() -> None:
    assert errors("<!DOCTYPE html><title>x</title><table><p>") != []
    assert errors(render.render(REPORT)) == []


HOSTILE = "</script></style><img src=x onerror=alert(1)>\" ' & \x1b[31m \u202e \u2028 {{ 7*7 }} ::error::"


def test_nothing_that_is_shown_becomes_markup() -> None:
    budget: BudgetReport = REPORT.budgets[0]
    verdict = Verdict(OVER, HOSTILE, 7.5 * GIB, 7.0 * GIB, HOSTILE, "GiB", HOSTILE)
    method = replace(
        budget.methods[0], name=HOSTILE, limits=(LimitReport(f"q::{HOSTILE}::max_vram", "max_vram", 9, verdict),)
    )
    hostile = replace(
        REPORT,
        machine=replace(REPORT.machine, cpu=HOSTILE, platform=HOSTILE, libraries={HOSTILE: HOSTILE}),
        budgets=(replace(budget, file=HOSTILE, model=HOSTILE, revision=HOSTILE, baseline=HOSTILE, methods=(method,)),),
    )
    html = render.render(hostile)
    assert errors(html) == []
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>") == render.render(REPORT).count("<script")
    assert not {"\x1b", "\u202e", "\u2028"} & set(html)
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "{{ 7*7 }}" in html


def test_the_policy_lets_run_what_the_package_brings_and_nothing_else() -> None:
    html = render.render(REPORT)
    policy = html.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy
    assert "style=" not in html
    assert "javascript:" not in html


@pytest.mark.parametrize(
    ("name", "verdict", "at"),
    [
        ("max_vram", Verdict(WITHIN, "", 3.5, 7.0, low=1.75, high=7.0), (37.5, 18.75, 75.0)),
        ("min_gsm8k", Verdict(WITHIN, "", 80.0, 40.0, low=40.0, high=160.0), (37.5, 18.75, 75.0)),
        ("max_gsm8k_drop", Verdict(WITHIN, "", -1.0, 2.0, low=-3.0, high=float("inf")), (0.0, 0.0, 100.0)),
        ("min_tokens_per_s", Verdict(OVER, "", 0.0, 10.0), (100.0, None, None)),
    ],
)
def test_limits_of_both_kinds_are_used_up_on_one_scale(name: str, verdict: Verdict, at: tuple[float, ...]) -> None:
    each = replace(limit(name), verdict=verdict)
    (row,) = ranked(replace(REPORT.budgets[0], methods=(MethodReport("nf4", None, (each,)),), uses=()))
    found = usage(row)
    assert found is not None
    assert (found.at, found.low, found.high) == at


@pytest.mark.parametrize("verdict", [Verdict(SKIPPED, ""), Verdict(WITHIN, "", 1.0, 0.0), Verdict(WITHIN, "", 1.0)])
def test_where_there_is_no_share_there_is_no_picture_of_it(verdict: Verdict) -> None:
    each = replace(limit("max_vram"), verdict=verdict)
    (row,) = ranked(replace(REPORT.budgets[0], methods=(MethodReport("nf4", None, (each,)),), uses=()))
    assert usage(row) is None


def test_without_jinja_the_command_that_helps_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'pytest-quantbudget\[report\]'"):
        render.write(tmp_path / "page.html", REPORT)


def test_the_line_of_a_limit_is_marked_in_the_text_of_the_budget() -> None:
    text = "extends: base.yaml\nmethods:\n  nf4: {budget: {max_vram: 7 GiB, max_weights: 6 GiB}}\n"
    base = "model: m\nmethods:\n  nf4: {budget: {min_gsm8k: 50}}\n"
    budget = replace(
        with_limits(limit("max_vram", OVER), limit("max_weights"), limit("min_gsm8k"), limit("max_kl")).budgets[0],
        file="own.yaml",
        sources=(Source("own.yaml", text), Source("base.yaml", base)),
    )
    (shown,) = view.page(replace(REPORT, budgets=(budget,))).budgets
    places = {row.each.limit.name: (row.where, row.at) for row in (*shown.wanting, *shown.kept)}
    assert places == {
        "max_vram": ("own.yaml:3", (1, 3)),
        "max_weights": ("own.yaml:3", (1, 3)),
        "min_gsm8k": ("base.yaml:3", (2, 3)),
        "max_kl": ("own.yaml:3", None),
    }
    assert [list(line.states) for line in shown.sources[0].lines] == [[], [], [OVER, WITHIN]]
    html = render.render(replace(REPORT, budgets=(budget,)))
    assert '<a href="#b1-f2-3">base.yaml:3</a>' in html
    assert 'id="b1-f2-3"' in html


def test_each_place_has_one_name() -> None:
    html = render.render(replace(REPORT, budgets=REPORT.budgets * 2))
    names = re.findall(r' id="([^"]+)"', html)
    assert len(names) == len(set(names)) > 20
    assert {name.removeprefix("#") for name in re.findall(r'href="([^"]+)"', html)} <= set(names)
    labels = {name for found in re.findall(r'aria-labelledby="([^"]+)"', html) for name in found.split()}
    assert labels <= set(names)


def test_a_report_of_an_earlier_release_has_a_page() -> None:
    (budget,) = REPORT.budgets
    bare = replace(budget.methods[0], measurement=None, estimate=None, load=None)
    old = replace(budget, sources=(), advice=None, noise=None, stored=None, uses=(), methods=(bare,), tasks=())
    html = render.render(replace(REPORT, budgets=(old,), commit=None, judged_from=None))
    assert errors(html) == []
    assert "The budget that was judged" not in html
    assert errors(render.render(replace(REPORT, budgets=()))) == []


def test_what_changed_beyond_noise_stands_before_the_rest() -> None:
    (moved,) = REPORT.budgets[0].changes
    quiet = replace(moved, name="max_ttft", unit="ms", before=0.1, now=0.1, beyond_noise=False, trend=())
    budget = replace(REPORT.budgets[0], changes=(quiet, replace(moved, beyond_noise=True, worse=True)))
    first, second = history.trends(budget)
    assert (first.moved.name, first.marked, first.said) == (moved.name, True, "worse, more than runs differ by")
    assert (second.said, second.line, second.before) == ("the same", "", "100 ms")
    assert len(first.line.split()) == len(moved.trend)
    html = render.render(replace(REPORT, budgets=(budget,)))
    assert errors(html) == []
    assert html.index("More than runs differ by") < html.index("1 figure within what runs differ by")
