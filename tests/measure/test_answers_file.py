"""Every answer as a line of JSON beside the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.answers import Answer, Origin, TaskResult
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


def test_the_file_holds_what_the_measurements_hold_and_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("of an earlier run\n")
    result = TaskResult(TASK, (ANSWER, replace(ANSWER, question=3)), 1.0, Origin("then", reused=True))
    other = replace(SUBJECT, method="nf4")
    fresh = replace(result, answers=(ANSWER,), origin=None)
    assert answers_file.write(
        path, [("", Measurement(SUBJECT, tasks=(result,))), ("NVIDIA L4", Measurement(other, tasks=(fresh,)))]
    )
    written = [(line["method"], line["question"], line["reused"]) for line in lines(path)]
    assert written == [("bf16", 7, True), ("bf16", 3, True), ("nf4", 7, False)]
    assert [line.get("machine") for line in lines(path)] == [None, None, "NVIDIA L4"]
    assert not answers_file.write(path, [("", Measurement(SUBJECT))])
    assert list(tmp_path.iterdir()) == []


def agrees_with_the_report(reused: bool = False) -> None:
    """Question by question, in order."""
    methods = json.loads(Path("out/r.json").read_text())["budgets"][0]["methods"]
    expected = []
    for measured in (method["measurement"] for method in methods):
        for task in measured["tasks"]:
            for answer in task["answers"]:
                # A later run may compare with them token by token; the end token is one of them, and no word.
                assert answer["tokens"] <= len(answer.pop("ids")) <= answer["tokens"] + 1
                answer.pop("logprob")
                own = {"model": measured["subject"]["model"], "method": measured["subject"]["method"]}
                expected.append({**own, "task": "wordmath", "correct": answer["strict_correct"], **answer})
                expected[-1]["reused"] = reused
    found = lines()
    assert all(len(line.pop("subject")) == 16 for line in found)
    assert found == expected
    assert len(found) == 24


@pytest.mark.model
def test_answers_agree_with_the_report(pytester: pytest.Pytester, small: Path) -> None:
    FILE.parent.mkdir()
    FILE.write_text("of an earlier run\n")
    arguments = ("--quant-budget", small.name, "--quant-report", "out/r.json", "--quant-cache", "kept", "-W", "error")
    result = pytester.runpytest(*arguments)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["report written to out/r.json", "answers written to out/r.answers.jsonl"])
    agrees_with_the_report()
    first = lines()
    pytester.runpytest(*arguments, "--collect-only")
    assert lines() == first
    pytester.runpytest(*arguments).assert_outcomes(passed=5)
    agrees_with_the_report(reused=True)


@pytest.mark.slow
def test_workers_write_one_file(pytester: pytest.Pytester, small: Path) -> None:
    arguments = ("--quant-budget", small.name, "--quant-report", "out/r.json", "-n", "2", "--dist", "load")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=5)
    agrees_with_the_report()


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
