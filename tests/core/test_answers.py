"""Which answers of two methods go together."""

from dataclasses import replace

from builders import TASK, answers

from pytest_quantbudget.core.answers import Answer, TaskResult, by_prompt, counterparts


def asked(*prompts: str) -> tuple[Answer, ...]:
    """An answer to each prompt."""
    return tuple(
        replace(answer, prompt=prompt) for answer, prompt in zip(answers((len(prompts), True)), prompts, strict=True)
    )


def test_a_prompt_that_stands_there_twice_has_two_answers() -> None:
    first, second, other = asked("a", "a", "b")
    assert by_prompt([first, other, second], ["a", "b", "a", "a", "c", ""]) == [first, other, second, None, None, None]
    assert by_prompt(asked(""), [""]) == [None]


def test_where_a_prompt_is_not_known_numbers_tell() -> None:
    before, after = (TaskResult(TASK, told, 1.0) for told in (asked("a", "", "c"), asked("a", "b", "d")))
    assert counterparts(before, after) == [before.answers[0], before.answers[1], None]
    moved = replace(after, answers=tuple(replace(answer, question=answer.question + 1) for answer in after.answers))
    assert counterparts(replace(before, answers=asked("", "", "")), moved)[2] is None
