"""The texts that GPTQ and AWQ are calibrated on."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pytest_quantbudget.core.problems import text_lines


def calibration_texts(path: Path, count: int, seed: int) -> list[str]:
    """`count` random texts to quantize on: JSONL lines with `text`, or with `question` and `answer`; else plain lines.

    Raises ValueError where the file holds fewer, or a line without them; BudgetError where it cannot be read.
    """
    as_json = path.suffix in (".jsonl", ".json")
    texts = [_calibration_text(path.name, number, line) if as_json else line for number, line in text_lines(path)]
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
    raise ValueError(f"{name}:{number}: must be an object with the text `text`, or with `question` and `answer`")
