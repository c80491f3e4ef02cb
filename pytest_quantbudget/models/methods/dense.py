"""fp32, bf16 and fp16: the model's own weights in one floating-point type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.engines import TRANSFORMERS, VLLM
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.estimate.formats import WIDTHS, Format
from pytest_quantbudget.models.methods import Load, Spec, from_source

if TYPE_CHECKING:
    from torch import nn

    from pytest_quantbudget.models.dummy import Dummy


def _loader(dtype: str) -> Load:
    def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
        return from_source(source, device, trust, dtype=dtype)

    return load


def _spec(name: str, summary: str, dtype: str) -> Spec:
    storage = Format(WIDTHS[dtype], float16=dtype == "float16")
    return Spec(
        name,
        summary,
        _loader(dtype),
        bits=storage.bits,
        engines=(TRANSFORMERS, VLLM),
        adapters=(TRANSFORMERS, VLLM),
        storage=lambda options: storage,
    )


SPECS = {
    "fp32": _spec("fp32", "32-bit floating point", "float32"),
    "bf16": _spec("bf16", "bfloat16", "bfloat16"),
    "fp16": _spec("fp16", "16-bit floating point", "float16"),
}
