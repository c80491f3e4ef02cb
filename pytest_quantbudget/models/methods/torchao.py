"""Weight-only int8, int4, intx and float8 through torchao (github.com/pytorch/ao), as transformers loads them.

They are made while the model loads, or come as a checkpoint that transformers has saved: safetensors in which the parts
of each tensor subclass (values, scales, zero points) lie apart, and a header that says how they belong together.
Weights of 2 to 8 bits that quantization-aware training prepares for (`torchao.quantization.qat`) are `torchao-intx`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.fields import DTYPES, FLAG, Field, choice, one_of
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.estimate.formats import WIDTHS, Format
from pytest_quantbudget.models.methods import Spec, from_source
from pytest_quantbudget.models.methods._gptqmodel import check_group_size
from pytest_quantbudget.models.methods._torchao import (
    AUTO,
    CPU,
    FP8,
    INT4,
    INT8,
    INTX,
    PLAIN,
    ROW,
    TILED,
    Int4,
    Quantized,
    told,
)

if TYPE_CHECKING:
    from torch import nn

CAPABILITY = (8, 0)  # that tinygemm needs of a GPU


def _config_of_int8(options: Mapping[str, Any], device: str) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(granularity=_granularity(options), set_inductor_config=False)


def _config_of_fp8(options: Mapping[str, Any], device: str) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig(granularity=_granularity(options), set_inductor_config=False)


def _config_of_intx(options: Mapping[str, Any], device: str) -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup

    size = options["group_size"]
    granularity = PerAxis(0) if size == ROW else PerGroup(size)
    return IntxWeightOnlyConfig(getattr(torch, f"int{options['bits']}"), granularity)


def _config_of_int4(options: Mapping[str, Any], device: str) -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig

    settings = {
        "group_size": options["group_size"],
        "int4_choose_qparams_algorithm": "hqq" if options["hqq"] else "tinygemm",
        "set_inductor_config": False,
    }
    packing = packing_on(options, device)
    if packing == TILED and options["compute_dtype"] != "bfloat16":
        computes = f"compute_dtype is {options['compute_dtype']}"
        raise ValueError(f"the packing `{packing}` of {INT4} computes in bfloat16, and {computes}")
    if packing == PLAIN and options["hqq"]:
        raise ValueError(f"the packing `{packing}` of {INT4} takes no scales from hqq")
    if packing == CPU:
        return PrototypeInt4WeightOnlyConfig(**settings)
    return Int4WeightOnlyConfig(int4_packing_format=packing, **settings)


def _granularity(options: Mapping[str, Any]) -> Any:
    from torchao.quantization import PerGroup, PerRow

    return PerRow() if options["group_size"] == ROW else PerGroup(options["group_size"])


def packing_on(options: Mapping[str, Any], device: str) -> str:
    """The layout of int4 values on a device."""
    if options["packing"] != AUTO:
        return str(options["packing"])
    return CPU if device == "cpu" else TILED


def lacking(options: Mapping[str, Any], device: str) -> str | None:
    """Why a machine cannot run int4 values as they are packed."""
    import importlib.util

    import torch

    packing = packing_on(options, device)
    if packing == CPU:
        return None if device == "cpu" else "the packing `cpu` of torchao-int4 runs on a CPU alone"
    if device == "cpu":
        return f"the packing `{packing}` of torchao-int4 needs a GPU"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return f"torchao-int4 needs a GPU of compute capability {'.'.join(map(str, CAPABILITY))}"
    if packing == PLAIN and importlib.util.find_spec("mslk") is None:
        return "the packing `plain` of torchao-int4 needs mslk: pip install mslk"
    return None


@dataclass(frozen=True)
class _Loader:
    """Loads one kind, whose configuration `make` makes of options for a device."""

    make: Callable[[Mapping[str, Any], str], Any]

    def __call__(
        self, source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST
    ) -> nn.Module:
        """The model with torchao's tensors as weights of its linear layers; all others are in `compute_dtype`.

        Raises ValueError for a group size that does not divide the layers' inputs: torchao leaves such layers as they
        are, or fails in the middle.
        """
        from transformers import TorchAoConfig

        # Dummy weights of a checkpoint are quantized as its configuration says.
        described = source.config if isinstance(source, Dummy) else checkpoint.config(source)
        settings: dict[str, Any] = {}
        if not described.get("quantization_config"):
            if options["group_size"] != ROW:
                check_group_size(described, options["group_size"])
            settings = {"quantization_config": TorchAoConfig(self.make(options, device))}
        return from_source(source, device, trust, dtype=options["compute_dtype"], **settings)


def _compute_dtype() -> Field:
    return Field("compute_dtype", choice(*DTYPES), "Type of the products and of the unquantized layers.", "bfloat16")


def _width(options: Mapping[str, Any]) -> int:
    return WIDTHS[options["compute_dtype"]]


def _in_float16(options: Mapping[str, Any]) -> bool:
    return bool(options["compute_dtype"] == "float16")


def _group(*sizes: int, default: int) -> Field:
    rows = "; -1 for all of them" if ROW in sizes else ""
    return Field("group_size", one_of(*sizes), f"Weights of an input row that share a scale{rows}.", default)


def _spec(
    name: str,
    summary: str,
    make: Callable[[Mapping[str, Any], str], Any],
    bits: int,
    options: tuple[Field, ...],
    storage: Callable[[Mapping[str, Any]], Format],
    unable: Callable[[Mapping[str, Any], str], str | None] | None = None,
) -> Spec:
    return Spec(
        name,
        summary,
        _Loader(make),
        bits=bits,
        options=(*options, _compute_dtype()),
        packages=("torchao",),
        ahead=("torch._inductor.compile_fx",),
        extra="torchao",
        storage=storage,
        checkpoint_format="torchao",
        told=told,
        lacking=unable,
    )


SPECS = {
    INT8: _spec(
        INT8,
        "torchao int8, weights only",
        _config_of_int8,
        8,
        (_group(ROW, 32, 64, 128, default=ROW),),
        lambda options: Quantized(_width(options), options["group_size"], float16=_in_float16(options)),
    ),
    INT4: _spec(
        INT4,
        "torchao int4, weights only, packed for tinygemm's kernels",
        _config_of_int4,
        4,
        (
            _group(32, 64, 128, default=128),
            Field("packing", choice(AUTO, CPU, TILED, PLAIN), "The layout; auto takes the device's own.", AUTO),
            Field("hqq", FLAG, "Choose scales and zero points by HQQ.", False),
        ),
        lambda options: Int4(
            _width(options), options["group_size"], packing=options["packing"], float16=_in_float16(options)
        ),
        lacking,
    ),
    INTX: _spec(
        INTX,
        "torchao integers of 2 to 8 bits, weights only, a byte each: what a QAT checkpoint scores, not what it saves",
        _config_of_intx,
        8,
        (
            Field("bits", one_of(*range(2, 9)), "Bits of a weight, of the eight in which it is stored.", 4),
            _group(ROW, 32, 64, 128, default=128),
        ),
        lambda options: Quantized(
            _width(options), options["group_size"], _width(options), kind=INTX, float16=_in_float16(options)
        ),
    ),
    FP8: _spec(
        FP8,
        "torchao float8 (e4m3), weights only",
        _config_of_fp8,
        8,
        (_group(ROW, 32, 64, 128, default=ROW),),
        lambda options: Quantized(
            _width(options), options["group_size"], zero=0, kind=FP8, float16=_in_float16(options)
        ),
    ),
}
