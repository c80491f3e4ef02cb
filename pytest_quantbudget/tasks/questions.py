"""Questions of GSM8K's form, from a JSONL file or from the hub, drawn at random by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import BudgetError, Problem, text_lines

BUILTIN = "builtin"
MAX_BYTES = 200_000_000


# Task name to data set and configuration on the Hugging Face hub.
HUB_SETS = {"gsm8k": ("openai/gsm8k", "main"), "gsm8k_cot": ("openai/gsm8k", "main")}
HUB_SIZES = {"gsm8k": 1319, "gsm8k_cot": 1319}  # questions of the test split, by the data set's card
FEWSHOT_SEED = 1234  # of lm-evaluation-harness, `simple_evaluate(fewshot_random_seed=1234)`


@dataclass(frozen=True)
class Question:
    """One line of a set: `index` counts from 0; `answer` is the worked solution, ending in `#### N`."""

    index: int
    question: str
    answer: str


def resolve(name: str, beside: Path) -> Path:
    """The file that a budget's `file` or `calibration` names, relative to the budget's own folder."""
    return files.BUILTIN_DIR / "questions.jsonl" if name == BUILTIN else path_from(beside, name)


def read_file(path: Path) -> list[Question]:
    """The questions of a JSONL file.

    Raises BudgetError, naming file and line, for a file that is missing, no regular file, too large, empty, cut off,
    asks one question twice, or holds a line without `question`, `answer` or the answer's `#### N`.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, line in text_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise BudgetError(Problem(path, number, "is not a JSON object; was the file truncated?")) from None
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("question", "answer")):
            raise BudgetError(Problem(path, number, "must be an object with the texts `question` and `answer`"))
        if "####" not in row["answer"]:
            raise BudgetError(Problem(path, number, "the answer does not end in `#### N`"))
        first = seen.setdefault(row["question"].strip(), number)
        if first != number:
            raise BudgetError(Problem(path, number, f"repeats the question of line {first}"))
        questions.append(Question(len(questions), row["question"], row["answer"]))
    if not questions:
        raise BudgetError(Problem(path, 0, "holds no questions"))
    return questions


def read_hub(name: str, split: str, commit: str | None = None) -> list[Question]:
    """The questions of a set on the hub, through the library `datasets` (its cache serves offline machines)."""
    from datasets import load_dataset

    rows = load_dataset(*HUB_SETS.get(name, (name,)), split=split, revision=commit)
    return [Question(i, row["question"], row["answer"]) for i, row in enumerate(rows)]


def draw(
    pool: Sequence[Question], questions: int | None, shots: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """A random sample of `questions` and `shots` others as worked examples, the same for the same seed.

    Never the first n: the first 200 questions of GSM8K are easier than the set. Raises ValueError where the pool is
    too small.
    """
    wanted = len(pool) - shots if questions is None else questions
    if wanted < 1 or wanted + shots > len(pool):
        asked = f"{wanted:,} questions" if questions else "questions"
        raise ValueError(f"{asked} and {shots} shots are needed from a set of {len(pool):,}")
    order = random.Random(seed).sample(range(len(pool)), len(pool))
    return [pool[i] for i in order[shots : shots + wanted]], [pool[i] for i in order[:shots]]


def harness_shots(pool: Sequence[Question], questions: int, shots: int) -> list[list[Question]]:
    """The worked examples that lm-evaluation-harness 0.4 puts in front of each of a set's `questions`, in its order.

    `ContextSampler` draws them anew for every question, from one generator (`lm_eval/api/samplers.py`).
    """
    drawing = random.Random(FEWSHOT_SEED)
    return [drawing.sample(list(pool), shots) for _ in range(questions)]
