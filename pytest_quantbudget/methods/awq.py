"""awq-int4 through gptqmodel (which took over from autoawq). AWQ: Lin et al. 2023, arXiv 2306.00978."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.grammar import FLAG, Field
from pytest_quantbudget.methods import Spec, _gptqmodel
from pytest_quantbudget.request import NO_TRUST, Trust


def quantize(
    source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust = NO_TRUST
) -> None:
    """Channels that see large activations are scaled up before rounding to nearest, in GEMM packing.

    `zero_point` keeps an offset a group (asymmetric quantization).
    """
    sym = not options["zero_point"]
    _gptqmodel.quantize(source, options, texts, target, trust, quant_method="awq", format="gemm", sym=sym)


SPECS = {
    "awq-int4": Spec(
        "awq-int4",
        "AWQ",
        _gptqmodel.load,
        bits=4,
        options=(
            *_gptqmodel.OPTIONS,
            Field("zero_point", FLAG, "An offset for each group (asymmetric).", True),
        ),
        extras=_gptqmodel.EXTRAS,
        environ=_gptqmodel.ENVIRON,
        checkpoint_format="awq",
        quantize=quantize,
    )
}
