"""The commands: what is said of files that cannot be read."""

from pathlib import Path

import pytest

from pytest_quantbudget.__main__ import main


@pytest.mark.parametrize(("name", "why"), [("none.json", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_told_by_its_name(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "markdown", str(tmp_path / name)]) == 4
    assert capsys.readouterr().err == f"ERROR: {tmp_path / name}: {why}\n"
