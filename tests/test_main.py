"""The commands: what is said of files that cannot be read."""

from pathlib import Path

import pytest
from builders import REPORT

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.report import document


@pytest.mark.parametrize(("name", "why"), [("none.json", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_told_by_its_name(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "markdown", str(tmp_path / name)]) == 4
    assert capsys.readouterr().err == f"ERROR: {tmp_path / name}: {why}\n"


@pytest.mark.parametrize(
    ("name", "why"), [(".", " is a directory; name a file in it"), ("r.json/x.csv", " cannot be written: ")]
)
def test_an_output_that_cannot_be_written_is_told_by_its_own_name(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document.write(tmp_path / "r.json", REPORT)
    assert main(["export", "csv", str(tmp_path / "r.json"), "-o", str(tmp_path / name)]) == 4
    assert capsys.readouterr().err.startswith(f"ERROR: {tmp_path / name}{why}")
