"""KL divergence of a method's next-token distributions from the baseline's, on a sample of the baseline's answers.

Defined as by llama.cpp's `--kl-divergence` (tools/perplexity/perplexity.cpp): of each token the divergence
`sum_i p_i (log p_i - log q_i)` in nats, p the baseline's distribution and q the method's, over the whole vocabulary;
its mean, maximum and 99 % quantile (interpolated linearly); and the share of tokens whose likeliest next token is the
same.
Two things differ, both for exactness: llama.cpp keeps the baseline's log-probabilities in 16 bits and leaves out tokens
with a probability below e^-16; here the logits are kept just as the model gave them, in its own data type, and nothing
is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import Answer, Divergence
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine import logits_file
from pytest_quantbudget.engine.base import Engine, NotFinite
from pytest_quantbudget.tasks.prompts import Asked, Prompter, prompt_hash

TOKENS = 1024  # of the baseline's answers
BLOCK = 1 << 22  # elements at once in float64
LOGITS = "logits"

Sample = list[tuple[list[int], list[int]]]


def sample(
    tokenizer: Any, task: Task, asked: Sequence[Asked], answers: Sequence[Answer], most: int = TOKENS, clock: str = ""
) -> Sample:
    """Prompts with the baseline's answers (token ids), from the first question on, until there are `most` tokens.

    `clock` is the time that its chat template was told. The last answer is cut there. Raises ValueError where the
    answers are not to these prompts, or have no tokens.
    """
    prompter = Prompter(tokenizer, task, clock)
    found: Sample = []
    for each, answer in zip(asked, answers, strict=True):
        text = prompter.text(each)
        if prompt_hash(text) != answer.prompt:
            raise ValueError(f"the baseline was asked question {answer.question} of {task.name} in other words")
        if answer.ids:
            found.append((prompter.tokens([text])[0], list(answer.ids[:most])))
        most -= len(answer.ids)
        if most <= 0:
            break
    if not found:
        raise ValueError(f"the baseline's answers to {task.name} hold no tokens")
    return found


def keep(engine: Engine, pairs: Sample, path: Path) -> None:
    """Write a baseline's logits for its own answers, and the ids they belong to, to a file that appears as a whole.

    The sample is cut where the logits would take more than logits_file.MAX_BYTES. Raises NotFinite where logits break
    down, OSError where the file cannot be written, NotOffered.
    """
    wanted = sum(len(answer) for _, answer in pairs)
    kept: torch.Tensor | None = None
    done = 0
    for _, block in engine.logits(_sequences(pairs)):
        if kept is None:
            room = logits_file.MAX_BYTES // (block.shape[1] * block.element_size())
            kept = torch.empty((min(wanted, room), block.shape[1]), dtype=block.dtype)
        part = block[: len(kept) - done]
        kept[done : done + len(part)] = part.cpu()
        done += len(part)
        if done == len(kept):
            break
    assert kept is not None
    _write(path, kept, _first(pairs, done))


def _sequences(pairs: Sample) -> list[tuple[list[int], int]]:
    return [([*prompt, *answer], len(prompt)) for prompt, answer in pairs]


def _write(path: Path, kept: torch.Tensor, pairs: Sample) -> None:
    raw: Any = kept.view(torch.uint8).numpy()  # bfloat16 has no numpy type of its own
    metadata = {
        "against": path.stem,
        "ids": json.dumps(pairs),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.replacing(path) as temporary:
            save_file({LOGITS: kept}, temporary, metadata)
    except SafetensorError as error:
        raise OSError(f"the baseline's logits cannot be written: {error}") from error


def compare(engine: Engine, pairs: Sample, path: Path) -> Divergence:
    """What a method predicts for the baseline's answers, against the baseline's logits in a file, in float64.

    Raises OSError and logits_file.Unusable where the file is not there, is damaged, or holds the logits of other
    tokens; ValueError where the vocabularies differ in size; NotFinite where logits break down; NotOffered.
    """
    theirs = _load_logits(path, pairs)
    held = _first(pairs, len(theirs))
    values: list[torch.Tensor] = []
    same = [0] * len(held)
    done = 0
    for index, block in engine.logits(_sequences(held)):
        if block.shape[1] != theirs.shape[1]:
            raise ValueError(f"the vocabulary holds {block.shape[1]:,} tokens, the baseline's {theirs.shape[1]:,}")
        rows = max(1, BLOCK // block.shape[1])
        for at in range(0, len(block), rows):
            part = block[at : at + rows]
            base = theirs[done : done + len(part)].to(block.device)
            values.append(divergences(base, part).cpu())
            same[index] += int((base.argmax(-1) == part.argmax(-1)).sum())
            done += len(part)
    every = torch.cat(values)
    if not bool(every.isfinite().all()):
        raise NotFinite("the divergence is infinite: a token that the baseline may choose has the probability 0")
    sizes = [len(answer) for _, answer in held]
    sums = tuple(float(part.sum()) for part in every.split(sizes))
    return Divergence(
        len(every),
        sum(same),
        float(every.mean()),
        float(every.max()),
        float(every.quantile(0.99)),
        path.stem,
        tuple(sizes),
        tuple(same),
        sums,
    )


def divergences(base: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL divergences (nats, float64), one a row, of two logits of shape (rows, vocabulary)."""
    p, q = base.double().log_softmax(-1), own.double().log_softmax(-1)
    # What the baseline never chooses counts as 0, even where both call it impossible.
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
    return terms.sum(-1).clamp(min=0)  # below 0 only by rounding


def _load_logits(path: Path, pairs: Sample) -> torch.Tensor:
    """The logits in a file, of shape (tokens, vocabulary), once it is clear that they are those of this sample."""
    ids = logits_file.check(path)
    try:
        with safe_open(path, framework="pt") as file:
            logits: torch.Tensor = file.get_tensor(LOGITS)
    except SafetensorError as error:
        raise logits_file.Unusable(f"it cannot be read: {error}") from None
    if logits.dim() != 2 or not len(logits) or not logits.is_floating_point():
        raise logits_file.Unusable(f"it holds {logits.dtype} of shape {tuple(logits.shape)}")
    if ids != [list(pair) for pair in _first(pairs, len(logits))]:
        raise logits_file.Unusable("it holds the logits of other tokens")
    return logits


def _first(pairs: Sample, tokens: int) -> Sample:
    """The pairs that hold the first so many tokens of answers; the last answer is cut there."""
    found: Sample = []
    for prompt, answer in pairs:
        if tokens > 0:
            found.append((prompt, answer[:tokens]))
        tokens -= len(answer)
    return found
