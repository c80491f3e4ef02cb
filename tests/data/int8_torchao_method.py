"""int8 weights through torchao: one symmetric scale an output, weights only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.methods import Spec, from_source

if TYPE_CHECKING:
    from torch import nn


def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """The model in float32, each linear layer's weight in int8."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    return from_source(source, device, trust, dtype="float32", quantization_config=config)


SPECS = {"int8-torchao": Spec("int8-torchao", "torchao int8, weights only", load, bits=8, packages=("torchao",))}
