"""Log-probabilities of given tokens from logits."""

from __future__ import annotations

import torch

from pytest_quantbudget.engine.base import Scored


def scored(logits: torch.Tensor, tokens: torch.Tensor) -> list[Scored]:
    """The tokens (positions,) under logits of shape (positions, vocabulary), by log-softmax in float32."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, tokens[:, None])[:, 0]
    return [Scored(*pair) for pair in zip(own.tolist(), (logits.argmax(-1) == tokens).tolist(), strict=True)]
