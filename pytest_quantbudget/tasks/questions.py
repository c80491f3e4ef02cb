"""Questions of GSM8K's form, from a JSONL file or from the hub, drawn at random by a seed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import files
from pytest_quantbudget.core.files import path_from
from pytest_quantbudget.core.problems import BudgetError, Problem, text_lines
from pytest_quantbudget.tasks import extraction

BUILTIN = "builtin"
MAX_CHARACTERS = 100_000  # of a question, or of its answer
NUMBER = re.compile(r"-?(\d+(\.\d+)?|\.\d+)")
ZEROS = re.compile(r"\.0+$")
HALF = re.compile("[\ud800-\udfff]")

# Task name to data set and configuration on the Hugging Face hub.
HUB_SETS = {"gsm8k": ("openai/gsm8k", "main"), "gsm8k_cot": ("openai/gsm8k", "main")}
HUB_SIZES = {"gsm8k": 1319, "gsm8k_cot": 1319}  # questions of the test split, by the data set's card
FEWSHOT_SEED = 1234  # of lm-evaluation-harness, `simple_evaluate(fewshot_random_seed=1234)`


@dataclass(frozen=True)
class Question:
    """One line of a set: `index` counts from 0; `answer` is the worked solution, ending in `#### N`.

    `cluster` is what the line says under the key that the task names.
    """

    index: int
    question: str
    answer: str
    cluster: str = ""


def reference(answer: str) -> str:
    """What an answer is compared with: all behind the last `####`, without blanks around it."""
    return answer.rpartition("####")[2].strip()


def _unmatchable(answer: str) -> str:
    """Why no answer can ever equal a reference, in words; nothing where one can.

    Answers are read as numbers: digits, a sign, a point; commas, dollar signs and a full stop at the end are taken out
    of both sides, and nothing else.
    """
    if "####" not in answer:
        return "the answer does not end in `#### N`"
    wanted = reference(answer)
    bare = extraction.bare(wanted)
    if not NUMBER.fullmatch(bare):
        return f"no answer can equal the reference {wanted!r:.60}: write `#### ` and a bare number, such as 42 or -3.5"
    if ZEROS.search(bare):
        return f"hardly any answer is written as the reference {wanted!r:.60}: write it as {ZEROS.sub('', bare)}"
    return ""


def resolve(name: str, beside: Path) -> Path:
    """The file that a budget's `file` or `calibration` names, relative to the budget's own folder."""
    return files.BUILTIN_DIR / "questions.jsonl" if name == BUILTIN else path_from(beside, name)


def read_file(path: Path, cluster: str | None = None, *, asked: bool = True) -> list[Question]:
    """The questions of a JSONL file, with what each line says under the key `cluster`.

    Raises BudgetError, naming file and line, for a file that is missing, no regular file, too large, empty, cut off,
    asks one question twice, or holds a line without `question`, `answer`, `cluster`, or a reference that an answer can
    equal. Of worked examples, which are not `asked`, the answer only has to end in `#### N`.
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
        problem = _of_line(row, cluster, asked=asked)
        if problem:
            raise BudgetError(Problem(path, number, problem))
        first = seen.setdefault(row["question"].strip(), number)
        if first != number:
            raise BudgetError(Problem(path, number, f"repeats the question of line {first}"))
        belongs = str(row[cluster]) if cluster is not None else ""
        questions.append(Question(len(questions), row["question"], row["answer"], belongs))
    if not questions:
        raise BudgetError(Problem(path, 0, "holds no questions"))
    return questions


def _of_line(row: Mapping[str, Any], cluster: str | None, *, asked: bool) -> str:
    """What is wrong with a line that has both texts; nothing where it can be used."""
    for key in ("question", "answer"):
        if len(row[key]) > MAX_CHARACTERS:
            return f"`{key}` has {len(row[key]):,} characters, and at most {MAX_CHARACTERS:,} are read"
        if HALF.search(row[key]):
            return f"`{key}` holds half of a surrogate pair, which is no character"
    if cluster is not None and not isinstance(row.get(cluster), str | int):
        return f"has no text or number {cluster!r}, by which `cluster` puts questions together"
    if asked:
        return _unmatchable(row["answer"])
    return "" if "####" in row["answer"] else "the answer does not end in `#### N`"


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
