"""Reading an answer as lm-evaluation-harness 0.4 does (tasks/gsm8k/gsm8k.yaml, version 3.0: filter_list)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_quantbudget.core.answers import INVALID

FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def after_thinking(text: str) -> str:
    """What follows the end of a model's thinking; all of the text where there is no such end."""
    return text.rpartition("</think>")[2].lstrip() if "</think>" in text else text


def strict(text: str, pattern: re.Pattern[str]) -> str:
    """The first number that the style's `pattern` finds (after `#### `, say), or `[invalid]`."""
    found = pattern.search(text)
    return found[1].strip() if found else INVALID


def flexible(text: str) -> str:
    """The last thing that looks like a number, or `[invalid]`."""
    last = INVALID
    for found in FLEXIBLE.finditer(text):
        last = (found[1] or found[2]).strip()
    return last


def same(extracted: str, answer: str) -> bool:
    """exact_match: equal once commas, dollar signs, all up to `#### ` and a final full stop are taken out."""
    return bare(extracted) == bare(answer)


def bare(text: str) -> str:
    """A text without what does not count when answers are compared."""
    for pattern in IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop sequence; what follows belongs to the next question."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
