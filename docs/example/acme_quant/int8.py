"""A kind of method: linear layers rounded to 8 bits, with a scale a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.methods import Spec, from_source

if TYPE_CHECKING:
    from torch import nn

    from pytest_quantbudget.models.dummy import Dummy


def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """The model in float32, with every linear layer but the output one rounded."""
    # torch is imported by the process that measures, and by no other.
    import torch

    from acme_quant.layer import Int8Linear

    model = from_source(source, device, trust, dtype="float32")
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not head:
            outer, _, own = name.rpartition(".")
            setattr(model.get_submodule(outer), own, Int8Linear(module))
    return model


ACME_INT8 = Spec("acme-int8", "Linear layers in 8 bits, a scale a row.", load, bits=8, packages=("acme_quant",))
