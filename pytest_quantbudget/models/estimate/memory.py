"""What a method will take: weights by kind of layer, KV cache, activations, the peak. Formulas: docs/estimate.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.models import checkpoint, methods
from pytest_quantbudget.models.config import find_config
from pytest_quantbudget.models.estimate import architecture
from pytest_quantbudget.models.estimate.architecture import ROTARY, Architecture
from pytest_quantbudget.models.estimate.formats import FLOAT, Format

WORKSPACE = 32 * 2**20  # bytes that torch gives cuBLAS on a Hopper GPU; on others it is less
OVERHEAD = 2**29  # bytes that a process takes on a GPU outside of torch's allocator


@dataclass(frozen=True)
class LayerKind:
    """The weights of one kind of layer: values of the unquantized model, bytes as loaded, `scales` part of them.

    `bits` are those of a stored value; scales, zero points and biases come on top.
    """

    name: str
    parameters: int
    bytes: int
    scales: int
    bits: int


@dataclass(frozen=True)
class Estimate:
    """The memory that a method is going to take, in bytes, as long as nothing of it is offloaded.

    `weights` is what `max_weights` is judged on, all of `kinds` together; `kv_cache` and `activations` are those of the
    workload, `peak` what `max_vram` is judged on, `process` with what a process takes on each GPU besides. `notes` say
    what had to be assumed.
    """

    parameters: int
    weights: int
    kinds: tuple[LayerKind, ...]
    kv_cache: int
    activations: int
    peak: int
    process: int
    notes: tuple[str, ...] = ()


def estimate(subject: Subject, workload: Workload) -> Estimate:
    """The estimate of one subject under a workload. Reads configurations on this machine, and nothing else.

    Raises ValueError, in words for the user, where no configuration is to be had, or it is not known what it describes.
    """
    shape = shape_of(subject)
    form, notes = _format(subject)
    assumed = form.assumed(shape)
    notes = (*notes, assumed) if assumed else notes
    kinds = weights(shape, form)
    total = sum(kind.bytes for kind in kinds)
    cache = kv_bytes(shape, form, workload, workload.prompt_tokens + workload.new_tokens - 1)
    prefill, step = activations(shape, form, workload)
    at_prompt = kv_bytes(shape, form, workload, workload.prompt_tokens, whole=True)
    peak = total + max(at_prompt + prefill, cache + step) + WORKSPACE
    return Estimate(
        parameters=sum(shape.parameters.values()),
        weights=total,
        kinds=kinds,
        kv_cache=cache,
        activations=max(prefill, step) + WORKSPACE,
        peak=peak,
        process=peak + subject.gpus * OVERHEAD,
        notes=notes,
    )


def shape_of(subject: Subject) -> Architecture:
    """The architecture of a subject's model. Raises ValueError as `estimate` does."""
    return architecture.read(find_config(subject.model, subject.revision))


def _format(subject: Subject) -> tuple[Format, tuple[str, ...]]:
    """The format that a subject's weights will have, and what was assumed about it."""
    spec = methods.spec(subject.kind)
    form = spec.storage(spec.filled(subject.options)) if subject.engine == TRANSFORMERS else None
    if form is None:
        where = "" if subject.engine == TRANSFORMERS else f" in {subject.engine}"
        raise ValueError(f"how {subject.method} stores weights{where} is not known to the estimate")
    if subject.checkpoint is None:
        return form, ()
    try:
        config: dict[str, Any] = find_config(subject.checkpoint)
    except ValueError:
        return form, (f"{subject.checkpoint} is not on this machine: its format is taken to be that of the options",)
    quantization = config.get("quantization_config")
    packed = checkpoint.with_dtype(quantization if isinstance(quantization, dict) else {}, config)
    return form.of_checkpoint(packed), ()


def weights(shape: Architecture, form: Format) -> tuple[LayerKind, ...]:
    """Parameters and buffers by kind of layer; the sum is what `metrics.memory.weight_bytes` finds in a loaded model.

    Raises ValueError for a layer that the format cannot hold.
    """
    kinds = []
    for name, count in shape.parameters.items():
        block = [matrix for matrix in shape.block if matrix.kind == name]
        scales = shape.layers * sum(form.scales(matrix) for matrix in block)
        stored = shape.layers * sum(form.weight(matrix) for matrix in block) if block else count * form.width
        kinds.append(LayerKind(name, count, stored + scales, scales, form.bits if block else 8 * form.width))
    return (*kinds, LayerKind(ROTARY, 0, FLOAT * shape.rotary, 0, 8 * FLOAT))


def kv_bytes(shape: Architecture, form: Format, workload: Workload, tokens: int, *, whole: bool = False) -> int:
    """Bytes of keys and values of `tokens` tokens of each sequence.

    Layers with a window keep no more than that, but for the prompt, which they hold `whole` until the next token.
    """
    kept = tokens if whole else min(tokens, shape.window)
    per_token = 2 * shape.kv_heads * shape.head_size * form.width
    return workload.batch_size * per_token * ((shape.layers - shape.sliding) * tokens + shape.sliding * kept)


def activations(shape: Architecture, form: Format, workload: Workload) -> tuple[int, int]:
    """Bytes besides weights and cache at the peak of the prefill, and at that of a later token.

    What transformers keeps alive while a block runs; the attention itself is torch's, which keeps no table of scores.
    """
    tokens = workload.batch_size * workload.prompt_tokens
    prefill = form.prefill(shape, tokens, tokens * _per_token(shape, form))
    if shape.sliding and shape.window <= workload.prompt_tokens:
        prefill += workload.prompt_tokens**2  # the mask
    grown = workload.prompt_tokens + workload.new_tokens - 1
    # The cache grows by copying: a layer's keys are there twice for a moment, and with a window its values too.
    copied = max(grown * (shape.sliding < shape.layers), 2 * min(grown, shape.window))
    keys = shape.kv_heads * shape.head_size * form.width * copied
    logits = shape.vocabulary * (form.width + 2 * FLOAT)  # as computed, in float32, and once more to forbid some
    step = workload.batch_size * (keys + _per_token(shape, form))
    return prefill, max(step + workload.batch_size * logits, form.step(shape, workload.batch_size, step))


def _per_token(shape: Architecture, form: Format) -> int:
    """Bytes of activations a token at the widest place of a block, with the token itself and its masks."""
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    rotary = 2 * shape.head_size  # sines and cosines
    # In the attention, instead: queries, keys, values, and what rotating the queries or their norm in float32 takes.
    attention = form.width * (3 * shape.hidden + 4 * query + max(2 * key, query))
    return max(form.mlp(shape), attention) + form.width * rotary + 4 * 8
