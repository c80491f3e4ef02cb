"""How a question is put and its answer read: lm-evaluation-harness 0.4's tasks gsm8k and gsm8k_cot (version 3.0)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The worked examples of Wei et al. 2022, "Chain-of-Thought Prompting", arXiv 2201.11903, appendix G, table 20.
CHAIN_OF_THOUGHT = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. "
        "The answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
        "The answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he "
        "had 35 - 2 = 33 golf balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8. The answer is 8.",
    ),
)


@dataclass(frozen=True)
class Style:
    """One way of asking: `question` and its answer around the text, what ends an answer, and what is read from it.

    `shots` is how many worked examples the harness puts in front; `examples` are they, where they are always the same.
    """

    question: str
    stops: tuple[str, ...]
    strict: re.Pattern[str]
    shots: int
    examples: Sequence[tuple[str, str]] = ()

    def plain(self, question: str, shots: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt as running text: worked examples, an empty line behind each, then the question."""
        examples = "".join(f"{self.asked(q)} {a}\n\n" for q, a in shots)
        return f"{examples}{self.asked(question)}"

    def chat(
        self, question: str, shots: Sequence[tuple[str, str]] = (), system: str | None = None
    ) -> list[dict[str, str]]:
        """The prompt as a conversation, each worked example a turn (the harness's `fewshot_as_multiturn`)."""
        turns = [{"role": "system", "content": system}] if system is not None else []
        for q, a in shots:
            turns += [{"role": "user", "content": self.asked(q)}, {"role": "assistant", "content": a}]
        return [*turns, {"role": "user", "content": self.asked(question)}]

    def asked(self, question: str) -> str:
        """The question alone, up to where its answer begins."""
        return self.question.format(question)


STYLES: Mapping[str, Style] = {
    "gsm8k": Style(
        "Question: {}\nAnswer:",
        ("Question:", "</s>", "<|im_end|>"),
        re.compile(r"#### (\-?[0-9\.\,]+)"),
        shots=5,
    ),
    "gsm8k_cot": Style(
        "Q: {}\nA:",
        ("Q:", "</s>", "<|im_end|>"),
        re.compile(r"The answer is (\-?[0-9\.\,]+)."),
        shots=8,
        examples=CHAIN_OF_THOUGHT,
    ),
}
