"""What a model takes at least, where its architecture is not known: from the sizes of the tensors in its files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import NO_TRUST, Subject
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.config import find_folder
from pytest_quantbudget.models.estimate.formats import WIDTHS, Format

# Bytes of a value in a safetensors file that a model in another floating-point type holds in its own.
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
NARROW = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "I32": 4, "I64": 8}
# What loaded layers of a packed checkpoint may do without, or hold in float32 whatever the model's type.
DROPPED = (".qzeros", ".g_idx")
BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")
DRAFTS = re.compile(r"(?:^|\.)mtp\.")  # layers that predict several tokens, which transformers does not load


@dataclass(frozen=True)
class Bound:
    """At least so many parameters and bytes, by the files that `source` names."""

    parameters: int
    bytes: int
    source: str


def at_least(subject: Subject, form: Format | None) -> Bound | None:
    """The bound of a subject in a format; None where its files are not on this machine, or tell no sizes.

    Without a format only a packed checkpoint has one.
    """
    try:
        folder = find_folder(subject.checkpoint or subject.model, None if subject.checkpoint else subject.revision)
        config = checkpoint.config(folder)
        packed = bool(checkpoint.quantization(folder))
    except ValueError:
        return None
    if form is None and not packed:
        return None
    try:
        held = checkpoint.tensors(folder, NO_TRUST)
    except ValueError:
        return None if packed or form is None else _by_index(folder, config, form)
    loaded = dict(_loaded(held, config))
    if not loaded:
        return None
    source = "its checkpoint's tensors" if subject.checkpoint else "the tensors in its files"
    if packed:
        return Bound(0, sum(_as_packed(name, *entry, form) for name, entry in loaded.items()), source)
    assert form is not None
    values = {name: math.prod(shape) for name, (kind, shape) in loaded.items() if kind in FLOATS}
    kept = {name for name in values if len(loaded[name][1]) < 2 or _is_table(name, loaded[name][1], config)}
    total = sum(n * form.width if name in kept else n * form.bits // 8 for name, n in values.items())
    return Bound(sum(values.values()), total, source)


def _loaded(
    held: Mapping[str, tuple[str, list[int]]], config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """The tensors that a model is certain to hold: without drafting layers, and tables that may be tied but once."""
    tables: set[tuple[int, ...]] = set()
    tied = _text(config, "tie_word_embeddings") is not False
    for name, (kind, shape) in held.items():
        if _is_draft(name, config):
            continue
        if tied and _is_table(name, shape, config):
            if tuple(shape) in tables:
                continue
            tables.add(tuple(shape))
        yield name, (kind, shape)


def _is_draft(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to layers behind the model's own, which predict more tokens than one."""
    layers, found = _text(config, "num_hidden_layers"), BLOCK.search(name)
    behind = found is not None and isinstance(layers, int) and int(found[1]) >= layers
    return (behind and "vision" not in name and "visual" not in name) or DRAFTS.search(name) is not None


def _is_table(name: str, shape: list[int], config: Mapping[str, Any]) -> bool:
    """Whether a tensor is that of the embedding or the output layer, which methods leave as they are."""
    return len(shape) == 2 and shape[0] == _text(config, "vocab_size") and re.search(r"\.\d+\.", name) is None


def _text(config: Mapping[str, Any], key: str) -> Any:
    """An entry of the language model's configuration, which is the whole one or a part."""
    part = config.get("text_config")
    return part[key] if isinstance(part, dict) and key in part else config.get(key)


def _as_packed(name: str, kind: str, shape: list[int], form: Format | None) -> int:
    """Bytes of a tensor of a packed checkpoint once it is loaded, at least."""
    if name.endswith(DROPPED):
        return 0
    count = math.prod(shape)
    if kind in FLOATS:
        return count * min(FLOATS[kind], form.width if form else min(WIDTHS.values()))
    return count * NARROW.get(kind, 0)


def _by_index(folder: Path, config: Mapping[str, Any], form: Format) -> Bound | None:
    """The bound from the index of files that are not here: their `total_size`, in the type that the model says."""
    try:
        index = checkpoint.index(folder)
    except ValueError:
        return None
    told, names = index.get("metadata"), index.get("weight_map")
    total = told.get("total_size") if isinstance(told, dict) else None
    if not isinstance(total, int | float) or not isinstance(names, dict) or any(_is_draft(n, config) for n in names):
        return None
    dtype = config.get("dtype") or config.get("torch_dtype") or _text(config, "dtype") or _text(config, "torch_dtype")
    values = int(total) // WIDTHS.get(str(dtype), FLOATS["F32"])
    return Bound(values, values * form.bits // 8, f"total_size in {checkpoint.SAFE}{checkpoint.INDEX}")
