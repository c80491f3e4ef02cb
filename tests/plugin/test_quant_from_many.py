"""`--quant-from` with several reports: as options, from a directory, in workers; what contradicts itself is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from stored_reports import ON_L4, TEXT, furnish, job, read

from pytest_quantbudget.report import document

SMALL = TEXT.partition("  gptq-int4")[0]
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def room(pytester: pytest.Pytester) -> Path:
    """A directory with a budget of two methods, and a report of each in `reports/`; `l4/` has one of both."""
    folder = furnish(pytester.path)
    budget = read(folder, SMALL)
    for name in ("fp16", "nf4"):
        place = folder / "reports" / f"quant-{name}"
        place.mkdir(parents=True)
        document.write(place / f"{name}.json", job(budget, name))
    (folder / "reports/other.json").write_text('{"name": "x", "version": "1.0.0"}')
    (folder / "l4").mkdir()
    document.write(folder / "l4/all.json", job(budget, "fp16", "nf4", device=ON_L4))
    return folder


def test_a_directory_of_reports_is_judged_as_one_run_and_its_own_report_is_left_out(
    pytester: pytest.Pytester, room: Path
) -> None:
    args = ("--quant-budget", "b.yaml", "--quant-from", "reports", "--quant-report", "reports/merged.json")
    for _ in range(2):
        result = pytester.runpytest(*args)
        result.assert_outcomes(passed=6)
        result.stdout.fnmatch_lines(["judged from 2 reports, measured: reports/quant-fp16/fp16.json (2026-*"])
    found = document.read(room / "reports/merged.json")
    assert [(m.name, m.from_report) for m in found.budgets[0].methods] == [
        ("fp16", "reports/quant-fp16/fp16.json"),
        ("nf4", "reports/quant-nf4/nf4.json"),
    ]
    # What the directory holds now says the same twice, which is no contradiction.
    again = pytester.runpytest("--quant-budget", "b.yaml", "--quant-from", "reports/*.json", "--quant-from", "reports")
    again.assert_outcomes(passed=6)
    told = pytester.runpytest(*args, "--quant-summary", "summary.md", "--quant-history", "past")
    told.assert_outcomes(passed=6)
    assert "- judged from `reports/quant-fp16/fp16.json`, measured 2026" in (room / "summary.md").read_text()
    kept = (room / "past").glob("*.jsonl")
    assert sorted(re.findall(r'"method":"(\w+)"', "".join(path.read_text() for path in kept))) == ["fp16", "nf4"]
    twice = pytester.runpytest(*args, "--quant-from", "l4/all.json", "--quant-summary", "l4/all.json")
    twice.stderr.fnmatch_lines(["ERROR: --quant-summary and --quant-from name the same file"])
    named = pytester.runpytest(*args[:4], "--quant-from", "reports/merged.json", *args[4:])
    named.stderr.fnmatch_lines(["ERROR: --quant-from: --quant-report would overwrite the measurements that*"])


def test_each_kind_of_machine_has_its_own_tests(pytester: pytest.Pytester, room: Path) -> None:
    reports = ("--quant-from", "reports", "--quant-from", "l4")
    args = ("--quant-budget", "b.yaml", *reports)
    result = pytester.runpytest(*args, "-n", "2", "--quant-report", "all.json", "--junitxml", "junit.xml", "-v")
    result.assert_outcomes(passed=11, skipped=1)
    result.stdout.fnmatch_lines(
        [
            f"=* quantization budget b.yaml on {H100} =*",
            "=* quantization budget b.yaml on NVIDIA L4 =*",
            "skipped: nf4 max_vram (no GPU was found*",
        ]
    )
    assert 'name="quant.machine" value="NVIDIA L4"' in (room / "junit.xml").read_text()
    # An id in the pytest way: with the machine, or all of a limit.
    one = pytester.runpytest(*reports, f"b.yaml::nf4::max_weights[{H100}]", "--quant-report", "one.json")
    one.assert_outcomes(passed=1)
    assert [each.machine for each in document.read(room / "one.json").budgets] == [H100]
    pytester.runpytest(*reports, "b.yaml::nf4::max_weights").assert_outcomes(passed=2)
    pytester.runpytest(*args, "-k", "L4 and max_weights").assert_outcomes(passed=1, deselected=11)
    wrong = pytester.runpytest(*reports, "b.yaml::nf4::max_wights[NVIDIA L4]")
    wrong.stderr.fnmatch_lines(["*nf4 has no limit 'max_wights?NVIDIA L4?'; did you mean 'max_weights'?"])
    update = pytester.runpytest(*args, "--quant-update=all")
    assert update.ret == pytest.ExitCode.USAGE_ERROR
    update.stderr.fnmatch_lines(["*fp16 was measured on several kinds of machine: --quant-update takes one at a time"])
    pytester.makepyfile(test_own="def test_numbers(quant_measurement):\n    assert quant_measurement.weights\n")
    fixture = pytester.runpytest(*args, "-rs", "test_own.py", "-k", "numbers")
    fixture.assert_outcomes(skipped=2, deselected=12)
    fixture.stdout.fnmatch_lines([f"*fp16 was measured on {H100} and NVIDIA L4: judge one report at a time*"])


def test_reports_that_contradict_each_other_are_a_usage_error(pytester: pytest.Pytester, room: Path) -> None:
    budget = read(room, SMALL)
    document.write(room / "twice.json", job(budget, "nf4", change=lambda record: replace(record, load_time_s=9.0)))
    args = ("--quant-budget", "b.yaml", "--quant-from", "reports/quant-nf4/nf4.json", "--quant-from", "twice.json")
    for more in ((), ("-n", "2")):
        result = pytester.runpytest(*args, *more)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            [
                "ERROR: --quant-from: b.yaml: reports/quant-nf4/nf4.json and twice.json hold different figures of nf4 "
                "(the load time): name the one that counts"
            ]
        )


def test_limits_are_written_from_the_reports_of_one_kind_of_machine(pytester: pytest.Pytester, room: Path) -> None:
    text = SMALL.replace("max_weights: 5 GiB", "max_weights: auto")
    (room / "b.yaml").write_text(text)
    result = pytester.runpytest("--quant-budget", "b.yaml", "--quant-from", "reports", "--quant-update")
    assert "max_weights: 1 GiB" in (room / "b.yaml").read_text(), result.stdout.str()
