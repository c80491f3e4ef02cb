"""What a first budget asks of the model: a workload and a task that fit into what it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.first.wish import Wish
from pytest_quantbudget.core import versions
from pytest_quantbudget.core.budget import DEVELOPMENT
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.models import methods
from pytest_quantbudget.tasks.questions import BUILTIN, HUB_SIZES

PROMPT, NEW, REPEATS = 512, 128, 5
FEW_NEW, FEW_QUESTIONS = 32, 100  # in development: quick, and telling breakdowns alone
# So many tokens a model has to read for GSM8K with so many worked examples in front, and 256 tokens of an answer.
SHOTS = ((1536, 5), (1024, 2), (512, 0))


@dataclass(frozen=True)
class Asked:
    """A task under its name, with its settings; without a name there is none. `remarks` are comments."""

    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def workload(wish: Wish) -> Workload:
    """What memory and speed are measured on: the usual one, or a shorter one for a model that reads less."""
    new = FEW_NEW if wish.use == DEVELOPMENT else NEW
    positions = wish.found.positions or PROMPT + NEW
    if positions < PROMPT + NEW:
        return Workload(max(1, positions // 4), max(2, positions // 16), 1, REPEATS)
    return Workload(PROMPT, new, 1, REPEATS)


def task(wish: Wish) -> Asked:
    """The task: questions of the user's, those that the model of this package has learned, or GSM8K."""
    few = wish.use == DEVELOPMENT
    if wish.questions is not None:
        settings: dict[str, Any] = {"file": wish.questions}
        return Asked(_name_of(wish.questions), settings | ({"questions": FEW_QUESTIONS} if few else {}))
    if wish.found.shipped:
        asked: Any = FEW_QUESTIONS if few else {"start": 450, "max": 1300}
        return Asked("wordmath", {"file": BUILTIN, "questions": asked, "max_new_tokens": 96})
    shots = next((count for least, count in SHOTS if (wish.found.positions or SHOTS[0][0]) >= least), None)
    if shots is None:
        why = f"no task: the model reads {wish.found.positions} tokens, and GSM8K takes {SHOTS[-1][0]}"
        return Asked(remarks=(f"{why}; --questions FILE takes questions of yours",))
    asked = FEW_QUESTIONS if few else {"start": 100, "max": HUB_SIZES["gsm8k"]}
    remarks = ["`file: QUESTIONS.jsonl` asks questions of yours instead, or GSM8K where the hub is out of reach"]
    if not versions.is_there("datasets"):
        remarks.append(f"reading it from the hub takes: {methods.pip_command('datasets')}")
    if wish.found.chat:
        why = "`chat_template: true` asks as its users do: answers get longer"
        remarks.append(f"{why}, so raise max_new_tokens (256), and for one that thinks add `enable_thinking: false`")
    return Asked("gsm8k", {"shots": shots, "questions": asked}, tuple(remarks))


def _name_of(file: str) -> str:
    """A task's name, after its file."""
    plain = re.sub(r"[^a-z0-9_]+", "_", Path(file).stem.lower()).strip("_")[:30]
    return plain if re.fullmatch("[a-z][a-z0-9_]*", plain) else f"task_{plain}".rstrip("_")
