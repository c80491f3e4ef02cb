"""Greedy decoding with transformers, whatever a model's own generation config asks for."""

from __future__ import annotations

from typing import Any


def end_tokens(model: Any) -> list[int]:
    """The tokens that end what a model generates, of its generation config or its own."""
    own = model.generation_config.eos_token_id
    eos = own if own is not None else model.config.get_text_config().eos_token_id
    return list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [eos]


def settle(model: Any) -> None:
    """Give a model a generation config that says where answers end, and nothing else.

    `generate` takes from the model's own config whatever the one that it is given leaves open: penalties, forbidden
    tokens, assistants, limits of time.
    """
    from transformers import GenerationConfig

    eos, pad = end_tokens(model), model.generation_config.pad_token_id
    inside = isinstance(pad, int) and 0 <= pad < model.config.get_text_config().vocab_size
    pad = pad if inside else next(iter(eos), 0)
    model.generation_config = GenerationConfig(eos_token_id=eos or None, pad_token_id=pad)


def greedy(model: Any, max_new_tokens: int, **more: Any) -> Any:
    """A generation config of greedy decoding, for a model that is settled."""
    from transformers import GenerationConfig

    own = model.generation_config
    return GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=max_new_tokens, eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id, **more,
    )  # fmt: skip
