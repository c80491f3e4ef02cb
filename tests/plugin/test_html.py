"""`--quant-html`: what is asked before anything is measured, and that a page is there however the run ends."""

import json
import sys
from pathlib import Path

import pytest
from stored_reports import furnish, read, report

from pytest_quantbudget.report import document

pytest.importorskip("jinja2", reason="the extra `report` brings Jinja2")

BUDGET = """
model: org/model
baseline: fp16
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  sums: {file: sums.jsonl, questions: 10}
methods:
  fp16: {budget: {min_sums: 50, max_weights: 5 GiB}}
  nf4: {budget: {max_weights: 5 GiB, max_sums_drop: 50}}
"""


@pytest.fixture
def stored(pytester: pytest.Pytester) -> Path:
    """A budget and a report of its measurements, which is judged in place of measuring."""
    budget = read(furnish(pytester.path), BUDGET)
    path = pytester.path / "report.json"
    document.write(path, report(budget))
    return path


def test_the_page_is_written_with_the_verdicts(pytester: pytest.Pytester, stored: Path) -> None:
    result = pytester.runpytest("b.yaml", "--quant-from", stored.name, "--quant-html", "out/page.html")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["page written to out/page.html"])
    assert "<span>All 4 limits are within</span></h1>" in Path("out/page.html").read_text()


def test_a_run_that_is_interrupted_leaves_a_page(pytester: pytest.Pytester, stored: Path) -> None:
    pytester.makeconftest(
        """
        def pytest_runtest_call(item):
            if item.name == "max_sums_drop":
                raise KeyboardInterrupt
        """
    )
    result = pytester.runpytest_subprocess("b.yaml", "--quant-from", stored.name, "--quant-html", "page.html")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "1 of 4 limits was not run" in Path("page.html").read_text()


def test_a_disk_that_refuses_the_page_hides_no_verdict(pytester: pytest.Pytester, stored: Path) -> None:
    Path("file").touch()
    result = pytester.runpytest("b.yaml", "--quant-from", stored.name, "--quant-html", "file/page.html")
    result.stdout.fnmatch_lines(["fp16 * 2 within", "the page could not be written to file/page.html: *"])
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (".", "--quant-html: . is a directory"),
        ("report.json", "--quant-html and --quant-from name the same file"),
    ],
)
def test_a_target_that_cannot_be_one_is_a_usage_error(
    pytester: pytest.Pytester, stored: Path, target: str, words: str
) -> None:
    before = stored.read_text()
    result = pytester.runpytest("b.yaml", "--quant-from", stored.name, "--quant-html", target)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {words}"])
    assert json.loads(stored.read_text()) == json.loads(before)


def test_without_jinja_nothing_is_measured(
    pytester: pytest.Pytester, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = pytester.runpytest("b.yaml", "--quant-from", stored.name, "--quant-html", "page.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quant-html: * pip install 'pytest-quantbudget[[]report]'"])
    assert not Path("page.html").exists()
