"""The kinds of GGUF files by name, and the types of tensors that they stand for. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ANY = "gguf"
PREFIX = "gguf-"
FLOATS = ("f32", "f16", "bf16")
# llama.cpp's file types, with the type of tensors that most values have, and the bits of its values without scales.
TYPES: Mapping[str, tuple[str, int]] = {
    "f32": ("f32", 32),
    "f16": ("f16", 16),
    "bf16": ("bf16", 16),
    "q8_0": ("q8_0", 8),
    "q6_k": ("q6_k", 6),
    "q5_k_m": ("q5_k", 5),
    "q5_k_s": ("q5_k", 5),
    "q5_1": ("q5_1", 5),
    "q5_0": ("q5_0", 5),
    "q4_k_m": ("q4_k", 4),
    "q4_k_s": ("q4_k", 4),
    "q4_1": ("q4_1", 4),
    "q4_0": ("q4_0", 4),
    "iq4_xs": ("iq4_xs", 4),
    "iq4_nl": ("iq4_nl", 4),
    "q3_k_l": ("q3_k", 3),
    "q3_k_m": ("q3_k", 3),
    "q3_k_s": ("q3_k", 3),
    "iq3_m": ("iq3_s", 3),
    "iq3_s": ("iq3_s", 3),
    "q2_k": ("q2_k", 2),
}
DOMINANT: Mapping[str, str] = {f"{PREFIX}{name}": type_ for name, (type_, _) in TYPES.items()}
KINDS = (ANY, *DOMINANT)
# Values of a row that are stored together: a row has to be a multiple of them.
_SMALL_BLOCKS = {**dict.fromkeys(("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"), 32), **dict.fromkeys(FLOATS, 1)}
BLOCKS: Mapping[str, int] = {type_: _SMALL_BLOCKS.get(type_, 256) for type_, _ in TYPES.values()}
_NEAREST = {6: ("q8_0",), 5: ("q5_1", "q5_0"), 4: ("q4_0", "q5_0")}
# For kinds in blocks of 256, those in blocks of 32 that are nearest in bits.
SMALLER: Mapping[str, Sequence[str]] = {
    f"{PREFIX}{name}": [f"{PREFIX}{each}" for each in _NEAREST.get(bits, ("q4_0",))]
    for name, (type_, bits) in TYPES.items()
    if BLOCKS[type_] == 256
}
