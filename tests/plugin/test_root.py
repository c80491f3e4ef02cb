"""Ids and the ini file do not depend on whether the cache or a report exists already."""

import sys
from pathlib import Path

import pytest

IDS = ["fp32::max_weights", "fp32::min_wordmath", "bf16::max_weights_ratio", "bf16::max_wordmath_drop"]
IDS.append("bf16::max_wordmath_flips")


@pytest.fixture
def bare(pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without an ini file, entered; its budget lies in a folder."""
    project = pytester.mkdir("project")
    (project / "budgets").mkdir()
    small.rename(project / "budgets/small.yaml")
    text = (project / "budgets/small.yaml").read_text()
    (project / "budgets/small.yaml").write_text(text.replace("    marks: [slow]\n", ""))
    (pytester.path / "tox.ini").unlink()
    monkeypatch.chdir(project)
    return project


def ids(pytester: pytest.Pytester, *args: str) -> list[str]:
    result = pytester.runpytest("--collect-only", "-q", *args)
    assert result.ret == pytest.ExitCode.OK, result.outlines + result.errlines
    return [line for line in result.outlines if "::" in line]


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("above", "--quant-cache"),
        ("below", "--quant-cache"),
        ("far", "--quant-cache"),
        ("beside", "--quant-report"),
        ("below", "--quant-timeout"),
    ],
)
@pytest.mark.parametrize("named", [("--quant-budget", "budgets"), ("budgets/small.yaml",), ("--quant-budget=budgets",)])
def test_ids_without_an_ini_file_are_the_same_once_an_options_value_exists(
    pytester: pytest.Pytester, bare: Path, tmp_path: Path, place: str, option: str, named: tuple[str, ...]
) -> None:
    folder = {"above": bare.parent, "below": bare / "x", "beside": bare.parent / "x", "far": tmp_path / "far"}[place]
    folder.mkdir(exist_ok=True)
    if option == "--quant-timeout":
        value, target = "2 h", bare / "2 h"
    else:
        target = folder / "made"
        value = str(target)
    given = (*named, option, value)
    before = ids(pytester, *given)
    assert before == [f"budgets/small.yaml::{id_}" for id_ in IDS]
    target.touch() if option == "--quant-report" else target.mkdir()
    assert ids(pytester, *given) == ids(pytester, option, value, *named) == before


@pytest.mark.parametrize("form", ["--quant-budget", "--quant-budget="])
@pytest.mark.model
def test_ids_of_workers_are_those_of_the_run(
    pytester: pytest.Pytester, bare: Path, simulated_engine: str, tmp_path: Path, form: str
) -> None:
    (bare / "conftest.py").write_text(simulated_engine)
    cache = tmp_path / "kept"
    cache.mkdir()
    named = [form, "budgets/small.yaml"] if not form.endswith("=") else [f"{form}budgets/small.yaml"]
    command = [sys.executable, "-m", "pytest", *named, "--quant-cache", str(cache), "-n", "2", "-v"]
    result = pytester.run(*command, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5)
    assert {line.split()[-1] for line in result.outlines if "PASSED" in line} == {
        f"budgets/small.yaml::{id_}" for id_ in IDS
    }


def test_an_ini_file_that_was_missed_is_told(pytester: pytest.Pytester, bare: Path, tmp_path: Path) -> None:
    (bare / "pytest.ini").write_text("[pytest]\nquant_budget = budgets\n")
    cache = tmp_path / "kept"
    assert len(ids(pytester, "--quant-cache", str(cache))) == 5
    cache.mkdir()
    result = pytester.runpytest("--co", "--quant-cache", str(cache))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest took the value of a --quant option * none, not pytest.ini; write *"])
    assert len(ids(pytester, f"--quant-cache={cache}")) == 5


def test_a_root_directory_that_is_named_stays(pytester: pytest.Pytester, bare: Path, tmp_path: Path) -> None:
    given = ("--quant-budget", "budgets", "--quant-cache", str(tmp_path), "--rootdir", str(bare / "budgets"))
    assert ids(pytester, *given) == [f"small.yaml::{id_}" for id_ in IDS]
