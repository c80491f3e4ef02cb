"""gptq-int4 through gptqmodel (the successor of auto-gptq). GPTQ: Frantar et al. 2022, arXiv 2210.17323."""

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
    """Layer by layer, each column's rounding error carried on to the columns not yet quantized.

    `act_order` (gptqmodel's desc_act) takes columns in order of falling activation.
    """
    _gptqmodel.quantize(source, options, texts, target, trust, desc_act=options["act_order"], sym=True)


def packed(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint that `quantize` makes describes itself."""
    return _gptqmodel.packed(options, "gptq", "gptq", desc_act=options["act_order"], sym=True)


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says."""
    return {**_gptqmodel.told(config, "gptq"), "act_order": bool(config.get("desc_act", False))}


SPECS = {
    "gptq-int4": Spec(
        "gptq-int4",
        "GPTQ",
        _gptqmodel.load,
        bits=4,
        engines=(TRANSFORMERS, VLLM),
        adapters=(TRANSFORMERS, VLLM),
        options=(
            *_gptqmodel.OPTIONS,
            Field("act_order", FLAG, "Columns with the largest activations first (desc_act).", True),
            _kernels.OPTION,
        ),
        packages=_gptqmodel.PACKAGES,
        ahead=_gptqmodel.AHEAD,
        extra=_gptqmodel.EXTRA,
        storage=lambda options: _gptqmodel.Packed(WIDTHS["float16"], options["group_size"], indexed=True),
        environ=_gptqmodel.ENVIRON,
        checkpoint_format="gptq",
        quantize=quantize,
        packed=packed,
        told=told,
        prepare=_kernels.prepare,
        inference=(_kernels.OPTION.name,),
    )
}
