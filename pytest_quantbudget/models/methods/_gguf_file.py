"""A GGUF file of a Hugging Face model: its weights under llama.cpp's names, its shape and its tokenizer.

Names and keys are those of the `gguf` package, which llama.cpp's own converter (convert_hf_to_gguf.py) writes with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import Trust
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.methods import _gguf_tokenizer

# transformers' classes, by llama.cpp's name of the same computation.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# llama.cpp rotates neighbours in these, where transformers rotates halves: rows of q and k change places.
INTERLEAVED = ("llama",)
NOT_WEIGHTS = (".rotary_emb.inv_freq",)
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
KEPT = "kept"  # the type that each tensor of the model has


def architecture(config: Any, name: str) -> str:
    """llama.cpp's name of a model's architecture. Raises ValueError for one that is not known here."""
    found = (config.architectures or ["no architecture"])[0]
    if found not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(
            f"{name} is a {found}; GGUF files are made here of {known}: give a `checkpoint` made by llama.cpp's own "
            "convert_hf_to_gguf.py"
        )
    return ARCHITECTURES[found]


def check(config: Any, name: str) -> str:
    """llama.cpp's name of a model's architecture. Raises ValueError for a model that cannot be written."""
    known = architecture(config, name)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        config.architectures[0] == "MistralForCausalLM" and getattr(config, "sliding_window", None)
    ):
        raise ValueError(f"{name} attends in a sliding window, which llama.cpp's {known} does not")
    return known


def write(source: Path, target: Path, kind: str, trust: Trust) -> None:
    """Write the model in the directory `source` as the GGUF file `target`.

    Matrices are of the `kind` f32, f16 or bf16, or with KEPT each as the model has it; vectors are f32. Raises
    ValueError for a model whose computation is not known here, or whose values do not fit the kind.
    """
    import gguf
    import numpy as np
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    architecture = check(config, source.name)
    tokenizer = _gguf_tokenizer.load(source, trust)
    pre = _pre_tokenizer(architecture, tokenizer, source, target, config.vocab_size)
    writer = gguf.GGUFWriter(target, architecture)
    _add_shape(writer, config, source.name)
    _gguf_tokenizer.add(writer, tokenizer, source, config.vocab_size, pre)
    made = list(_tensors(source, config, architecture, trust))
    for tensor in made:
        form = gguf.GGMLQuantizationType[tensor.form(kind)]
        size = math.prod(tensor.shape) * WIDTHS[form.name]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in made:
        writer.write_tensor_data(_bytes(tensor.load(), tensor.form(kind), tensor.name))
    writer.close()


def _pre_tokenizer(architecture: str, tokenizer: Any, source: Path, target: Path, size: int) -> str:
    """The name of llama.cpp's pre-tokenizer that splits texts as the model's does, else that of a custom one."""
    import gguf

    alone = target.with_suffix(".vocabulary")
    writer = gguf.GGUFWriter(alone, architecture)
    _gguf_tokenizer.add(writer, tokenizer, source, size, _gguf_tokenizer.CUSTOM)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    try:
        return _gguf_tokenizer.fitting(alone, tokenizer) or _gguf_tokenizer.CUSTOM
    finally:
        alone.unlink()


def _add_shape(writer: Any, config: Any, name: str) -> None:
    """The model's shape. Raises ValueError for an activation or a scaling of positions that is not known here."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if config.hidden_act != "silu":
        raise ValueError(f"{name} has the activation {config.hidden_act}, and llama.cpp's architecture has silu")
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or 10_000.0))
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind in ("linear", "yarn"):
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(
            int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        )
    elif kind not in ("default", "llama3"):
        raise ValueError(f"{name} scales its positions by {kind!r}, which is not written here")


def _rope(config: Any) -> dict[str, Any]:
    """How positions are rotated: in one mapping since transformers 5, in two places before."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", None), **found}


def _llama3_frequencies(rope: dict[str, Any], width: int) -> Any:
    """What each frequency is divided by, as Llama 3.1 has it (transformers' `_compute_llama3_parameters`)."""
    import torch

    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    lengths = 2 * math.pi * float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return torch.where(
        lengths < original / high, torch.ones(()), torch.where(lengths > original / low, torch.tensor(factor), between)
    )


@dataclass(frozen=True)
class _Tensor:
    """One tensor to be written: its name, shape and type, and what reads it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    own: str
    load: Callable[[], Any]

    def form(self, kind: str) -> str:
        """The type that it is written in."""
        return "F32" if len(self.shape) < 2 else (self.own if kind == KEPT else kind).upper()


def _tensors(source: Path, config: Any, architecture: str, trust: Trust) -> Iterator[_Tensor]:
    """The tensors of the model's files under llama.cpp's names. Raises ValueError for one that it has no name for."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for theirs, shape, own, load in _stored(source, trust):
        if theirs.endswith(NOT_WEIGHTS) or (theirs == "lm_head.weight" and config.tie_word_embeddings):
            continue
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"{source.name}: llama.cpp's {architecture} has no tensor like {theirs}")
        count = heads.get(theirs.split(".")[-2]) if architecture in INTERLEAVED else None
        yield _Tensor(name, shape, own, functools.partial(_load_interleaved, load, count) if count else load)
    rope = _rope(config)
    if rope.get("rope_type") == "llama3":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        yield _Tensor("rope_freqs.weight", (width // 2,), "F32", lambda: _llama3_frequencies(rope, width))


def _load_interleaved(load: Callable[[], Any], heads: int) -> Any:
    return interleaved(load(), heads)


def interleaved(tensor: Any, heads: int) -> Any:
    """The rows of a projection, in each head a row of its first half before one of its second."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _stored(source: Path, trust: Trust) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Any]]]:
    """Name, shape and type of each tensor in a model's files, and what reads it."""
    import torch
    from safetensors import safe_open

    for path in checkpoint.weight_files(source, trust):
        if path.suffix != ".safetensors":
            for name, tensor in torch.load(path, map_location="cpu", mmap=True, weights_only=True).items():
                yield name, tuple(tensor.shape), _form(tensor.dtype), functools.partial(lambda each: each, tensor)
            continue
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            part = file.get_slice(name)
            own = {"F32": "F32", "F16": "F16", "BF16": "BF16"}.get(part.get_dtype())
            if own is None:
                raise ValueError(f"{source.name}: {name} is of the type {part.get_dtype()}, not of 16 or 32 bits")
            yield name, tuple(part.get_shape()), own, functools.partial(file.get_tensor, name)


def _form(dtype: Any) -> str:
    import torch

    return {torch.float16: "F16", torch.bfloat16: "BF16"}.get(dtype, "F32")


def _bytes(tensor: Any, form: str, name: str) -> Any:
    """A tensor's values as a numpy array of bytes in a type. Raises ValueError where one overflows."""
    import torch

    made = tensor.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[form]).contiguous()
    if form == "F16" and not bool(made.isfinite().all()) and bool(tensor.isfinite().all()):
        raise ValueError(f"{name} has values beyond 65504, which f16 does not hold; bf16 does")
    return made.view(torch.uint8).numpy()
