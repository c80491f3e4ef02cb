"""Which parts of a loaded model are on which GPU, and which were offloaded from all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

ALL = "all"
OUTSIDE = ("cpu", "disk", "meta")  # accelerate leaves on meta what it fetches from main memory or disk for each use
PACKED = "qweight"  # GPTQ and AWQ keep their weights in buffers of this name


def of(model: Any) -> dict[str, str]:
    """The parts of the model on each device, in short: `{"cuda:0": "model.embed_tokens, model.layers.0-17", ...}`.

    As accelerate chose (`hf_device_map`, which it leaves on a model that it has spread), else where its weights are.
    """
    mapped = getattr(model, "hf_device_map", None)
    parts = _by_device(mapped.items() if mapped else _weights(model))
    if len(parts) == 1:
        return dict.fromkeys(parts, ALL)
    return {device: _short(names) for device, names in parts.items()}


def outside(model: Any) -> dict[str, str]:
    """The parts that are on no GPU, by `cpu`, `disk` or `meta`."""
    mapped = getattr(model, "hf_device_map", None) or {}
    parts = _by_device([*mapped.items(), *_weights(model)])
    sent = {device: names for device, names in parts.items() if device in OUTSIDE}
    # The map says where the parts on meta really are.
    if "meta" in sent and len(sent) > 1:
        del sent["meta"]
    return {device: _short(names) for device, names in sent.items()}


def in_words(parts: dict[str, str]) -> str:
    """Offloaded parts as a reason; nothing where there are none."""
    places = "; ".join(f"{names} on {device}" for device, names in parts.items())
    return f"a GPU is available, but these layers were offloaded: {places}" if parts else ""


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    """The module and the device of every weight."""
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name.rpartition(".")[2] == PACKED)
    for name, tensor in (*model.named_parameters(), *buffers):
        yield name.rpartition(".")[0], tensor.device


def _by_device(placed: Iterable[tuple[str, Any]]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name, device in placed:
        parts.setdefault(f"cuda:{device}" if isinstance(device, int) else str(device), []).append(name)
    return parts


def _short(names: Iterable[str]) -> str:
    """Names down to their block, consecutive blocks as a range: `model.layers.0-17, lm_head`."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        block = re.match(r"(.*?\.)?(\d+)(?=\.|$)", name)
        numbers = blocks.setdefault((block[1] or "") if block else name or ALL, [])
        if block and int(block[2]) not in numbers:
            numbers.append(int(block[2]))
    return ", ".join(f"{name}{_ranges(sorted(numbers))}" for name, numbers in blocks.items())


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
