"""An engine that runs no model: tokens are characters, all answers are the same, each token has the odds 1 to 1."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.measurement import Device
from pytest_quantbudget.engine.base import Decoded, Description, Ends, Engine, Hear, Sequences
from pytest_quantbudget.engine.out_of_memory import Batching

SAYS = "Let me think.\n#### 7"


class Characters:
    """A tokenizer whose token ids are code points."""

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": list(map(ord, text)) if isinstance(text, str) else [list(map(ord, t)) for t in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))


class Parrot(Engine):
    """Answers and scores; it cannot time, and has no logits."""

    name = "parrot"
    tokenizer = Characters()
    closed = 0

    def describe(self) -> Description:
        layers = Layers("linear", "Linear", "parrot", "parrot", 4, 1, 100)
        device = Device("cpu", None, None, None, None, 1)
        return Description("abc", device, 0.5, 50, Receipt((layers,)), {"cpu": "all"}, positions=5000, end_tokens=(0,))

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        for i in range(len(prompts)):
            answer = Decoded(logprob=-1.0)
            for character in f"{SAYS}\0":
                if not answer.done:
                    ends.add(answer, ord(character))
            hear({i: answer})

    def score(self, sequences: Sequences) -> Iterator[list[float]]:
        for ids, first in sequences:
            yield [-math.log(2)] * (len(ids) - first)

    def close(self) -> None:
        Parrot.closed += 1


def load(*_: Any) -> Parrot:
    return Parrot()
