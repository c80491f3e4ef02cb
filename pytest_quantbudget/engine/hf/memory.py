"""How many bytes a model takes, and how many are free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

# Quantized weights keep their scales beside the tensor, out of sight of parameters() and buffers().
STATE = ("quant_state", "state2", "CB", "SCB", "absmax", "offset", "code")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as loaded, on any device, quantization scales included.

    `get_memory_footprint()` of transformers would leave out the quantization state of bitsandbytes and the inner
    tensors of torchao.
    """
    return bytes_of((*model.parameters(), *model.buffers()))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors with all that belongs to them; storage that several share (tied embeddings) counts once."""
    storages: dict[tuple[str, int], int] = {}
    for tensor in tensors:
        for part in parts(tensor):
            storage = part.untyped_storage()
            storages[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def parts(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors behind a tensor: of a subclass its inner ones, of a quantized weight also its scales."""
    import torch

    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from parts(getattr(tensor, name))
        return
    if isinstance(tensor, torch.Tensor):
        yield tensor
    for name in STATE:
        state = getattr(tensor, name, None)
        if state is not None and not callable(state):
            yield from parts(state)


def free_bytes(model: Any) -> int | None:
    """Bytes that are free on the device with the model's first weights; of a machine without a GPU, in its memory."""
    import torch

    device = model.get_input_embeddings().weight.device
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    return free_ram()


def free_ram() -> int | None:
    """Bytes that a new process can have without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
