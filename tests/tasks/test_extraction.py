"""Reading answers: both of lm-evaluation-harness's ways, on answers that are hard to read."""

from pathlib import Path

import pytest

from pytest_quantbudget.core.answers import INVALID
from pytest_quantbudget.tasks.extraction import after_thinking, cut_at_stop, flexible, same, strict
from pytest_quantbudget.tasks.questions import read_file
from pytest_quantbudget.tasks.styles import STYLES

GSM8K = STYLES["gsm8k"]

ANSWERS = [  # id, answer, strict, flexible
    ("plain", "1 + 1 = 2\n#### 2", "2", "2"),
    ("negative", "He owes money.\n#### -15", "-15", "-15"),
    ("decimal", "#### 2.50", "2.50", "2.50"),
    ("thousands", "#### 1,234,567", "1,234,567", "1,234,567"),
    ("full stop", "#### 42.", "42.", "42."),
    ("currency", "#### $18", INVALID, "$18"),
    ("currency, negative", "It costs -$18", INVALID, "-$18"),
    ("unit after", "#### 18 dollars", "18", "18"),
    ("bold", "**#### 18**", "18", "18"),
    ("no space", "####18", INVALID, "18"),
    ("two spaces", "####  18", INVALID, "18"),
    ("line end", "#### \n18", INVALID, "18"),
    ("three signs", "### 18", INVALID, "18"),
    ("several marks", "#### 18\n\n#### 19", "18", "19"),
    ("number after", "#### 18\nThat is 3 more than 15", "18", "15"),
    ("no mark", "The answer is 18, or 20 with tax.", INVALID, "20"),
    ("one digit", "There are 7 left", INVALID, "7"),
    ("two digits", "There are 17 left", INVALID, "17"),
    ("one digit, negative", "It is -7 today", INVALID, "-7"),
    ("subtraction", "20-5", INVALID, "-5"),
    ("subtraction in words", "20 - 5", INVALID, "5"),
    ("fraction", "3/4 of it", INVALID, "4"),
    ("percent", "that is 12.5%", INVALID, "12.5"),
    ("time", "at 10:30", INVALID, "30"),
    ("ellipsis after", "It is 18 ... roughly", INVALID, "..."),
    ("comma alone", "18, of course", INVALID, "18,"),
    ("number in words", "#### eighteen", INVALID, INVALID),
    ("no number", "I cannot tell.", INVALID, INVALID),
    ("cut off at the mark", "20 - 2 = 18\n####", INVALID, "18"),
    ("cut off before", "She has 20 apples and gives", INVALID, "20"),
    ("empty", "", INVALID, INVALID),
]


@pytest.mark.parametrize(("answer", "number"), [pytest.param(a, s, id=i) for i, a, s, _ in ANSWERS])
def test_strict_reads_the_first_number_after_the_mark(answer: str, number: str) -> None:
    assert strict(answer, GSM8K.strict) == number


@pytest.mark.parametrize(("answer", "number"), [pytest.param(a, f, id=i) for i, a, _, f in ANSWERS])
def test_flexible_reads_the_last_thing_like_a_number(answer: str, number: str) -> None:
    assert flexible(answer) == number


@pytest.mark.parametrize(
    ("extracted", "answer", "equal"),
    [
        ("18", "20 - 2 = 18\n#### 18", True),
        ("1234", "#### 1,234", True),
        ("1,234", "#### 1234", True),
        ("$18", "#### 18", True),
        ("$1,800.", "#### 1800", True),
        ("-15", "#### -15", True),
        ("15", "#### -15", False),
        ("18.0", "#### 18", False),
        ("18.00", "#### 18", False),
        ("018", "#### 18", False),
        ("2.5", "#### 25", False),
        ("180", "#### 18", False),
        ("", "#### 18", False),
        (INVALID, "#### 18", False),
        ("17", "9 + 8 = 17\n#### 18", False),
    ],
)
def test_an_answer_is_right_where_the_texts_of_the_numbers_agree(extracted: str, answer: str, equal: bool) -> None:
    assert same(extracted, answer) is equal


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 18\n#### 18\n\nQuestion: Next 5?", " 18\n#### 18\n\n"),
        ("#### 18</s>#### 19", "#### 18"),
        ("#### 18<|im_end|>\n7", "#### 18"),
        ("7<|im_end|>8</s>9", "7"),
        ("Question: again", ""),
        ("#### 18\nquestion: 7", "#### 18\nquestion: 7"),
        ("", ""),
    ],
    ids=["next question", "</s>", "<|im_end|>", "the first of two", "at once", "other case", "empty"],
)
def test_what_follows_a_stop_is_no_part_of_the_answer(text: str, answer: str) -> None:
    assert cut_at_stop(text, GSM8K.stops) == answer


def test_every_gold_answer_of_gsm8k_is_read_as_itself(gsm8k: Path) -> None:
    questions = read_file(gsm8k)
    assert len(questions) == 1319
    assert [q.index for q in questions if not same(strict(q.answer, GSM8K.strict), q.answer)] == []
    assert [q.index for q in questions if INVALID in (strict(q.answer, GSM8K.strict), flexible(q.answer))] == []


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("<think>Perhaps #### 7?</think>\n\nIt is #### 2", "It is #### 2"),
        ("It is #### 2", "It is #### 2"),
        ("<think>Perhaps #### 7", "<think>Perhaps #### 7"),
    ],
    ids=["thought", "at once", "cut off in thought"],
)
def test_thinking_is_not_part_of_the_answer(said: str, text: str) -> None:
    assert after_thinking(said) == text
