"""`python -m pytest_quantbudget export`: each format to a file or to standard output, and mistakes in words."""

from pathlib import Path

import pytest
import stored_reports

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.commands.export import EXPORTS
from pytest_quantbudget.report import document

BEGINNINGS = {
    "markdown": "## ",
    "html": "<!DOCTYPE html>",
    "csv": "row,created,",
    "ctrf": '{\n "reportFormat": "CTRF"',
    "model-card": "---\nmodel-index:",
}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    document.write(tmp_path / "report.json", stored_reports.report(budget))
    return tmp_path / "report.json"


@pytest.mark.parametrize("name", [name for name, export in EXPORTS.items() if export.written])
def test_a_report_is_written_in_each_format(name: str, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "html":
        pytest.importorskip("jinja2")
    assert main(["export", name, str(report)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(BEGINNINGS[name])
    file = report.parent / "out"
    assert main(["export", name, str(report), "-o", str(file)]) == 0
    assert file.read_bytes().decode() == shown
    assert capsys.readouterr().out == ""


def test_a_file_of_eval_results_is_asked_for_by_benchmark(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["export", "model-card", str(report), "--method", "nf4", "--benchmark", "sums=acme/sums:main"]
    assert main(given) == 0
    assert capsys.readouterr().out.startswith("- dataset:\n    id: acme/sums\n    task_id: main\n  value: 90.0\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["csv", "report.json", "-o", "./report.json"], "report.json is the report itself"),
        (["csv", "report.json", "-o", "none/out.csv"], "No such file or directory"),
        (["csv", "rep.json"], "rep.json: No such file or directory"),
        (["ctrf", "b.yaml"], "b.yaml is not JSON that can be used"),
        (["model-card", "report.json", "--benchmark", "sums"], "--benchmark sums: it is not TASK=DATASET:ID"),
    ],
)
def test_mistakes_are_said_in_words(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(report.parent)
    before = report.read_bytes()
    assert main(["export", *arguments]) == 4
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert report.read_bytes() == before


def test_what_no_time_can_be_read_from_is_refused(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_text(report.read_text().replace('"created": "2026-01-01T00:00:00+00:00"', '"created": "late"'))
    assert main(["export", "ctrf", str(report)]) == 4
    assert "late" in capsys.readouterr().err
