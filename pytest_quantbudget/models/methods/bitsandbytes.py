"""int8 and nf4 through bitsandbytes, quantized while they load, or loaded from a checkpoint saved that way.

LLM.int8(): Dettmers et al. 2022, arXiv 2208.07339. NF4 and double quantization: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.fields import DTYPES, FLAG, Field, choice, number
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.estimate.architecture import CONV1D, LINEAR, MLP, OUTSIDE, Architecture, Matrix
from pytest_quantbudget.models.estimate.formats import FLOAT, WIDTHS, Format
from pytest_quantbudget.models.methods import Spec, from_source

if TYPE_CHECKING:
    from torch import nn

    from pytest_quantbudget.models.dummy import Dummy

# Values that share an absolute maximum, and such maxima that share another.
BLOCK, OUTER_BLOCK = 64, 256
AHEAD = ("torch._inductor.compile_fx",)


def load_int8(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """LLM.int8(): vector-wise int8 matrices, input columns with outliers in 16 bits.

    The rest of the model is float16, the type that the int8 product takes; others are cast at every layer.
    """
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=options["outlier_threshold"])
    return _load(source, config, torch.float16, device, trust)


def load_nf4(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """4-bit NormalFloat in blocks of 64; `double_quant` quantizes the block scales as well."""
    import torch
    from transformers import BitsAndBytesConfig

    dtype = getattr(torch, options["compute_dtype"])
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=options["double_quant"],
        bnb_4bit_compute_dtype=dtype,
    )
    return _load(source, config, dtype, device, trust)


def _load(source: Path | Dummy, config: object, dtype: object, device: str, trust: Trust) -> nn.Module:
    ready = isinstance(source, Path) and bool(checkpoint.quantization(source))
    settings = {} if ready else {"quantization_config": config}
    return from_source(source, device, trust, dtype=dtype, **settings)


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says: LLM.int8(), NF4 or FP4, and the options."""
    if config.get("load_in_8bit"):
        return {"method": "int8", "outlier_threshold": float(config.get("llm_int8_threshold", 6.0))}
    dtype = str(config.get("bnb_4bit_compute_dtype", "float32")).removeprefix("torch.")
    return {
        "method": str(config.get("bnb_4bit_quant_type", "fp4")),
        "double_quant": bool(config.get("bnb_4bit_use_double_quant", False)),
        "compute_dtype": dtype,
    }


class _Linear(Format):
    """What transformers replaces: layers of torch's own class `Linear`, and `Conv1D`, wherever they are."""

    def packs(self, matrix: Matrix) -> bool:
        """Neither classes that a model derives from them, nor stacked experts (`replace_with_bnb_linear`)."""
        return matrix.layer in (LINEAR, CONV1D, OUTSIDE)


@dataclass(frozen=True)
class Int8(_Linear):
    """A byte a value and a float32 scale an output (bitsandbytes 0.50, `functional.py`: `int8_vectorwise_quant`)."""

    @property
    def bits(self) -> int:
        """8."""
        return 8

    def values(self, matrix: Matrix) -> int:
        """A byte each."""
        return matrix.values

    def scales(self, matrix: Matrix) -> int:
        """One for each output."""
        return FLOAT * matrix.outputs

    def mlp(self, shape: Architecture) -> int:
        """Instead of the last results: the input in int8, the result in int32 and then in float16."""
        packed = [matrix for matrix in self.packed(shape) if matrix.kind == MLP]
        if not packed:
            return super().mlp(shape)
        widest = max(matrix.outputs for matrix in packed if matrix.inputs == shape.hidden)
        before = sum(matrix.kind == MLP for matrix in shape.matrices) - 2  # the gate is there when the rest is made
        return self.width * (4 * shape.hidden + before * shape.intermediate) + shape.hidden + 6 * widest


@dataclass(frozen=True)
class Nf4(_Linear):
    """Two values a byte, and absolute maxima of blocks (`functional.py`: `quantize_4bit`, `quantize_blockwise`)."""

    double_quant: bool = True

    @property
    def bits(self) -> int:
        """4."""
        return 4

    def values(self, matrix: Matrix) -> int:
        """Half a byte each."""
        return (matrix.values + 1) // 2

    def scales(self, matrix: Matrix) -> int:
        """Absolute maxima of the blocks, quantized themselves or not, and the 16 values of the code."""
        blocks, code = -(-matrix.values // BLOCK), 16 * FLOAT
        if not self.double_quant:
            return FLOAT * blocks + code
        # A byte a maximum, then their own maxima, their code and their offset.
        outer = FLOAT * -(-blocks // OUTER_BLOCK)
        return blocks + outer + 256 * FLOAT + FLOAT + code

    def prefill(self, shape: Architecture, tokens: int, activations: int) -> int:
        """A weight is written out before it is multiplied, instead of one of the MLP's results."""
        largest = max(matrix.values for matrix in self.packed(shape))
        written = largest * self.width + 2 * FLOAT * -(-largest // BLOCK)
        return max(activations, activations - tokens * shape.intermediate * self.width + written)

    def of_checkpoint(self, config: Mapping[str, Any]) -> Format:
        """With the checkpoint's double quantization."""
        super().of_checkpoint(config)
        return replace(self, double_quant=bool(config.get("bnb_4bit_use_double_quant", self.double_quant)))


SPECS = {
    "int8": Spec(
        "int8",
        "bitsandbytes LLM.int8()",
        load_int8,
        bits=8,
        options=(Field("outlier_threshold", number(0), "Inputs above it are multiplied in 16 bits.", 6.0),),
        packages=("bitsandbytes",),
        ahead=AHEAD,
        extra="bitsandbytes",
        storage=lambda options: Int8(WIDTHS["float16"], float16=True),
        checkpoint_format="bitsandbytes",
        adapters=(TRANSFORMERS,),
        merges=True,
        told=told,
        trains=True,
    ),
    "nf4": Spec(
        "nf4",
        "bitsandbytes 4-bit NormalFloat",
        load_nf4,
        bits=4,
        options=(
            Field("double_quant", FLAG, "Quantize the scales too.", True),
            Field("compute_dtype", choice(*DTYPES), "Type of the products and of the unquantized layers.", "bfloat16"),
        ),
        packages=("bitsandbytes",),
        ahead=AHEAD,
        extra="bitsandbytes",
        storage=lambda options: Nf4(
            WIDTHS[options["compute_dtype"]], options["double_quant"], float16=options["compute_dtype"] == "float16"
        ),
        checkpoint_format="bitsandbytes",
        adapters=(TRANSFORMERS,),
        merges=True,
        told=told,
        trains=True,
    ),
}
