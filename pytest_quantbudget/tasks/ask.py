"""Asking a loaded model: batched greedy answers, read as lm-evaluation-harness reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.measurement import Answer, Task, TaskResult
from pytest_quantbudget.metrics.speed import check_positions, greedy
from pytest_quantbudget.tasks import extraction, questions
from pytest_quantbudget.tasks.questions import Question

if TYPE_CHECKING:
    pass


def sample(task: Task) -> tuple[list[Question], list[Question]]:
    """The questions of a task and its worked examples, which come from the file itself or the hub set's train split."""
    if task.file is not None:
        return questions.draw(questions.read_file(Path(task.file)), task.questions, task.shots, task.seed)
    asked, _ = questions.draw(questions.read_hub(task.name, "test"), task.questions, 0, task.seed)
    _, shots = questions.draw(questions.read_hub(task.name, "train"), 1, task.shots, task.seed)
    return asked, shots


def run(model: Any, tokenizer: Any, task: Task) -> TaskResult:
    """Ask every question of the task.

    Longest prompts go first, so that memory runs out at once or not at all; then the batch is halved. Raises ValueError
    where a prompt and its answer need more positions than the model has.
    """
    start = time.perf_counter()
    asked, shots = sample(task)
    prompts = [questions.prompt(question, shots) for question in asked]
    order = sorted(range(len(asked)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Answer] = {}
    size = task.batch_size
    while order:
        batch = order[:size]
        try:
            outputs = generate(model, tokenizer, [prompts[i] for i in batch], task.max_new_tokens, f"task {task.name}")
        except _out_of_memory():
            if size == 1:
                raise
            size = max(1, min(size, len(batch)) // 2)
            continue
        order = order[size:]
        for i, (text, tokens, cut_off) in zip(batch, outputs, strict=True):
            answers[i] = _read(asked[i], text, tokens, cut_off)
    return TaskResult(task, tuple(answers[i] for i in range(len(asked))), time.perf_counter() - start)


def _out_of_memory() -> type[Exception]:
    import torch

    return torch.OutOfMemoryError


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
    """Greedy continuations as (text, tokens, cut off): cut off means that neither an end nor a stop text came."""
    import torch

    inputs = encode(tokenizer, prompts).to(model.device)
    length = inputs["input_ids"].shape[1]
    check_positions(model, length + max_new_tokens, what)
    config = greedy(model, max_new_tokens, stop_strings=list(extraction.STOPS))
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=config, tokenizer=tokenizer)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list | tuple) else [config.eos_token_id]
    pad = config.pad_token_id
    return [_finished(tokenizer, row.tolist(), ends, pad, max_new_tokens) for row in output[:, length:]]


def encode(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Padded on the left, so that every prompt ends where its answer begins; a missing pad token is the end's."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
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
