"""No green without evidence: what is skipped, what could not be written, and names that mean something to others."""

import json
import os
from pathlib import Path

import pytest
from builders import outcomes

SKIPPED = """
model: builtin
gpu: true
methods:
  fp32: {budget: {max_weights: 3 MiB, max_vram: 1 GiB}}
"""


@pytest.fixture
def skipped(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A budget for a GPU, on a machine without any."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = pytester.path / "b.yaml"
    path.write_text(SKIPPED)
    return path


def test_a_run_that_judged_nothing_says_so_in_its_last_line(pytester: pytest.Pytester, skipped: Path) -> None:
    result = pytester.runpytest("--quant-budget", skipped.name)
    assert result.ret == 0
    assert "2 skipped, 1 quantization budget run without a verdict in" in result.outlines[-1]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_skips_fail_where_a_gate_is_wanted(pytester: pytest.Pytester, skipped: Path, workers: tuple[str, ...]) -> None:
    args = ("--quant-budget", skipped.name, "--quant-report", "r.json", *workers)
    result = pytester.runpytest_subprocess(*args, "--quant-fail-on-skip")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["needs a GPU*(--quant-fail-on-skip)"])
    assert "without a verdict" not in result.outlines[-1]
    assert set(outcomes(Path("r.json")).values()) == {"failed"}


def test_the_ini_file_may_want_a_gate_too(pytester: pytest.Pytester, skipped: Path) -> None:
    pytester.makeini("[pytest]\nquant_fail_on_skip = true\n")
    pytester.runpytest("--quant-budget", skipped.name).assert_outcomes(failed=2)


@pytest.mark.model
def test_a_limit_that_a_conftest_skips_is_no_pass_either(pytester: pytest.Pytester, measured_small: Path) -> None:
    pytester.makeconftest(
        "import pytest\n\ndef pytest_collection_modifyitems(items):\n    items[0].add_marker(pytest.mark.skip)\n"
    )
    assert pytester.runpytest("--quant-budget", measured_small.name).ret == 0
    result = pytester.runpytest("--quant-budget", measured_small.name, "--quant-fail-on-skip")
    result.assert_outcomes(passed=4, skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(("required", "outcome"), [(False, "skipped"), (True, "failed")])
def test_a_missing_package_is_a_missing_machine(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: bool, outcome: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else found(name))
    pytester.path.joinpath("b.yaml").write_text("model: builtin\nmethods: {nf4: {budget: {max_weights: 1 MiB}}}\n")
    args = ("--quant-require-gpu",) if required else ()
    result = pytester.runpytest_inprocess("--quant-budget", "b.yaml", *args)
    result.assert_outcomes(**{outcome: 1})


@pytest.mark.model
def test_a_report_that_cannot_be_written_is_no_success(pytester: pytest.Pytester, measured_small: Path) -> None:
    (pytester.path / "r.answers.jsonl").mkdir()
    result = pytester.runpytest("--quant-budget", measured_small.name, "--quant-report", "r.json")
    result.assert_outcomes(passed=5)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["the answers could not be written to r.answers.jsonl: *"])


NAMES = {
    "brackets": ("job [main]/small.yaml", "job [main]/small.yaml"),
    "colons": ("a::b/small.yaml", "a:\\x3ab/small.yaml"),
    "commands": ("##[error]x/small.yaml", "#\\x23[error]x/small.yaml"),
    "control": ("a\x1b[2J\n/small.yaml", "a\\x1b[2J\\n/small.yaml"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["option", "argument", "folder", "xdist"])
@pytest.mark.model
def test_budgets_run_whatever_their_folders_are_called(
    pytester: pytest.Pytester, measured_small: Path, name: str, way: str
) -> None:
    path, shown = NAMES[name]
    target = pytester.path / path
    target.parent.mkdir(parents=True)
    measured_small.rename(target)
    args = {
        "option": ("--quant-budget", path),
        "argument": (path,),
        "folder": ("--quant-budget", str(Path(path).parent)),
        "xdist": (path, "-n", "1"),
    }[way]
    result = pytester.runpytest_subprocess(*args, "-v", "--quant-report", "r.json")
    result.assert_outcomes(passed=5)
    assert f"{shown}::fp32::max_weights" in result.stdout.str()
    assert "\x1b[2J" not in result.stdout.str()
    assert len(outcomes(Path("r.json"))) == 5
    assert json.loads(Path("r.json").read_text())["budgets"][0]["file"] == path


@pytest.mark.skipif(os.name != "posix", reason="names are bytes there only")
def test_a_name_that_is_not_utf8_is_named(pytester: pytest.Pytester, small: Path) -> None:
    folder = pytester.path / os.fsdecode(b"n\xff")
    folder.mkdir()
    small.rename(folder / "b.yaml")
    result = pytester.runpytest_subprocess("--quant-budget", str(folder / "b.yaml"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *its path is not UTF-8 (*/n\\udcff/b.yaml); rename it"])


@pytest.mark.parametrize("mark", ["__class__", "_config", "parametrize", "skip", "xfail", "usefixtures"])
def test_marks_are_plain_names(pytester: pytest.Pytester, small: Path, mark: str) -> None:
    small.write_text(small.read_text().replace("[slow]", f"[{mark}]"))
    result = pytester.runpytest("--quant-budget", small.name)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: small.yaml:9: marks: *"])
