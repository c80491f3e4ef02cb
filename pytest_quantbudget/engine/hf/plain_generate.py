"""Greedy answers from transformers' own `generate`: the reference of the faster way, and its substitute."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pytest_quantbudget.engine.base import Decoded, Ends
from pytest_quantbudget.engine.hf import logits
from pytest_quantbudget.engine.hf.generation import greedy


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ends: Ends, what: str) -> list[Decoded]:
    """The greedy continuation of each prompt (token ids), padded on the left.

    Raises logits.NotFinite where logits are NaN or infinite.
    """
    import torch
    from transformers import LogitsProcessorList

    began = time.perf_counter()
    longest = max(map(len, prompts))
    config = greedy(model, ends.most, stop_strings=list(ends.texts) or None)
    ids = [[*[config.pad_token_id] * (longest - len(prompt)), *prompt] for prompt in prompts]
    seen = [[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    watch = logits.Watch()
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            generation_config=config,
            tokenizer=tokenizer,
            logits_processor=LogitsProcessorList([watch]),
        )
    watch.check(what)
    answers = []
    for row in output[:, longest:].tolist():
        answer = Decoded(logprob=None, draft_logprob=None)
        for token in row:
            if not answer.done:  # what follows in a batch that goes on is padding
                ends.add(answer, token)
        answer.seconds = time.perf_counter() - began
        answers.append(answer)
    return answers
