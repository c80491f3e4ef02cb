"""checkpoint: a ready checkpoint, whatever it says it is.

What it says is looked up in the table of formats, `models.quantization`. Where that is what another kind makes, that
kind loads it, with its checks, its kernels and its estimate; else transformers does as it does for anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.engines import OPENAI, TRANSFORMERS, VLLM
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import methods, quantization
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.estimate.formats import WIDTHS, Format
from pytest_quantbudget.models.methods import ANY_FORMAT, Spec, from_source

if TYPE_CHECKING:
    from torch import nn

NAME = "checkpoint"


def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """The model in the types that its files have; what compressed-tensors would decompress later, it does now.

    So what is counted and timed afterwards is what runs.
    """
    if isinstance(source, Dummy):
        raise ValueError(f"there are no dummy weights of {source.name}: no kind makes what it says it is")
    model: Any = from_source(source, device, trust, dtype="auto")
    # Set by compressed-tensors on models that it decompresses at their first forward.
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)
    return model  # type: ignore[no-any-return]


def resolve(packed: Mapping[str, Any], dtype: str | None) -> Spec:
    """What loads a checkpoint with this `quantization_config`, whose other weights are of the type `dtype`.

    Its `bits` are 0 where only loading shows how many they are.
    """
    if not packed:
        width = WIDTHS.get(dtype or "")
        return replace(SPECS[NAME], bits=8 * (width or 2), storage=lambda options: Format(width) if width else None)
    form, bits = quantization.form_of(packed), quantization.read(packed).bits
    kinds = [methods.spec(name) for name in (form.kinds if form else ())]
    for kind in kinds:
        # Of several bits none is the kind's.
        if bits and _told(kind, {"dtype": dtype, **packed}).get("method") == kind.name:
            return kind
    own = replace(SPECS[NAME], packages=form.packages if form else (), extra=form.extra if form else None)
    # Of other bits or types than any kind has: the same loader reads it.
    like = next((kind for kind in kinds if kind.bits == bits), kinds[0] if kinds else None)
    if like is None:
        return own
    found = replace(like, name=NAME, bits=0, storage=own.storage, packed=None, quantize=None, resolve=own.resolve)
    return replace(found, told=lambda config: {**_told(like, config), "method": NAME}, checkpoint_format=ANY_FORMAT)


def _told(kind: Spec, packed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a kind reads from a configuration; nothing where it cannot be one of its own."""
    try:
        return kind.told(packed) if kind.told else {}
    except (TypeError, ValueError):
        return {}


SPECS = {
    NAME: Spec(
        NAME,
        "A ready checkpoint, quantized as its `quantization_config` says.",
        load,
        engines=(TRANSFORMERS, VLLM, OPENAI),
        adapters=(VLLM,),
        checkpoint_format=ANY_FORMAT,
        resolve=resolve,
    ),
}
