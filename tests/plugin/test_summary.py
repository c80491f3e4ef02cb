"""`--quant-summary`, the summary of a step of GitHub Actions, and annotations: in whole runs, judged from a report."""

import os
import threading
from pathlib import Path

import pytest
import stored_reports
from builders import REPORT

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.plugin import summary
from pytest_quantbudget.report import document, markdown

BUDGET = stored_reports.TEXT.replace("max_weights: 5 GiB}\n  awq", "max_weights: 1 GiB}\n  awq")
OVER = "gptq-int4::max_weights"
HEADLINE = "## \N{CROSS MARK} Quantization budget: 1 of 8 limits over"


@pytest.fixture
def room(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a report and a budget of which one limit is over; on GitHub Actions, with an empty summary."""
    folder = stored_reports.furnish(pytester.path)
    (folder / "b.yaml").write_text(BUDGET)
    document.write(folder / "report.json", stored_reports.report(load_budget(folder / "b.yaml")))
    (folder / ".git").mkdir()
    pytester.makeini("[pytest]")
    for name, value in (("ACTIONS", "true"), ("STEP_SUMMARY", str(folder / "step.md")), ("WORKSPACE", str(folder))):
        monkeypatch.setenv(f"GITHUB_{name}", value)
    (folder / "step.md").touch()
    return folder


def judge(pytester: pytest.Pytester, *more: str) -> pytest.RunResult:
    return pytester.runpytest("--quant-budget", "b.yaml", "--quant-from", "report.json", *more)


def test_on_github_actions_a_step_gets_its_summary_and_lines_their_annotations(
    pytester: pytest.Pytester, room: Path
) -> None:
    (room / "step.md").write_text("of another command")
    result = judge(pytester)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = (room / "step.md").read_text()
    assert text.startswith(f"of another command\n\n{HEADLINE}\n")
    assert "summary written to the step's summary" in result.outlines
    line = next(i for i, line in enumerate(BUDGET.splitlines(), 1) if "1 GiB" in line)
    (said,) = (line for line in result.outlines if line.startswith("::error"))
    assert said.startswith(f"::error file=b.yaml,line={line},title=gptq-int4 max_weights over::gptq-int4: max_weights ")


def test_a_file_is_written_as_well_and_whole(pytester: pytest.Pytester, room: Path) -> None:
    (room / "out.md").write_text("old")
    assert judge(pytester, "--quant-summary", "out.md").ret == pytest.ExitCode.TESTS_FAILED
    assert (room / "out.md").read_text().startswith(HEADLINE)
    assert (room / "step.md").read_text() == (room / "out.md").read_text()


def test_the_summary_of_the_step_that_is_named_too_gets_it_once(pytester: pytest.Pytester, room: Path) -> None:
    judge(pytester, "--quant-summary", str(room / "step.md"))
    assert (room / "step.md").read_text().count("## \N{CROSS MARK}") == 1


def test_off_means_off_and_a_file_that_is_named_is_written(pytester: pytest.Pytester, room: Path) -> None:
    result = judge(pytester, "--no-quant-summary", "--quant-summary", "out.md")
    assert (room / "step.md").read_text() == ""
    assert not [line for line in result.outlines if line.startswith("::")]
    assert (room / "out.md").read_text().startswith(HEADLINE)


def test_elsewhere_nothing_is_written_by_itself(
    pytester: pytest.Pytester, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name)
    result = judge(pytester)
    assert (room / "step.md").read_text() == ""
    result.stdout.no_fnmatch_line("*summary written*")
    result.stdout.no_fnmatch_line("::*")


def test_lines_of_a_budget_that_is_extended_are_marked_where_they_stand(pytester: pytest.Pytester, room: Path) -> None:
    (room / "more.yaml").write_text("extends: b.yaml\nmethods:\n  awq-int4:\n    budget: {max_weights: 1 GiB}\n")
    result = pytester.runpytest("--quant-budget", "more.yaml", "--quant-from", "report.json")
    found = [line.split(",title")[0] for line in result.outlines if line.startswith("::error")]
    inherited = next(i for i, line in enumerate(BUDGET.splitlines(), 1) if "1 GiB" in line)
    assert sorted(found) == [f"::error file=b.yaml,line={inherited}", "::error file=more.yaml,line=4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quant-summary", "."], "--quant-summary: * is a directory"),
        (
            ["--quant-summary", "r.json", "--quant-report", "./r.json"],
            "--quant-summary and --quant-report name the same file",
        ),
        (["--quant-summary", "report.json"], "--quant-summary and --quant-from name the same file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_a_usage_error(
    pytester: pytest.Pytester, room: Path, arguments: list[str], words: str
) -> None:
    before = (room / "report.json").read_bytes()
    result = judge(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])
    assert (room / "report.json").read_bytes() == before


def test_a_summary_that_cannot_be_written_hides_no_verdict_and_fails_where_it_was_asked_for(
    pytester: pytest.Pytester, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room / "b.yaml").write_text(stored_reports.TEXT)
    (room / "file").touch()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(room / "file" / "step.md"))
    result = judge(pytester)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["the summary could not be written to the step's summary: *", "*8 passed*"])
    result = judge(pytester, "--quant-summary", "file/out.md")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["the summary could not be written to file/out.md: *", "*8 passed*"])


def test_a_summary_that_is_full_is_not_made_longer_than_github_shows(pytester: pytest.Pytester, room: Path) -> None:
    (room / "step.md").write_text("x" * (markdown.STEP - 30))
    result = judge(pytester)
    result.stdout.fnmatch_lines(["the summary could not be written to the step's summary: GitHub shows 1.00 MiB *"])
    assert (room / "step.md").stat().st_size == markdown.STEP - 30
    (room / "step.md").write_text("x" * (markdown.STEP - 2000))
    judge(pytester)
    text = (room / "step.md").read_text()
    assert len(text.encode()) <= markdown.STEP
    assert HEADLINE in text
    assert "Left out, because there is room for" in text


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert summary._replace(pipe, REPORT)
    reader.join(20)
    assert "Quantization budget" in read[0]
    assert pipe.is_fifo()


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_interrupted_and_with_workers_it_is_written_once(
    pytester: pytest.Pytester, room: Path, workers: tuple[str, ...]
) -> None:
    pytester.makeconftest(
        """
        import os
        import signal

        class Ended:
            def pytest_runtest_logreport(self, report):
                if report.nodeid.endswith("max_ppl_ratio"):
                    os.kill(os.getpid(), signal.SIGTERM)

        def pytest_configure(config):
            if not hasattr(config, "workerinput"):
                config.pluginmanager.register(Ended())
        """
    )
    result = pytester.runpytest_subprocess("--quant-budget", "b.yaml", "--quant-from", "report.json", *workers)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    text = (room / "step.md").read_text()
    assert text.count("Quantization budget:") == 1
    if not workers:
        assert "3 of 8 limits not run" in text
        assert len([line for line in result.outlines if line.startswith("::error")]) == 3
