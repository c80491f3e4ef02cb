"""Questions of GSM8K's form, from a JSONL file or from the hub, drawn at random by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget import files
from pytest_quantbudget.yamlfile import BudgetError, Problem, path_from

BUILTIN = "builtin"
MAX_BYTES = 200_000_000
BUILTIN_DIR = files.BUILTIN_DIR
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
    return BUILTIN_DIR / "questions.jsonl" if name == BUILTIN else path_from(beside, name)


def read_file(path: Path) -> list[Question]:
    """The questions of a JSONL file.

    Raises BudgetError, naming file and line, for a file that is missing, no regular file, too large, empty, cut off,
    asks one question twice, or holds a line without `question`, `answer` or the answer's `#### N`.
    """
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise BudgetError(Problem(path, number, "is not a JSON object; was the file cut off?")) from None
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("question", "answer")):
            raise BudgetError(Problem(path, number, "wants an object with the texts `question` and `answer`"))
        if "####" not in row["answer"]:
            raise BudgetError(Problem(path, number, "the answer does not end in `#### N`"))
        first = seen.setdefault(row["question"].strip(), number)
        if first != number:
            raise BudgetError(Problem(path, number, f"repeats the question of line {first}"))
        questions.append(Question(len(questions), row["question"], row["answer"]))
    if not questions:
        raise BudgetError(Problem(path, 0, "holds no questions"))
    return questions


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Raises BudgetError where the file cannot be read as text."""
    try:
        text = files.read(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise BudgetError(Problem(path, 0, f"cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError:
        raise BudgetError(Problem(path, 0, "is not UTF-8 text")) from None
    except files.TooLarge as error:
        raise BudgetError(Problem(path, 0, f"is {error}; a file of texts has at most {MAX_BYTES:,}")) from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut inside texts, at U+2028
        if line.strip():
            yield number, line


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
        raise ValueError(f"{asked} and {shots} shots were asked of a set of {len(pool):,}")
    order = random.Random(seed).sample(range(len(pool)), len(pool))
    return [pool[i] for i in order[shots : shots + wanted]], [pool[i] for i in order[:shots]]


def harness_shots(pool: Sequence[Question], questions: int, shots: int) -> list[list[Question]]:
    """The worked examples that lm-evaluation-harness 0.4 puts in front of each of a set's `questions`, in its order.

    `ContextSampler` draws them anew for every question, from one generator (`lm_eval/api/samplers.py`).
    """
    drawing = random.Random(FEWSHOT_SEED)
    return [drawing.sample(list(pool), shots) for _ in range(questions)]


def calibration_texts(path: Path, count: int, seed: int) -> list[str]:
    """`count` random texts to quantize on: JSONL lines with `text`, or with `question` and `answer`; else plain lines.

    Raises ValueError where the file holds fewer, or a line without them; BudgetError where it cannot be read.
    """
    as_json = path.suffix in (".jsonl", ".json")
    texts = [_calibration_text(path.name, number, line) if as_json else line for number, line in _lines(path)]
    if len(texts) < count:
        raise ValueError(f"{path.name} holds {len(texts)} calibration texts and {count} were asked for")
    return random.Random(seed).sample(texts, count)


def _calibration_text(name: str, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    row = row if isinstance(row, dict) else {}
    question, answer = row.get("question"), row.get("answer")
    if isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(question, str) and isinstance(answer, str):
        return f"Question: {question}\nAnswer: {answer}"
    raise ValueError(f"{name}:{number}: wants an object with the text `text`, or with `question` and `answer`")
