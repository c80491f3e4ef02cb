"""How a method stores a model: the base class of the formats, one of which each method's own file defines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.models.estimate.architecture import STACKED, Architecture, Matrix, Unknown

# Bytes of a value.
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT = 4
# Entries of a checkpoint's configuration that quantize some layers otherwise.
UNEVEN = ("modules_to_not_convert", "llm_int8_skip_modules", "modules_in_block_to_quantize", "dynamic")


@dataclass(frozen=True)
class Format:
    """Every value in `width` bytes; formats of methods that quantize override what differs.

    Only what the format `packs` is quantized; everything else has this width in all formats. `float16` says that the
    width is that type's: some models keep norms in float32 then.
    """

    width: int
    float16: bool = field(default=False, kw_only=True)

    @property
    def bits(self) -> int:
        """Bits of a stored value of the layers that are packed."""
        return 8 * self.width

    def packs(self, matrix: Matrix) -> bool:
        """Whether a layer is stored as the format says: experts that are stacked into one parameter are no layers."""
        return matrix.layer != STACKED

    def packed(self, shape: Architecture) -> list[Matrix]:
        """The layers of an architecture that are packed."""
        return [matrix for matrix in shape.matrices if self.packs(matrix)]

    def weight(self, matrix: Matrix) -> int:
        """Bytes of the values of a layer's weight, and of its bias, which no method quantizes."""
        return self.values(matrix) + matrix.bias * matrix.outputs * self.width

    def values(self, matrix: Matrix) -> int:
        """Bytes of the values of a layer's weight."""
        return matrix.values * self.width

    def scales(self, matrix: Matrix) -> int:
        """Bytes of scales, zero points, code books and indices of a layer.

        Raises ValueError for a layer that the format cannot hold.
        """
        return 0

    def mlp(self, shape: Architecture) -> int:
        """Bytes of activations a token in the MLP, at its widest place.

        The embedding, the block's input, its sum with the attention, that normalized; then what the MLP makes of it.
        """
        return self.width * shape.mlp_values

    def prefill(self, shape: Architecture, tokens: int, activations: int) -> int:
        """Bytes of the prefill of so many tokens, whose activations in other formats take so many bytes."""
        return activations

    def step(self, shape: Architecture, sequences: int, activations: int) -> int:
        """Bytes of a later token of so many sequences, before its logits; arguments as those of `prefill`."""
        return activations

    def assumed(self, shape: Architecture) -> str:
        """What the format of such a model rests on that may be otherwise elsewhere, in words."""
        return ""

    def of_checkpoint(self, config: Mapping[str, Any]) -> Format:
        """The format as a checkpoint's `quantization_config` (with the model's `dtype`) has it, not the options.

        Raises Unknown for one that leaves some layers of the blocks unquantized.
        """
        for key in UNEVEN:
            if config.get(key) not in (None, [], {}, ["lm_head"]):
                why = f"a checkpoint that quantizes some layers differently ({key}) is not known to the estimate"
                raise Unknown(why)
        return self
