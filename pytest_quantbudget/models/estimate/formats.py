"""How many bytes a linear layer takes in each method's format, exactly as its library holds it after loading.

Sources: bitsandbytes 0.50 (`functional.py`: `quantize_4bit`, `quantize_blockwise`, `int8_vectorwise_quant`) and
gptqmodel 7.6 (`nn_modules/qlinear`: the layers in torch that transformers 5 picks on a CPU). tests/test_estimate.py
compares with loaded models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_quantbudget.models.estimate.architecture import Matrix

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes of a value
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # what is not quantized; in all others float16, or what the user says
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256  # values that share an absolute maximum, and such maxima that share another
FLOAT = 4  # bytes of a float32
UNEVEN = ("modules_to_not_convert", "llm_int8_skip_modules", "modules_in_block_to_quantize", "dynamic")


@dataclass(frozen=True)
class Format:
    """A method with the options that decide about bytes. `width` is that of a value that is not quantized.

    `group` are the inputs that share a scale in GPTQ and AWQ, -1 for all of a row.
    """

    method: str
    width: int
    double_quant: bool = True
    group: int = 128

    def weight(self, matrix: Matrix) -> int:
        """Bytes of the numbers of a layer's weight, and of its bias, which no method quantizes."""
        bias = matrix.bias * matrix.outputs * self.width
        if self.method == "int8":
            return matrix.values + bias
        if self.quantized:
            return (matrix.values + 1) // 2 + bias
        return matrix.values * self.width + bias

    def scales(self, matrix: Matrix) -> int:
        """Bytes of what it takes besides to read a layer's weight: scales, zero points, code books, indices."""
        if self.method == "int8":
            return FLOAT * matrix.outputs
        if self.method == "nf4":
            return self._nf4_scales(matrix)
        return self._group_scales(matrix) if self.quantized else 0

    @property
    def quantized(self) -> bool:
        """Whether the method quantizes the linear layers of the blocks."""
        return self.method not in ("fp32", "bf16", "fp16")

    def _nf4_scales(self, matrix: Matrix) -> int:
        """Absolute maxima of the blocks, quantized themselves or not, and the 16 values of the code."""
        blocks, code = -(-matrix.values // NF4_BLOCK), 16 * FLOAT
        if not self.double_quant:
            return FLOAT * blocks + code
        outer = FLOAT * -(-blocks // NF4_OUTER_BLOCK)
        return blocks + outer + 256 * FLOAT + FLOAT + code  # then its code, the offset

    def _group_scales(self, matrix: Matrix) -> int:
        """A float16 and 4 bits of zero point a group and output; in GPTQ also each input's group, and eight shifts.

        Raises ValueError for a layer that the format cannot hold.
        """
        group = matrix.inputs if self.group == -1 else self.group
        if matrix.inputs % group or matrix.inputs % 8 or matrix.outputs % 8:
            shape = f"a layer of {matrix.inputs} inputs and {matrix.outputs} outputs"
            raise ValueError(f"{self.method} in groups of {group} cannot hold {shape}")
        scales = matrix.inputs // group * matrix.outputs * 5 // 2
        return scales + (4 * matrix.inputs + 32 if self.method == "gptq-int4" else 0)


def of(method: str, options: Mapping[str, Any]) -> Format:
    """The format of a method with its options, as a budget's `Subject` has them."""
    dtype = options.get("compute_dtype", DTYPES.get(method, "float16"))
    return Format(method, WIDTHS[dtype], options.get("double_quant", True), options.get("group_size", 128))


def of_checkpoint(made: Format, quantization: object) -> Format:
    """The same as a checkpoint's `quantization_config` has it, where that says otherwise than the options.

    Raises ValueError for one of other bits, or that leaves some layers of the blocks unquantized.
    """
    config = quantization if isinstance(quantization, dict) else {}
    for key in UNEVEN:
        if config.get(key) not in (None, [], {}, ["lm_head"]):
            raise ValueError(f"a checkpoint that quantizes some layers otherwise ({key}) is not known to the estimate")
    bits, group = config.get("bits", 4), config.get("group_size", made.group)
    if bits != 4 or type(group) is not int or not (group == -1 or group > 0):
        raise ValueError(f"a checkpoint of {bits!r:.60} bits in groups of {group!r:.60} is not known to the estimate")
    return replace(made, group=group, double_quant=bool(config.get("bnb_4bit_use_double_quant", made.double_quant)))
