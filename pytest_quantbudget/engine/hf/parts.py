"""What a model holds besides its language model: the parts that read images, say, which no text passes through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.engine.hf import memory


def besides_text(model: Any) -> dict[str, int]:
    """Bytes of all that is not the language model, by the name of the part; nothing where that is the whole model."""
    if model.config.get_text_config() is model.config:
        return {}
    of_text = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    if model in of_text:
        return {}
    known = {id(tensor) for part in of_text if part is not None for tensor in _tensors(part)}
    found: dict[str, list[Any]] = {}
    for part in (model, model.base_model):
        for name, child in part.named_children():
            if child is not model.base_model:
                found.setdefault(name, []).extend(t for t in _tensors(child) if id(t) not in known)
    return {name: memory.bytes_of(tensors) for name, tensors in found.items() if tensors}


def in_words(parts: dict[str, int]) -> str:
    """The parts as a note; nothing where there are none."""
    if not parts:
        return ""
    listed = ", ".join(f"{name} ({format_size(size)})" for name, size in parts.items())
    return f"its weights include parts that no text passes through: {listed}"


def _tensors(module: Any) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()
