"""What the browser of questions is given: what flipped, each text once, and texts of questions that may be shown."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import MEASUREMENT, REPORT, TASK

from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR, file_hash
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.report.document import BudgetReport, MethodReport
from pytest_quantbudget.report.page import answers, questions
from pytest_quantbudget.report.page.answers import GAINED, KEPT, LOST, RIGHT_ALONE, WRONG, WRONG_ALONE, Flips, Texts

SUMS = replace(TASK, name="sums", harness=None, file="/nowhere/sums.jsonl", shots_file=None, extract="flexible")


def answer(number: int, text: str, right: bool) -> Answer:
    """An answer whose two extractions differ."""
    return Answer(number, text, f"strict {text}", f"read {text}", not right, right, number == 3, 5)


def budget(task: Task = SUMS, source: str | None = None, **texts: Sequence[tuple[str, bool]]) -> BudgetReport:
    """A report whose methods have given these answers, right or wrong, the first of them the baseline."""
    methods = []
    for name, given in texts.items():
        told = tuple(answer(number, *each) for number, each in enumerate(given))
        record = replace(MEASUREMENT, tasks=(TaskResult(task, told, 1.0, source=source),))
        methods.append(MethodReport(name, record, ()))
    return replace(REPORT.budgets[0], tasks=(task,), methods=tuple(methods), baseline=next(iter(texts)), stored=None)


BEFORE = [("a", True), ("b", True), ("c", False), ("d", False), ("e", True)]
AFTER = [("a", True), ("x", False), ("y", True), ("z", False), ("f", True)]


def data(found: BudgetReport, texts: Texts | None = None) -> tuple[dict[str, Any], list[str]]:
    texts = texts or Texts()
    (told,) = answers.data([found], texts)
    return json.loads(answers.as_json(told)), list(texts.numbers)


def test_each_question_has_what_became_of_it_and_both_texts() -> None:
    told, texts = data(budget(fp16=BEFORE, nf4=AFTER))
    (task,) = told["tasks"]
    assert (told["methods"], told["baseline"], list(task["rows"])) == (["fp16", "nf4"], "fp16", ["1"])
    rows = task["rows"]["1"]
    assert [row[:2] for row in rows] == [[0, KEPT], [1, LOST], [2, GAINED], [3, WRONG], [4, KEPT]]
    shown = [[texts[row[at]] for at in (2, 3, 5, 6)] for row in rows]
    assert shown[1] == ["b", "read b", "x", "read x"]
    assert [(row[4], row[7]) for row in rows] == [(0, 0), (0, 0), (0, 0), (1, 1), (0, 0)]
    assert answers.flips(budget(fp16=BEFORE, nf4=AFTER)) == [Flips("sums", "nf4", 5, 1, 1, 1, 2)]


def test_one_text_is_there_once_however_many_have_said_it() -> None:
    same = [("the same", True)] * 50
    assert data(budget(fp16=same, nf4=same, int8=same))[1] == ["the same", "read the same"]


def test_answers_that_there_is_nothing_to_compare_with_are_right_or_wrong() -> None:
    told, _ = data(budget(fp16=BEFORE))
    assert [row[1] for row in told["tasks"][0]["rows"]["0"]] == [RIGHT_ALONE] * 2 + [WRONG_ALONE] * 2 + [RIGHT_ALONE]
    none = replace(budget(fp16=BEFORE, nf4=AFTER), baseline=None)
    assert list(data(none)[0]["tasks"][0]["rows"]) == ["0", "1"]


def test_what_flipped_has_its_texts_where_there_is_no_room_for_all() -> None:
    long = [(f"{text * 1000} {number}", right) for number, (text, right) in enumerate(BEFORE)]
    other = [(f"{text * 1000} {number}", right) for number, (text, right) in enumerate(AFTER)]
    limited = Texts(9_000)
    told, texts = data(budget(fp16=long, nf4=other), limited)
    rows = told["tasks"][0]["rows"]["1"]
    assert all(at >= 0 for row in rows[1:3] for at in (row[2], row[5]))
    assert limited.left_out > 0
    assert sum(map(len, texts)) <= 9_000
    assert answers.LEFT_OUT in {row[5] for row in rows}


def test_a_very_long_text_is_cut_and_says_so() -> None:
    texts = Texts()
    texts.number("x" * 50_000)
    assert next(iter(texts.numbers)) == "x" * answers.LONGEST + "\n[30,000 more characters]"


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--<script>", "]]>&amp;", "\u2028\u2029"])
def test_no_text_ends_the_element_that_the_data_stand_in(text: str) -> None:
    told = answers.as_json([text])
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(told)
    assert json.loads(told) == [text]


def test_what_steers_or_breaks_a_text_is_replaced() -> None:
    _, texts = data(budget(fp16=[("\x1b[31m\u202e\ud800\r\nline", True)], nf4=[("b", False)]))
    assert "\ufffd[31m\ufffd\ufffd\nline" in texts
    "".join(texts).encode()


def test_questions_come_from_the_file_that_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(5)))
    task = replace(SUMS, file=str(file))
    told, texts = data(budget(task, file_hash(file), fp16=BEFORE, nf4=AFTER))
    (sums,) = told["tasks"]
    assert {number: texts[at] for number, at in sums["asked"].items()} == {str(n): f"{n} + 1?" for n in range(5)}
    assert texts[sums["wanted"]["4"]] == "5"
    assert sums["why"] == ""
    file.write_text(file.read_text().replace("1?", "2?"))
    told, texts = data(budget(task, f"sha256:{'0' * 64}+sha256:1", fp16=BEFORE))
    assert told["tasks"][0]["asked"] == {}
    assert (
        told["tasks"][0]["why"] == "sums.jsonl, as it was when it was asked, is not on the machine that made this page"
    )


def test_a_report_opens_no_file_whose_content_it_does_not_know(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"question": "the secret", "answer": "#### 1"}\n')
    for source in (None, "", "sha256:00ff"):
        _, texts = data(budget(replace(SUMS, file=str(secret)), source, fp16=BEFORE, nf4=AFTER))
        assert "the secret" not in texts


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"harness": "arc_easy"}, "lm-evaluation-harness asked them"),
        ({"file": None}, "they come from the hub"),
        ({"file": "/nowhere/sums.jsonl"}, "sums.jsonl, as it was"),
    ],
)
def test_why_there_are_no_texts_is_said(change: dict[str, Any], why: str) -> None:
    task = replace(SUMS, **change)
    assert why in questions.asked(task, [TaskResult(task, (answer(0, "a", True),), 1.0, source="sha256:0")]).why


def test_the_packages_own_questions_are_found_on_any_machine() -> None:
    shipped = BUILTIN_DIR / "questions.jsonl"
    task = replace(SUMS, file="/another/machine/builtin/questions.jsonl")
    result = TaskResult(task, (answer(0, "a", True),), 1.0, source=file_hash(shipped))
    assert len(questions.asked(task, [result]).by_number) == len(shipped.read_text().splitlines())
