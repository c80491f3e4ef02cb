"""Asking a loaded model: batched greedy answers, read as lm-evaluation-harness reads them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pytest_quantbudget import sources
from pytest_quantbudget.measurement import Answer, Task, TaskResult
from pytest_quantbudget.metrics import logits
from pytest_quantbudget.metrics.speed import check_positions, greedy
from pytest_quantbudget.tasks import extraction, questions
from pytest_quantbudget.tasks.questions import Question


class Batches(Protocol):
    """Where finished batches are kept and found again, by number."""

    def get(self, number: int) -> TaskResult | None:
        """A batch that was finished before."""

    def put(self, number: int, batch: TaskResult) -> None:
        """Keep a finished batch."""

    def shrunk(self, asked: int, held: int) -> None:
        """Memory ran out with `asked` questions at once, and held `held`."""


def sample(task: Task, source: str | None = None) -> tuple[list[Question], list[Question]]:
    """The questions of a task and its worked examples, which come from the file itself or the hub set's train split.

    `source` is what they are to be drawn from: the hash of the file, or the hub set's name with its commit. Raises
    ValueError where the file has another by now.
    """
    if task.file is not None:
        if source is not None and sources.file_hash(Path(task.file)) != source:
            raise ValueError(f"{Path(task.file).name} was changed while the run was going on")
        return questions.draw(questions.read_file(Path(task.file)), task.questions, task.shots, task.seed)
    commit = source.rpartition("@")[2] if source else None
    asked, _ = questions.draw(questions.read_hub(task.name, "test", commit), task.questions, 0, task.seed)
    _, shots = questions.draw(questions.read_hub(task.name, "train", commit), 1, task.shots, task.seed)
    return asked, shots


def run(
    model: Any,
    tokenizer: Any,
    task: Task,
    asked: Sequence[Question],
    shots: Sequence[Question],
    kept: Batches | None = None,
) -> TaskResult:
    """Ask every question, in batches of like length that do not depend on which of them an earlier run has finished.

    Longest prompts go first, so that memory runs out at once or not at all; then the batch is halved. Raises ValueError
    where a prompt and its answer need more positions than the model has.
    """
    prompts = [questions.prompt(question, shots) for question in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Answer] = {}
    seconds, resumed = 0.0, 0
    size = task.batch_size
    for number, start in enumerate(range(0, len(order), task.batch_size)):
        batch = order[start : start + task.batch_size]
        known = kept.get(number) if kept else None
        if known is not None and [a.question for a in known.answers] == [asked[i].index for i in batch]:
            done, resumed = known, resumed + len(batch)
        else:
            began = time.perf_counter()
            before = size
            outputs, size = _answers(model, tokenizer, [prompts[i] for i in batch], task, size)
            if kept and size < before:
                kept.shrunk(before, size)
            read = [_read(asked[i], *output) for i, output in zip(batch, outputs, strict=True)]
            done = TaskResult(task, tuple(read), time.perf_counter() - began)
            if kept:
                kept.put(number, done)
        answers.update(zip(batch, done.answers, strict=True))
        seconds += done.seconds
    return TaskResult(task, tuple(answers[i] for i in range(len(asked))), seconds, resumed=resumed)


def _answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], task: Task, size: int
) -> tuple[list[tuple[str, int, bool]], int]:
    """The answers to one batch, at most `size` of them at once, and the size that memory was found to hold."""
    from pytest_quantbudget.metrics import memory

    outputs: list[tuple[str, int, bool]] = []
    while len(outputs) < len(prompts):
        part = prompts[len(outputs) : len(outputs) + size]
        try:
            outputs += generate(model, tokenizer, part, task.max_new_tokens, f"task {task.name}")
            continue
        except Exception as error:
            if len(part) == 1 or not memory.is_out_of_memory(error):
                raise
        memory.free()  # out here, where the exception no longer holds the frames of the failed attempt
        size = len(part) // 2
        logging.getLogger(__name__).warning(
            "out of memory with %d questions at once; going on with %d", len(part), size
        )
    return outputs, size


def _read(question: Question, text: str, tokens: int, cut_off: bool) -> Answer:
    text = extraction.cut_at_stop(text)
    strict, flexible = extraction.strict(text), extraction.flexible(text)
    return Answer(
        question=question.index,
        text=text,
        strict=strict,
        flexible=flexible,
        strict_correct=extraction.same(strict, question.answer),
        flexible_correct=extraction.same(flexible, question.answer),
        cut_off=cut_off,
        tokens=tokens,
    )


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, what: str
) -> list[tuple[str, int, bool]]:
    """Greedy continuations as (text, tokens, cut off): cut off means that neither an end nor a stop text came.

    Raises ValueError where they need more positions than the model has, logits.NotFinite where its logits break down.
    """
    import torch
    from transformers import LogitsProcessorList

    inputs = encode(tokenizer, prompts).to(model.device)
    length = inputs["input_ids"].shape[1]
    check_positions(model, length + max_new_tokens, what)
    config = greedy(model, max_new_tokens, stop_strings=list(extraction.STOPS))
    watch = logits.Watch()
    with torch.inference_mode():
        output = model.generate(
            **inputs, generation_config=config, tokenizer=tokenizer, logits_processor=LogitsProcessorList([watch])
        )
    watch.check(what)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list | tuple) else [config.eos_token_id]
    pad = config.pad_token_id
    return [_finished(tokenizer, row.tolist(), ends, pad, max_new_tokens) for row in output[:, length:]]


def encode(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Padded on the left, so that every prompt ends where its answer begins."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:  # which one does not matter, the attention mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    if not inputs["input_ids"].shape[1]:
        raise ValueError("the tokenizer makes nothing of the questions: were its files left out?")
    return inputs


def _finished(
    tokenizer: Any, tokens: list[int], ends: Sequence[int | None], pad: int, limit: int
) -> tuple[str, int, bool]:
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tokens if stop is None else tokens[:stop]
    while kept and kept[-1] == pad:  # what follows a stop text in a batch that goes on
        kept = kept[:-1]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    stopped = stop is not None or any(s in text for s in extraction.STOPS)
    return text, len(kept), not stopped and len(kept) >= limit
