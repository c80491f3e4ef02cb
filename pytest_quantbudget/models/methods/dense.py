"""fp32, bf16 and fp16: the model's own weights in one floating-point type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.methods import Load, Spec, from_source

if TYPE_CHECKING:
    from torch import nn


def _loader(dtype: str) -> Load:
    def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
        return from_source(source, device, trust, dtype=dtype)

    return load


SPECS = {
    "fp32": Spec("fp32", "32-bit floating point", _loader("float32"), bits=32),
    "bf16": Spec("bf16", "bfloat16", _loader("bfloat16"), bits=16),
    "fp16": Spec("fp16", "16-bit floating point", _loader("float16"), bits=16),
}
