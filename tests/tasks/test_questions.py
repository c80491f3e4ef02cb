"""Question sets: reading, drawing by seed, and the prompt."""

import json
from pathlib import Path

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.models.calibration import calibration_texts
from pytest_quantbudget.tasks.questions import draw, read_file
from pytest_quantbudget.tasks.styles import STYLES


def test_questions_are_drawn_at_random_by_seed_apart_from_the_examples() -> None:
    pool = read_file(BUILTIN_DIR / "questions.jsonl")
    asked, shots = draw(pool, 50, 5, seed=0)
    assert draw(pool, 50, 5, seed=0) == (asked, shots)
    assert draw(pool, 50, 5, seed=1)[0] != asked
    assert len({question.index for question in asked + shots}) == 55
    assert {question.index for question in asked} != set(range(50))


def test_the_prompt_shows_worked_examples_then_the_question() -> None:
    pool = read_file(BUILTIN_DIR / "questions.jsonl")
    one, two = pool[0], pool[1]
    assert STYLES["gsm8k"].plain(two.question, [(one.question, one.answer)]) == (
        f"Question: {one.question}\nAnswer: {one.answer}\n\nQuestion: {two.question}\nAnswer:"
    )


def test_a_line_separator_inside_a_text_ends_no_line_of_jsonl(tmp_path: Path) -> None:
    row = {"question": "One\u2028two?", "answer": "Three\x85four #### 5"}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert [(q.question, q.answer) for q in read_file(path)] == [(row["question"], row["answer"])]
    assert calibration_texts(path, 1, 0) == [f"Question: {row['question']}\nAnswer: {row['answer']}"]


def test_without_a_number_all_that_the_examples_leave_is_asked() -> None:
    pool = read_file(BUILTIN_DIR / "questions.jsonl")
    asked, shots = draw(pool, None, 5, seed=0)
    assert sorted(question.index for question in asked + shots) == list(range(len(pool)))


def test_more_than_the_set_holds_cannot_be_drawn() -> None:
    pool = read_file(BUILTIN_DIR / "questions.jsonl")[:10]
    assert len(draw(pool, 8, 2, seed=0)[0]) == 8
    with pytest.raises(ValueError, match="9 questions and 2 shots are needed from a set of 10"):
        draw(pool, 9, 2, seed=0)


def test_calibration_texts_are_drawn_by_seed_from_jsonl_or_plain_lines(tmp_path: Path) -> None:
    lines = [f"text {i}" for i in range(50)]
    plain, rows = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text("\n\n".join(lines))
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    texts = calibration_texts(plain, 20, seed=0)
    assert len(set(texts)) == 20
    assert set(texts) < set(lines)
    assert calibration_texts(rows, 20, seed=0) == texts
    assert calibration_texts(plain, 20, seed=1) != texts
    with pytest.raises(ValueError, match=r"texts\.txt holds 50 calibration texts and 51 were asked for"):
        calibration_texts(plain, 51, seed=0)
