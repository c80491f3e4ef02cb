"""Every answer as a line of JSON beside the report: while the run goes on, and in order when it has ended."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.answers import Answer, Origin, TaskResult
from pytest_quantbudget.core.codec import to_builtins
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.measure import answers_file

SUBJECT = Subject("model", None, "bf16", None, {}, None)
TASK = Task("words", 2, 0, 0, None, 16, None, "strict")
ANSWER = Answer(7, "so #### 4", "4", "4", True, False, False, 5, prompt="ab", seconds=0.5)
FILE = Path("out/r.answers.jsonl")


def lines(path: Path = FILE) -> list[dict[str, Any]]:
    """The lines of a file, of which every one has to be whole."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.decode("ascii").splitlines()]


def told(*numbers: int) -> dict[str, Any]:
    """What a measuring process says."""
    found = [to_builtins(replace(ANSWER, question=number)) for number in numbers]
    return {"task": "words", "extract": "strict", "done": len(found), "total": 9, "answers": found}


def test_the_file_is_named_after_the_report() -> None:
    names = {"r.json": "r.answers.jsonl", "r": "r.answers.jsonl", "r.v2": "r.v2.answers.jsonl"}
    assert {name: answers_file.beside(Path("a") / name).name for name in names} == names


def test_a_line_holds_what_the_model_said_and_steers_nothing(tmp_path: Path) -> None:
    text = "\x1b[2J\r\n\u2028\x7f\x9b\ud800 \N{SNOWMAN}\0"
    line = answers_file.line(SUBJECT, "words", replace(ANSWER, text=text), strict=False)
    assert all(" " <= c <= "~" for c in line)
    said = json.loads(line)
    assert said["text"] == text
    assert (said["correct"], said["strict_correct"], said["flexible_correct"]) == (False, True, False)


def test_an_answer_that_is_told_twice_is_written_once(tmp_path: Path) -> None:
    file = answers_file.AnswersFile(tmp_path / "new" / "a.jsonl")
    file.add(SUBJECT, told(3, 1))
    file.add(SUBJECT, told(3, 2))
    assert [line["question"] for line in lines(file.path)] == [3, 1, 2]


def test_a_disk_that_is_full_takes_no_half_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = answers_file.AnswersFile(tmp_path / "a.jsonl")
    file.add(SUBJECT, told(1))
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:20]))
    file.add(SUBJECT, told(2, 3))
    monkeypatch.undo()
    assert file.broken
    file.add(SUBJECT, told(4))
    assert [line["question"] for line in lines(file.path)] == [1]


def test_the_end_puts_in_order_and_keeps_what_was_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = answers_file.AnswersFile(path)
    file.add(SUBJECT, told(3, 1))
    file.add(replace(SUBJECT, method="nf4"), told(3))
    with path.open("a") as more:
        more.write('{"half')
    result = TaskResult(TASK, (ANSWER, replace(ANSWER, question=3)), 1.0, Origin("then", reused=True))
    assert answers_file.finish(path, [Measurement(SUBJECT, tasks=(result,))])
    there = [(line["method"], line["question"], line["reused"]) for line in lines(path)]
    assert there == [("bf16", 7, True), ("bf16", 3, True), ("nf4", 3, False)]
    assert not answers_file.finish(tmp_path / "none.jsonl", [Measurement(SUBJECT)])
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]


def agrees_with_the_report(reused: bool = False) -> None:
    """Question by question, in order."""
    methods = json.loads(Path("out/r.json").read_text())["budgets"][0]["methods"]
    expected = []
    for measured in (method["measurement"] for method in methods):
        for task in measured["tasks"]:
            for answer in task["answers"]:
                assert answer.pop("ids") == []
                answer.pop("logprob")
                own = {"model": measured["subject"]["model"], "method": measured["subject"]["method"]}
                expected.append({**own, "task": "wordmath", "correct": answer["strict_correct"], **answer})
                expected[-1]["reused"] = reused
    found = lines()
    assert all(len(line.pop("subject")) == 16 for line in found)
    assert found == expected
    assert len(found) == 24


WATCH = """
from pathlib import Path

def pytest_runtest_logreport(report):
    if report.when == "call":
        file = Path("out/r.answers.jsonl")
        with open("seen.txt", "a") as seen:
            print(report.nodeid, len(file.read_text().splitlines()) if file.exists() else 0, file=seen)
"""


@pytest.mark.model
def test_answers_are_there_while_the_run_goes_on_and_agree_with_the_report(
    pytester: pytest.Pytester, small: Path
) -> None:
    pytester.makeconftest(WATCH)
    FILE.parent.mkdir()
    FILE.write_text("of an earlier run\n")
    arguments = ("--quant-budget", small.name, "--quant-report", "out/r.json", "--quant-cache", "kept", "-W", "error")
    result = pytester.runpytest(*arguments)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["report written to out/r.json", "answers written to out/r.answers.jsonl"])
    assert [int(line.split()[1]) for line in Path("seen.txt").read_text().splitlines()] == [12, 12, 24, 24, 24]
    agrees_with_the_report()
    first = lines()
    pytester.runpytest(*arguments, "--collect-only")
    assert lines() == first
    pytester.runpytest(*arguments).assert_outcomes(passed=5)
    agrees_with_the_report(reused=True)


@pytest.mark.slow
def test_workers_write_one_file(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makeconftest(WATCH)
    arguments = ("--quant-budget", small.name, "--quant-report", "out/r.json", "-n", "2", "--dist", "load")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=5)
    agrees_with_the_report()
    assert max(int(line.split()[1]) for line in Path("seen.txt").read_text().splitlines()) == 24


@pytest.mark.model
def test_a_killed_run_leaves_whole_lines(small: Path) -> None:
    small.write_text(small.read_text().replace("questions: 12", "questions: 2000, batch_size: 8"))
    command = [sys.executable, "-m", "pytest", "--quant-budget", "small.yaml", "--quant-report", "out/r.json"]
    process = subprocess.Popen(
        [*command, "--quant-no-cache"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not FILE.exists() or len(FILE.read_bytes().splitlines()) < 20):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = lines()
    assert len(there) >= 20
    assert len({line["question"] for line in there}) == len(there)
    assert not Path("out/r.json").exists()


@pytest.mark.model
def test_nothing_is_written_where_no_task_is_measured(pytester: pytest.Pytester, small: Path) -> None:
    result = pytester.runpytest("--quant-budget", small.name, "-k", "max_weights", "--quant-report", "out/r.json")
    result.assert_outcomes(passed=2, deselected=3)
    assert [path.name for path in Path("out").iterdir()] == ["r.json"]
    result.stdout.no_fnmatch_line("answers *")


@pytest.mark.model
def test_a_place_that_takes_nothing_hides_no_verdict(pytester: pytest.Pytester, small: Path) -> None:
    FILE.mkdir(parents=True)
    result = pytester.runpytest("--quant-budget", small.name, "--quant-report", "out/r.json")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        ["report written to out/r.json", "the answers could not be written to out/r.answers.jsonl: Is a directory"]
    )
    assert sorted(path.name for path in Path("out").iterdir()) == ["r.answers.jsonl", "r.json"]
    small.with_name("blocked").write_text("a file")
    result = pytester.runpytest("--quant-budget", small.name, "--quant-report", "blocked/r.json")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        ["the report could not be written to blocked/r.json: *", "the answers could not be written to blocked/*"]
    )
