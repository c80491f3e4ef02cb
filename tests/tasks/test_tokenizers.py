"""Whether two tokenizers make the same tokens."""

from typing import Any

from pytest_quantbudget.tasks import tokenizers


class Letters:
    """Splits a text into letters, whose ids begin at a number."""

    def __init__(self, first: int = 0, more: tuple[str, ...] = ()) -> None:
        self.first, self.more = first, more

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(("a", "b", *self.more))}

    def __call__(self, text: str) -> dict[str, Any]:
        return {"input_ids": [self.first + ord(letter) for letter in text]}


class Bare:
    """One that does not tell what it knows."""

    def __call__(self, text: str) -> dict[str, Any]:
        return {"input_ids": list(text.encode())}


def test_the_same_tokenizer_has_the_same_state_and_others_have_others() -> None:
    known = tokenizers.state(Letters())
    assert known == tokenizers.state(Letters())
    # Other words, other numbers, another way to split.
    others = {tokenizers.state(each) for each in (Letters(more=("c",)), Letters(first=1), Bare())}
    assert len({known, *others}) == 4
