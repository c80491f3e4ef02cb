"""What a method will take: weights by kind of layer, KV cache, activations, the peak. Formulas: docs/estimate.md."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.layers import ADAPTER
from pytest_quantbudget.core.request import NO_TRUST, Subject, Workload
from pytest_quantbudget.models import checkpoint, hub, lora, methods
from pytest_quantbudget.models.config import find_config, find_folder
from pytest_quantbudget.models.estimate import families, lower_bound
from pytest_quantbudget.models.estimate.architecture import BUFFERS, NORMS, Architecture, Unknown
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

    With `at_least` only the sizes of tensors in files are known: all figures are lower bounds then, those of the peak
    and the process too, and there are no others. `parameters` is 0 where the files do not tell.
    """

    parameters: int
    weights: int
    kinds: tuple[LayerKind, ...]
    kv_cache: int | None
    activations: int | None
    peak: int
    process: int
    notes: tuple[str, ...] = ()
    at_least: bool = False


def estimate(subject: Subject, workload: Workload) -> Estimate:
    """The estimate of one subject under a workload. Reads configurations on this machine, and headers of weights.

    Where its architecture or its format is not known, it is a lower bound, from the sizes of tensors in files. Raises
    ValueError, in words for the user, where there are none either, or no configuration is to be had, or what it says is
    wrong: UnknownModel where nothing is known of the model.
    """
    try:
        return _exact(subject, workload)
    except Unknown as unknown:
        found = lower_bound.at_least(subject, _storage(subject))
        if found is None:
            why = f"{unknown}; nor are weights on this machine, whose sizes would give a lower bound"
            raise type(unknown)(why) from None
        size, note = found.bytes, f"at least, by {found.source}: {str(unknown).partition(';')[0]}"
        return Estimate(found.parameters, size, (), None, None, size, size, (note,), at_least=True)


def _exact(subject: Subject, workload: Workload) -> Estimate:
    shape = shape_of(subject)
    form, notes = _format(subject)
    assumed = form.assumed(shape)
    notes = (*notes, assumed) if assumed else notes
    added, odd = _adapter(subject)
    kinds = (*weights(shape, form), *added)
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
        notes=(*notes, *odd),
    )


def shape_of(subject: Subject) -> Architecture:
    """The architecture of a subject's model. Raises ValueError where there is no configuration, as `families.read`."""
    return families.read(find_config(subject.model, subject.revision))


def check_model(subject: Subject) -> None:
    """Raise ValueError where there is no configuration of a subject's model, or what it says is wrong."""
    with contextlib.suppress(Unknown):
        shape_of(subject)


def _storage(subject: Subject) -> Format | None:
    """The format that follows from a subject's options, where that is known."""
    spec = methods.resolved(subject)
    return spec.storage(spec.filled(subject.options)) if subject.engine == TRANSFORMERS else None


def _format(subject: Subject) -> tuple[Format, tuple[str, ...]]:
    """The format that a subject's weights will have, and what was assumed about it."""
    form = _storage(subject)
    if form is None:
        where = "" if subject.engine == TRANSFORMERS else f" in {subject.engine}"
        raise Unknown(f"how {subject.method} stores weights{where} is not known to the estimate")
    if subject.checkpoint is None:
        return form, ()
    try:
        folder = find_folder(subject.checkpoint)
        packed = checkpoint.with_dtype(checkpoint.quantization(folder), checkpoint.config(folder))
    except ValueError:
        return form, (f"{subject.checkpoint} is not on this machine: its format is taken to be that of the options",)
    return form.of_checkpoint(packed), ()


def _adapter(subject: Subject) -> tuple[tuple[LayerKind, ...], tuple[str, ...]]:
    """What runs beside the weights, which PEFT holds in float32, and why it was left out where that is not known."""
    adapter = subject.adapter
    if adapter is None or adapter.merge:
        return (), ()
    try:
        folder = Path(adapter.name) if Path(adapter.name).is_absolute() else hub.snapshot(adapter.name, None)
        count = lora.read(adapter.name, folder, "", NO_TRUST).values
    except (OSError, ValueError) as error:
        return (), (f"without the adapter, whose size is not known: {error}",)
    return (LayerKind(ADAPTER, count, FLOAT * count, 0, 8 * FLOAT),), ()


def weights(shape: Architecture, form: Format) -> tuple[LayerKind, ...]:
    """Parameters and buffers by kind of layer; the sum is what `metrics.memory.weight_bytes` finds in a loaded model.

    Raises ValueError for a layer that the format cannot hold, and where it packs none at all.
    """
    if form.bits < 16 and not form.packed(shape):
        raise ValueError(f"no layer of this architecture is one that is stored in {form.bits} bits")
    kinds = []
    for name, count in shape.parameters.items():
        packed = [matrix for matrix in shape.matrices if matrix.kind == name and form.packs(matrix)]
        scales = sum(matrix.count * form.scales(matrix) for matrix in packed)
        stored = sum(matrix.count * form.weight(matrix) for matrix in packed)
        width = FLOAT if name == NORMS and shape.norms_in_float32 and form.float16 else form.width
        rest = count - sum(matrix.all_values for matrix in packed)
        kinds.append(LayerKind(name, count, stored + scales + rest * width, scales, form.bits if packed else 8 * width))
    buffers = FLOAT * shape.buffers + form.width * shape.scales
    return (*kinds, LayerKind(BUFFERS, 0, buffers, 0, 8 * FLOAT))


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
    if shape.scores:
        pairs = workload.batch_size * shape.heads * workload.prompt_tokens**2
        prefill = max(prefill, pairs * (shape.scores * form.width + FLOAT))
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
