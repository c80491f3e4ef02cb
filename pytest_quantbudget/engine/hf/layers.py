"""Which layers a loaded model has, and in how many bits their values are stored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.layers import ADAPTER, EMBEDDING, EXPERTS, LINEAR, LM_HEAD, NORM, OTHER, Layers, Receipt

if TYPE_CHECKING:
    import torch
    from torch import nn

Group = tuple[str, type, int]  # kind, class and bits
# Bits of a value of tensor subclasses whose layout may hold more than the values.
PADDED = {"Int4TilePackedTo4dTensor": 4}
STACKED_DIMENSIONS = 3
BASES = ("base_layer", "original_module")  # where PEFT keeps the layer that it has put others around
# What layers of packed checkpoints have beside a weight, `weight_scale` and the like, and what scales their inputs.
COMPANION = re.compile(r"_(scale|scales|scale_inv|global_scale|zero_point|zero_points|g_idx|shape)$")
OF_INPUTS = re.compile(r"(input|output|activation)_(scale|global_scale|zero_point)")


def receipt(model: Any) -> Receipt:
    """The layers of a model by kind, class and bits; only those that hold values themselves."""
    counts: defaultdict[Group, int] = defaultdict(int)
    values: defaultdict[Group, int] = defaultdict(int)
    seen: set[tuple[str, int]] = set()
    head = model.get_output_embeddings()
    head = _base(head) or head
    added = {part for module in model.modules() for part in _added(module)}
    for module in model.modules():
        main = True
        for bits, number, tensor in _held(module):
            kind = EXPERTS if _is_stacked(module, tensor) else _kind(module, module is head) if main else OTHER
            group = (ADAPTER if module in added else kind, _class(module, tensor), bits)
            place = str(tensor.device), _address(tensor)
            counts[group] += 1
            values[group] += 0 if place in seen else number
            seen.add(place)
            main = False
    found = [
        Layers(kind, cls.__name__, cls.__module__, _kernel(cls), bits, count, values[kind, cls, bits])
        for (kind, cls, bits), count in counts.items()
    ]
    return Receipt(tuple(sorted(found, key=lambda layers: (-layers.parameters, layers.kind, layers.name, layers.bits))))


def _base(layer: Any) -> Any:
    """The layer that PEFT has put others around; None where it has not."""
    return next((getattr(layer, name) for name in BASES if hasattr(layer, name)), None)


def _added(layer: Any) -> Iterator[nn.Module]:
    """What PEFT has put around a layer: the modules within its own that are not the layer's."""
    base = _base(layer)
    if base is not None:
        own = set(base.modules())
        yield from (module for module in layer.modules() if module not in own)


def _held(module: nn.Module) -> Iterator[tuple[int, int, torch.Tensor]]:
    """What a module holds itself: bits of a value, number of values of the unquantized model, and where they lie.

    The weight comes first. Layers of packed checkpoints hold tensors besides it that belong to no unquantized model.
    """
    packed = getattr(module, "qweight", None)
    if packed is not None:
        layer: Any = module
        yield int(layer.bits), layer.in_features * layer.out_features, packed
        if layer.bias is not None:
            yield 8 * layer.bias.element_size(), layer.bias.numel(), layer.bias
        return
    all_ = dict(module.named_parameters(recurse=False))
    own = {name: tensor for name, tensor in all_.items() if not _beside(name, all_)}
    for name in sorted(own, key=lambda name: name != "weight"):
        tensor = own[name]
        state = getattr(tensor, "quant_state", None)  # bitsandbytes packs two 4-bit values into a byte
        number = state.shape.numel() if state is not None else tensor.numel()
        stored = round(8 * _bytes(_inner(tensor)) / number) if number else 0
        yield PADDED.get(type(tensor).__name__, stored), number, tensor


def _class(module: nn.Module, tensor: Any) -> type:
    """What computes with a layer's weight: its class, but for a tensor subclass, which brings the product along."""
    return type(tensor) if hasattr(tensor, "__tensor_flatten__") else type(module)


def _is_stacked(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether a tensor holds the matrices of several experts, as transformers 5 keeps those of a block."""
    return tensor.ndim == STACKED_DIMENSIONS and "expert" in type(module).__name__.lower()


def _beside(name: str, names: Container[str]) -> bool:
    """Whether a parameter is no value of a model, but says how others of its module are to be read."""
    found = COMPANION.search(name)
    return bool(OF_INPUTS.fullmatch(name)) or (found is not None and name[: found.start()] in names)


def _inner(tensor: Any) -> torch.Tensor:
    """The plain tensor that holds a tensor's values; of a subclass the largest inside, which its scales are not."""
    if hasattr(tensor, "__tensor_flatten__"):
        return max((_inner(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0]), key=_bytes)
    return tensor  # type: ignore[no-any-return]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _address(tensor: Any) -> int:
    """Where the values lie; the same for tensors that share them. What has no memory is one of its kind."""
    return _inner(tensor).data_ptr() or id(tensor)


def _kind(module: nn.Module, is_head: bool) -> str:
    import torch

    if is_head:
        return LM_HEAD
    if isinstance(module, torch.nn.Embedding):
        return EMBEDDING
    if isinstance(module, torch.nn.Linear) or hasattr(module, "qweight"):
        return LINEAR
    return NORM if "norm" in type(module).__name__.lower() else OTHER


def _kernel(cls: type) -> str:
    """What gptqmodel calls the kernel behind a class of layers; of others the library that they come from."""
    backends = getattr(cls, "SUPPORTS_BACKENDS", None)
    if backends:
        return str(getattr(backends[0], "value", backends[0]))
    return cls.__module__.partition(".")[0]
