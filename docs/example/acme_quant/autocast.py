"""An engine: transformers, with matrix products in bfloat16 whatever the weights are."""

from __future__ import annotations

from typing import Any

from pytest_quantbudget.models.engines import EngineSpec

AUTOCAST = EngineSpec(
    "acme-autocast",
    "transformers under torch.autocast.",
    "acme_quant.autocast",
    packages=("torch", "transformers", "accelerate", "acme_quant"),
    like="transformers",
    quantizes=True,
)


def load(subject: Any, *given: Any) -> Any:
    """The engine of the subject; what is given besides is as for the engine `transformers`."""
    from acme_quant.autocast_engine import Autocast

    return Autocast.of(subject, *given)
