"""Question sets: reading, drawing by seed, and the prompt."""

import json
from pathlib import Path

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.models.calibration import calibration_texts
from pytest_quantbudget.tasks import extraction, questions
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


def answered(tmp_path: Path, reference: str) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": f"20 - 2 = 18\n{reference}"}) + "\n")
    return path


@pytest.mark.parametrize(
    "reference",
    [
        "#### 18",
        "####18",
        "####  18",
        "####\t18",
        "#### 18 ",
        "#### 18\n",
        "#### 18\r\n",
        "#### $18",
        "#### 18.",
        "#### 1,8",
    ],
)
def test_blanks_and_signs_around_a_reference_do_not_count(tmp_path: Path, reference: str) -> None:
    (question,) = questions.read_file(answered(tmp_path, reference))
    assert extraction.same("18", questions.reference(question.answer))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("#### 18 cups", "no answer can equal the reference '18 cups': write `#### ` and a bare number"),
        ("#### 18%", "no answer can equal the reference '18%'"),
        ("#### +18", "no answer can equal the reference '+18'"),
        ("#### **18**", "no answer can equal the reference '**18**'"),
        ("#### \\boxed{18}", "no answer can equal the reference '\\\\boxed{18}'"),
        ("#### eighteen", "no answer can equal the reference 'eighteen'"),
        ("#### 3/4", "no answer can equal the reference '3/4'"),
        ("#### ", "no answer can equal the reference ''"),
        ("#### 18.0", "hardly any answer is written as the reference '18.0': write it as 18"),
        ("18", "the answer does not end in `#### N`"),
    ],
)
def test_a_reference_that_no_answer_can_equal_is_refused_with_its_line(
    tmp_path: Path, reference: str, words: str
) -> None:
    with pytest.raises(BudgetError) as caught:
        questions.read_file(answered(tmp_path, reference))
    assert f"q.jsonl:1: {words}" in str(caught.value)


def test_worked_examples_may_say_what_no_answer_is_compared_with(tmp_path: Path) -> None:
    assert len(questions.read_file(answered(tmp_path, "#### 18 cups"), asked=False)) == 1


def test_the_real_set_can_be_answered(gsm8k: Path) -> None:
    assert len(questions.read_file(gsm8k)) == 1319


def test_marks_halves_and_lengths(tmp_path: Path) -> None:
    path = answered(tmp_path, "#### 18")
    plain = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + plain)
    assert questions.read_file(path)[0].question == "How many?"
    path.write_bytes(plain + b'{"question": "half \\ud83d", "answer": "#### 4"}\n')
    with pytest.raises(BudgetError, match=r"q.jsonl:2: `question` holds half of a surrogate pair"):
        questions.read_file(path)
    path.write_bytes(plain + json.dumps({"question": "a" * 100_001, "answer": "#### 4"}).encode())
    with pytest.raises(BudgetError, match=r"q.jsonl:2: `question` has 100,001 characters, and at most 100,000"):
        questions.read_file(path)
    path.write_bytes(plain + b"\xff\n")
    with pytest.raises(BudgetError, match=r"q.jsonl:2: is not UTF-8 text"):
        questions.read_file(path)


def test_clusters_are_read_and_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": f"{i}?", "answer": f"#### {i}", "topic": f"t{i // 2}"} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [q.cluster for q in questions.read_file(path, "topic")] == ["t0", "t0", "t1", "t1"]
    with pytest.raises(BudgetError, match=r"q.jsonl:1: has no text or number 'theme', by which `cluster` puts"):
        questions.read_file(path, "theme")
