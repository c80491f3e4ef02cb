"""What a ready checkpoint says of how its weights are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's weights are stored, by its own words.

    `format` is the name of that format, and `label` tells people what it is, such as `compressed-tensors W4A16 g128`.
    `bits` are those of a value that is quantized, 0 where the checkpoint does not say, or says different ones. `kept`
    names the modules that it leaves in 16 bits, or the patterns that they match.
    """

    format: str
    label: str
    bits: float
    kept: tuple[str, ...] = ()
