"""The share of the memory's bandwidth that decoding reaches: bytes that a step reads, over the bandwidth of a copy.

Decoding is bound by memory: each step reads all weights and the key-value cache once, and multiplies each with little
(Pope et al. 2022, arXiv 2211.05102, section 2). The bandwidth is measured, not taken from a data sheet: a large copy,
bytes read and written, as in "Effective Bandwidth Calculation" of the CUDA C++ Best Practices Guide and in STREAM
(McCalpin 1995).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.gpu_usage import Roofline
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.hf import memory, parts, placement

if TYPE_CHECKING:
    import torch

GPU_BYTES, CPU_BYTES = 2**30, 2**27  # of the copied buffer: many times what caches hold
LEAST_BYTES = 2**26
COPIES = 5
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def roofline(model: Any, weights: int, read: int | None, tpot_s: float, *, on_gpu: bool) -> Roofline | None:
    """The figure for decoding in `tpot_s` seconds a step, which reads `weights` and `read` bytes of the cache.

    None where it is not known what a step reads: of a mixture of experts, an unknown kind of cache, or a model that is
    partly outside its GPU; and where there is no room for a copy. The layers of a model that is spread over several
    GPUs run one after the other: the bandwidth is that of the first.
    """
    import torch

    config, device = model.config.get_text_config(), model.device
    if read is None or any(getattr(config, name, None) for name in EXPERTS):
        return None
    if on_gpu and placement.outside(model):
        return None
    bandwidth = copy_bandwidth(device)
    if bandwidth is None:
        return None
    threads = 0 if on_gpu else torch.get_num_threads()
    return Roofline(weights, read, tpot_s, bandwidth, (weights + read) / tpot_s / bandwidth, threads)


def step_weights(model: Any, total: int) -> int:
    """Bytes that a step reads of `total`, which are all weights as loaded.

    That is all but the input embedding, of which each row reads one line, unless the output layer uses the same table,
    and but the parts that no text passes through.
    """
    total -= sum(parts.besides_text(model).values())
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    tied = weight is not None and weight.untyped_storage().data_ptr() == table.weight.untyped_storage().data_ptr()
    return total if tied else total - memory.bytes_of(table.parameters())


def cache_bytes(cache: Any, workload: Workload) -> int | None:
    """Bytes of keys and values that a step reads of all rows, the mean over the workload's steps.

    `cache` is transformers' as it is after the workload; None for one that does not consist of keys and values. The
    first step reads the prompt and one token, the last all tokens but one; a window that is shorter is read whole.
    """
    length = workload.prompt_tokens + workload.new_tokens / 2
    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    total = 0.0
    for layer in layers:
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if part is None or part.dim() != 4:
                return None
            total += part.nbytes * min(1.0, length / part.shape[-2])
    return round(total)


def copy_bandwidth(device: torch.device) -> float | None:
    """Bytes a second, read and written, of the best of several copies of a buffer; None where there is no room."""
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.free_ram()
    size = GPU_BYTES if device.type == "cuda" else CPU_BYTES
    size = min(size, (free if free is not None else size * 4) // 4)
    if size < LEAST_BYTES:
        return None
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)  # written once, so that its pages are there
    best = min(_seconds(source, target) for _ in range(COPIES))
    moved = 2 * source.nbytes
    if device.type == "cuda":
        del source, target
        torch.cuda.empty_cache()
    return moved / best


def _seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    import torch

    if source.device.type != "cuda":
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start
    stream = torch.cuda.current_stream(source.device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    target.copy_(source)
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000  # milliseconds
