"""KL divergence of a method's next-token distributions from the baseline's, on a sample of the baseline's answers.

Defined as by llama.cpp's `--kl-divergence` (tools/perplexity/perplexity.cpp): of each token the divergence
`sum_i p_i (log p_i - log q_i)` in nats, p the baseline's distribution and q the method's, over the whole vocabulary;
its mean, maximum and 99 % quantile (interpolated linearly); and the share of tokens whose likeliest next token is the
same.
Two things differ, both for exactness: llama.cpp keeps the baseline's log-probabilities in 16 bits and leaves out tokens
with a probability below e^-16; here the logits are kept just as the model gave them, in its own data type, and nothing
is left out.
Of an engine that tells only its likeliest tokens, what is told is a lower bound: see `top_divergence`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import NANO, Answer, Divergence
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine import logits_file
from pytest_quantbudget.engine.base import Engine, NotFinite, NotOffered
from pytest_quantbudget.tasks.prompts import Asked, Prompter, prompt_hash

TOKENS = 1024  # of the baseline's answers
BLOCK = 1 << 22  # elements at once in float64
LOGITS = "logits"
ROUNDING = 1e-6  # of a sum of probabilities that were computed in float32

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

    Of an engine that does not give full logits the likeliest tokens are compared. Raises OSError and
    logits_file.Unusable where the file is not there, is damaged, or holds the logits of other tokens; ValueError where
    the vocabularies differ in size; NotFinite where logits break down; NotOffered.
    """
    theirs = _load_logits(path, pairs)
    held = _first(pairs, len(theirs))
    try:
        rows = _over_all(engine.logits(_sequences(held)), theirs)
    except NotOffered:
        rows = _over_top(engine.tops(_sequences(held)), theirs)
    kl, same, rest, told = zip(*rows, strict=True)
    every = torch.tensor(kl, dtype=torch.float64)
    if not bool(every.isfinite().all()):
        raise NotFinite("the divergence is infinite: a token that the baseline may choose has the probability 0")
    sizes = [len(answer) for _, answer in held]
    top = min(told)
    return Divergence(
        len(every),
        sum(same),
        float(every.mean()),
        float(every.max()),
        float(every.quantile(0.99)),
        path.stem,
        tuple(sizes),
        tuple(int(part.sum()) for part in torch.tensor(same).split(sizes)),
        tuple(float(part.sum()) for part in every.split(sizes)),
        top if top < theirs.shape[1] else 0,
        math.fsum(rest) / len(rest),
        max(rest),
        tuple(" ".join(str(round(float(kl) / NANO)) for kl in part) for part in every.split(sizes)),
    )


# Of one token: the divergence, whether the likeliest is the same, the baseline's mass of what was not told, and how
# many tokens were told.
Row = tuple[float, bool, float, int]


def _over_all(blocks: Iterable[tuple[int, torch.Tensor]], theirs: torch.Tensor) -> list[Row]:
    rows: list[Row] = []
    for _, block in blocks:
        if block.shape[1] != theirs.shape[1]:
            raise ValueError(f"the vocabulary holds {block.shape[1]:,} tokens, the baseline's {theirs.shape[1]:,}")
        count = max(1, BLOCK // block.shape[1])
        for at in range(0, len(block), count):
            part = block[at : at + count]
            base = theirs[len(rows) : len(rows) + len(part)].to(block.device)
            same = (base.argmax(-1) == part.argmax(-1)).tolist()
            kl = divergences(base, part).tolist()
            rows += [(*both, 0.0, block.shape[1]) for both in zip(kl, same, strict=True)]
    return rows


def _over_top(answers: Iterable[Sequence[Mapping[int, float]]], theirs: torch.Tensor) -> list[Row]:
    rows: list[Row] = []
    for told in itertools.chain.from_iterable(answers):
        if max(told) >= theirs.shape[1]:
            raise ValueError(f"the engine knows token {max(told)}, and the baseline has {theirs.shape[1]:,} tokens")
        base = theirs[len(rows)]
        kl, rest = top_divergence(base, told)
        rows.append((kl, int(base.argmax()) == max(told, key=told.__getitem__), rest, len(told)))
    return rows


def top_divergence(base: torch.Tensor, told: Mapping[int, float]) -> tuple[float, float]:
    """A lower bound of the KL divergence (nats) of a distribution of which some tokens are `told`, and the rest's mass.

    `base` are the baseline's logits of shape (vocabulary); `told` are log-probabilities by token. All other tokens
    count as one, which only ever lowers a divergence (the log sum inequality: Cover and Thomas, "Elements of
    information theory", theorem 2.7.1). The rest's mass is the baseline's; with every token told it is 0, and the
    divergence exact.
    """
    log_p = base.double().log_softmax(-1)
    ids = torch.tensor(list(told))
    log_q = torch.tensor(list(told.values()), dtype=torch.float64)
    if bool(log_q.isnan().any()):
        raise NotFinite("the engine told log-probabilities that are NaN")
    p = log_p[ids]
    terms = torch.where(p > -torch.inf, p.exp() * (p - log_q), 0.0)
    # Summed, not 1 less the others: what is left of a certain token is lost in rounding.
    rest = min(1.0, float(log_p.exp().index_fill(0, ids, 0.0).sum()))
    kl = float(terms.sum())
    if rest > 0:
        # The engine's own rest is known up to its rounding; assuming more of it lowers the bound.
        kl += rest * math.log(rest / max(1 - float(log_q.exp().sum()), ROUNDING))
    return max(0.0, kl), rest


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
