"""The questions of a task with their worked examples, and the text in which the model gets to see them."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import file_hash
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.units import ISO, UTC
from pytest_quantbudget.tasks import questions
from pytest_quantbudget.tasks.questions import Question
from pytest_quantbudget.tasks.sets import styles


@dataclass(frozen=True)
class Asked:
    """A question, and the worked examples (question, answer) in front of it."""

    question: Question
    shots: tuple[tuple[str, str], ...] = ()


def sample(task: Task, source: str | None = None) -> list[Asked]:
    """The questions of a task, drawn by its seed, with their worked examples.

    These are the style's own, or lm-evaluation-harness's choice for each question, or the same for all, from the
    `shots_file`, the hub set's train split, or the file of the questions itself. `source` is what they are to be drawn
    from: hashes of the files, or the hub set's name with its commit. Raises ValueError where that has changed.
    """
    commit = source.rpartition("@")[2] if source and task.file is None else None
    if task.file is not None and source is not None and state(task) != source:
        raise ValueError(f"{Path(task.file).name} was changed while the run was going on")
    file = Path(task.file) if task.file else None
    pool = questions.read_file(file, task.cluster) if file else questions.read_hub(task.name, "test", commit)
    style, shots = styles()[task.style], task.shots or 0
    if task.fewshot == "harness" and style.examples:
        return [Asked(q, tuple(style.examples[:shots])) for q in questions.draw(pool, task.questions, 0, task.seed)[0]]
    if task.shots_file is None and task.file is not None:
        asked, examples = questions.draw(pool, task.questions, shots, task.seed)
        return [Asked(q, _pairs(examples)) for q in asked]
    asked, _ = questions.draw(pool, task.questions, 0, task.seed)
    if not shots:
        return [Asked(q) for q in asked]
    others = questions.read_file(Path(task.shots_file), asked=False) if task.shots_file else None
    train = others or questions.read_hub(task.name, "train", commit)
    if task.fewshot == "harness":
        chosen = questions.harness_shots(train, len(pool), shots)
        return [Asked(q, _pairs(chosen[q.index])) for q in asked]
    return [Asked(q, _pairs(questions.draw(train, 1, shots, task.seed)[1])) for q in asked]


def _pairs(examples: Sequence[Question]) -> tuple[tuple[str, str], ...]:
    return tuple((example.question, example.answer) for example in examples)


def state(task: Task) -> str:
    """What a task's files hold: hashes. Raises OSError."""
    files = [Path(name) for name in (task.file, task.shots_file) if name is not None]
    return "+".join(map(file_hash, files))


def prompt_hash(text: str) -> str:
    """A short name of a prompt: answers are compared only where it is the same."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def uses_chat_template(tokenizer: Any, task: Task) -> bool:
    """Whether a task is asked through the tokenizer's chat template.

    Raises ValueError for a task that asks for a chat template which the tokenizer has not.
    """
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if task.chat_template and not has_one:
        raise ValueError(f"task {task.name} asks for a chat template, and the model's tokenizer has none")
    return has_one if task.chat_template is None else task.chat_template


@contextlib.contextmanager
def _clock(clock: Prompter) -> Iterator[None]:
    """Have chat templates read another clock: what transformers gives them as `strftime_now` asks its `datetime`."""
    module: Any = sys.modules.get("transformers.utils.chat_template_utils")
    if not hasattr(module, "datetime"):
        yield
        return
    real = module.datetime
    module.datetime = clock
    try:
        yield
    finally:
        module.datetime = real


class Prompter:
    """Makes prompts of questions, as running text or through the tokenizer's chat template.

    A template that asks for the time is told `clock` (ISO 8601, UTC), which `told_time` then holds. Raises ValueError
    for a task that needs a chat template which the tokenizer does not have.
    """

    def __init__(self, tokenizer: Any, task: Task, clock: str = "") -> None:
        self.tokenizer, self.task, self.style = tokenizer, task, styles()[task.style]
        self.chats = uses_chat_template(tokenizer, task)
        self.clock, self.told_time = clock, ""

    def now(self) -> datetime.datetime:
        """What a template gets to know of the clock."""
        self.told_time = self.clock or datetime.datetime.now(UTC).strftime(ISO)
        return datetime.datetime.strptime(self.told_time, ISO).replace(tzinfo=UTC)

    def text(self, asked: Asked) -> str:
        """The prompt of a question.

        A system prompt outside a conversation stands in front, as in lm-evaluation-harness. A template that knows no
        system role raises what it raises: an instruction that is left out in silence would be another task.
        """
        system = self.task.system_prompt
        if not self.chats:
            return f"{system or ''}{self.style.plain(asked.question.question, asked.shots)}"
        thinking = self.task.enable_thinking
        told = {} if thinking is None else {"enable_thinking": thinking}
        turns = self.style.chat(asked.question.question, asked.shots, system)
        with _clock(self):
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **told)
        return text

    def tokens(self, texts: Sequence[str], ends: Sequence[int] = ()) -> list[list[int]]:
        """The prompts' token ids; where a template begins with the start token, they get no second one.

        Raises ValueError where there are none, where the chat template leaves the questions out, and where the
        tokenizer puts one of the end tokens `ends` behind every text.
        """
        if self.chats and (not all(text.strip() for text in texts) or len(set(texts)) < min(2, len(texts))):
            raise ValueError("the chat template leaves the questions out: it renders the same, or nothing, for all")
        start = getattr(self.tokenizer, "bos_token", None)
        more = {"add_special_tokens": False} if start and texts[0].startswith(start) else {}
        ids: list[list[int]] = self.tokenizer(list(texts), **more)["input_ids"]
        if not all(ids):
            raise ValueError("the tokenizer returned no tokens for the questions; are its files missing?")
        appended = self.tokenizer.decode([ids[0][-1]])
        if all(line[-1] in ends for line in ids) and not all(text.endswith(appended) for text in texts):
            raise ValueError(
                f"the tokenizer puts the end token {appended!r} behind every text, so that the model would be asked "
                f"behind its own end: take it out of the tokenizer's post-processor (add_eos_token)"
            )
        return ids
