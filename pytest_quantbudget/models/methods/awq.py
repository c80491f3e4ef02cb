"""awq-int4 through gptqmodel (which took over from autoawq). AWQ: Lin et al. 2023, arXiv 2306.00978."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import TRANSFORMERS, VLLM
from pytest_quantbudget.core.fields import FLAG, Field
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.estimate.formats import WIDTHS
from pytest_quantbudget.models.methods import Spec, _gptqmodel, _kernels


def quantize(
    source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust = NO_TRUST
) -> None:
    """Channels that see large activations are scaled up before rounding to nearest, in GEMM packing.

    `zero_point` keeps an offset a group (asymmetric quantization).
    """
    sym = not options["zero_point"]
    _gptqmodel.quantize(source, options, texts, target, trust, quant_method="awq", format="gemm", sym=sym)


def packed(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint that `quantize` makes describes itself."""
    zero = options["zero_point"]
    return _gptqmodel.packed(options, "awq", "gemm", version="gemm", zero_point=zero, sym=not zero, desc_act=False)


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says; autoawq's own files have other names for the same."""
    named = {"bits": config.get("w_bit"), "group_size": config.get("q_group_size")}
    known = {**{name: value for name, value in named.items() if value is not None}, **config}
    return {**_gptqmodel.told(known, "awq"), "zero_point": bool(config.get("zero_point", True))}


SPECS = {
    "awq-int4": Spec(
        "awq-int4",
        "AWQ",
        _gptqmodel.load,
        bits=4,
        engines=(TRANSFORMERS, VLLM),
        adapters=(TRANSFORMERS, VLLM),
        options=(
            *_gptqmodel.OPTIONS,
            Field("zero_point", FLAG, "An offset for each group (asymmetric).", True),
            _kernels.OPTION,
        ),
        packages=_gptqmodel.PACKAGES,
        ahead=_gptqmodel.AHEAD,
        extra=_gptqmodel.EXTRA,
        storage=lambda options: _gptqmodel.Packed(WIDTHS["float16"], options["group_size"]),
        environ=_gptqmodel.ENVIRON,
        checkpoint_format="awq",
        quantize=quantize,
        packed=packed,
        told=told,
        prepare=_kernels.prepare,
        inference=(_kernels.OPTION.name,),
    )
}
