"""The architectures that the estimate knows, each read from its `config.json` alone.

The shapes are those of transformers 5 (`models/*/modeling_*.py`). What a configuration leaves out is what its class of
configurations takes then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_quantbudget.models.estimate.architecture import (
    ATTENTION,
    CONV1D,
    EMBEDDING,
    EXPERTS,
    MLP,
    NORMS,
    OUTPUT,
    OUTSIDE,
    OWN,
    PROJECTIONS,
    ROUTER,
    STACKED,
    Architecture,
    Config,
    Matrix,
    UnknownModel,
)  # fmt: skip

SLIDING = "sliding_attention"


def read(config: Config) -> Architecture:
    """The architecture that a parsed `config.json` describes.

    Raises UnknownModel for a model of another family, and ValueError for a configuration that lacks what matters or
    says what no model can be.
    """
    family = config.get("model_type")
    reader = FAMILIES.get(family) if isinstance(family, str) else None
    if reader is None:
        known = ", ".join(FAMILIES)
        raise UnknownModel(f"the architecture {family!r:.100} is not known to the estimate; these are: {known}")
    return reader(config)


# Decoders of blocks of attention and gated MLP between RMS norms.


def _gated(
    config: Config,
    *,
    biased: str = "",
    head_size: int | None = None,
    norms: int = 2,
    head_norms: bool = False,
    fused: bool = False,
    tied: bool = False,
    windows: tuple[int, int] = (0, 0),
    rotary: int | None = None,
    experts: tuple[int, int, int] = (0, 0, 0),
    expert_bias: bool = False,
    sinks: bool = False,
    **more: Any,
) -> Architecture:
    """A decoder of the Llama form.

    `biased` are the matrices of a block with a bias, by their first letters; a block has `norms` norms of the hidden
    size. `fused` are queries, keys and values in one matrix, gate and up in another. `experts` are the number of blocks
    with experts instead of an MLP, how many each has, and their inner width. `rotary` counts the inverse frequencies.
    """
    layers, hidden = (_count(config, k) for k in ("num_hidden_layers", "hidden_size"))
    blocks, number, width = experts
    inner = _count(config, "intermediate_size") if layers > blocks else width
    heads = _count(config, "num_attention_heads")
    kv_heads = _key_heads(config, heads)
    size = _count(config, "head_dim") if config.get("head_dim") is not None else head_size or hidden // heads
    query, key = heads * size, kv_heads * size
    shapes = [(ATTENTION, "o", query, hidden), (MLP, "d", inner, hidden)]
    if fused:
        shapes += [(ATTENTION, "q", hidden, query + 2 * key), (MLP, "g", hidden, 2 * inner)]
    else:
        shapes += [(ATTENTION, "q", hidden, query), (ATTENTION, "k", hidden, key), (ATTENTION, "v", hidden, key)]
        shapes += [(MLP, "g", hidden, inner), (MLP, "u", hidden, inner)]
    counts = {ATTENTION: layers, MLP: layers - blocks}
    matrices = [
        Matrix(kind, i, o, name in biased, counts[kind], joined=2 if fused and name == "g" else 1)
        for kind, name, i, o in shapes
        if counts[kind]
    ]
    plain = {
        NORMS: (norms * layers + 1) * hidden + 2 * size * layers * head_norms,
        ROUTER: blocks * number * (hidden + expert_bias),
        ATTENTION: layers * heads * sinks,
    }
    if blocks:
        each: Any = {"bias": expert_bias, "count": blocks * number, "layer": STACKED}
        matrices += [Matrix(EXPERTS, hidden, width, **each)] * 2 + [Matrix(EXPERTS, width, hidden, **each)]
    frequencies = (size + 1) // 2 if rotary is None else rotary
    return Architecture(
        layers, hidden, inner, heads, kv_heads, size,
        vocabulary=_count(config, "vocab_size"),
        matrices=tuple(matrices),
        plain=plain | _tables(config, hidden, tied=tied),
        buffers=2 * frequencies,
        sliding=windows[0],
        window=windows[1],
        **({"mlp_values": 4 * hidden + (4 if fused else 3) * inner} | more),
    )  # fmt: skip


def _llama(config: Config) -> Architecture:
    _check_rotary(config)
    if "num_key_value_heads" not in config:
        config = {**config, "num_key_value_heads": None}
    biased = "qkvo" * bool(config.get("attention_bias", False)) + "gud" * bool(config.get("mlp_bias", False))
    return _gated(config, biased=biased)


def _mistral(config: Config) -> Architecture:
    _check_rotary(config)
    return _gated(config, windows=_window(config, config.get("sliding_window", 4096)))


def _qwen2(config: Config) -> Architecture:
    _check_rotary(config)
    return _gated(config, biased="qkv", windows=_window_of_qwen(config))


def _qwen3(config: Config) -> Architecture:
    _check_rotary(config)
    biased = "qkvo" * bool(config.get("attention_bias", False))
    return _gated(config, biased=biased, head_size=128, head_norms=True, windows=_window_of_qwen(config))


def _gemma(config: Config) -> Architecture:
    _check_rotary(config)
    biased = "qkvo" * bool(config.get("attention_bias", False))
    return _gated(config, biased=biased, head_size=256, tied=True, scales=1)


def _gemma2(config: Config) -> Architecture:
    _check_rotary(config)
    windows = _window(config, config.get("sliding_window", 4096), _types(config, 2))
    biased = "qkvo" * bool(config.get("attention_bias", False))
    # Its attention caps scores, which torch's own does not.
    return _gated(config, biased=biased, head_size=256, norms=4, tied=True, windows=windows, scales=1, scores=2)


def _gemma3(config: Config) -> Architecture:
    every = _count(config, "sliding_window_pattern", 6)
    types = _types(config, every)
    windows = _window(config, config.get("sliding_window", 4096), types)
    biased = "qkvo" * bool(config.get("attention_bias", False))
    size = _count(config, "head_dim") if config.get("head_dim") is not None else 256
    return _gated(
        config, biased=biased, head_size=256, norms=4, head_norms=True, tied=True, windows=windows, scales=1,
        rotary=(size + 1) // 2 * len(set(types)),
    )  # fmt: skip


def _phi3(config: Config) -> Architecture:
    if "num_key_value_heads" not in config:
        config = {**config, "num_key_value_heads": None}
    size = _count(config, "hidden_size") // _count(config, "num_attention_heads")
    part = _rotary(config).get("partial_rotary_factor", 1)
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise ValueError(f"config.json: partial_rotary_factor must be a number of at most 1 and is {part!r:.60}")
    turned = int((config.get("head_dim") or size) * part)
    return _gated(config, fused=True, windows=_window(config, config.get("sliding_window")), rotary=(turned + 1) // 2)


def _mixtral(config: Config) -> Architecture:
    _check_rotary(config)
    layers, number = _count(config, "num_hidden_layers"), _count(config, "num_local_experts", 8)
    width, windows = _count(config, "intermediate_size"), _window(config, config.get("sliding_window"))
    used = _count(config, "num_experts_per_tok", 2)
    hidden = _count(config, "hidden_size")
    return _gated(config, windows=windows, experts=(layers, number, width), mlp_values=_routed(hidden, width, used))


def _qwen3_moe(config: Config) -> Architecture:
    _check_rotary(config)
    layers, step = _count(config, "num_hidden_layers"), _count(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"config.json: mlp_only_layers must be a list and is {dense!r:.60}")
    number = _count(config, "num_experts" if "num_experts" in config else "num_local_experts", 128, least=0)
    blocks = sum(at not in dense and (at + 1) % step == 0 for at in range(layers)) if number else 0
    width, used = _count(config, "moe_intermediate_size", 768), _count(config, "num_experts_per_tok", 8)
    hidden = _count(config, "hidden_size")
    more: Any = {"mlp_values": _routed(hidden, width, used)} if blocks else {}
    biased = "qkvo" * bool(config.get("attention_bias", False))
    windows = _window(config, config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None)
    return _gated(config, biased=biased, head_norms=True, windows=windows, experts=(blocks, number, width), **more)


def _gpt_oss(config: Config) -> Architecture:
    layers = _count(config, "num_hidden_layers")
    width, hidden = _count(config, "intermediate_size"), _count(config, "hidden_size")
    number = _count(config, "num_local_experts" if "num_local_experts" in config else "num_experts", 128)
    used = _count(config, "num_experts_per_tok", 4)
    return _gated(
        config,
        biased="qkvo" * bool(config.get("attention_bias", True)),
        head_size=64,
        windows=_window(config, config.get("sliding_window", 128), _types(config, 2)),
        experts=(layers, number, width),
        expert_bias=True,
        sinks=True,
        norms_in_float32=True,
        mlp_values=_routed(hidden, width, used),
        scores=2,
    )


# Decoders of other forms.


def _falcon(config: Config) -> Architecture:
    layers, heads = _count(config, "num_hidden_layers"), _count(config, "num_attention_heads")
    hidden = _count(config, "n_embed" if "n_embed" in config else "hidden_size")
    inner = _count(config, "ffn_hidden_size") if config.get("ffn_hidden_size") is not None else 4 * hidden
    size, new = hidden // heads, bool(config.get("new_decoder_architecture", False))
    groups = _count(config, "num_kv_heads") if config.get("num_kv_heads") is not None else heads
    shared = bool(config.get("multi_query", True)) and not new
    outputs = (2 * groups + heads) * size if new else hidden + 2 * size if shared else 3 * hidden
    two = config.get("num_ln_in_parallel_attn") == 2 or (new and config.get("num_ln_in_parallel_attn") is None)
    norms = 2 if two or not config.get("parallel_attn", True) else 1
    more: Any = {"bias": bool(config.get("bias", False)), "count": layers, "layer": OWN}
    return Architecture(
        layers, hidden, inner, heads, 1 if shared else heads, size,
        vocabulary=_count(config, "vocab_size"),
        matrices=(
            Matrix(ATTENTION, hidden, outputs, **more),
            Matrix(ATTENTION, hidden, hidden, **more),
            Matrix(MLP, hidden, inner, **more),
            Matrix(MLP, inner, hidden, **more),
        ),
        plain={NORMS: 2 * hidden * (norms * layers + 1)} | _tables(config, hidden, tied=True),
        mlp_values=4 * hidden + 2 * inner,
        buffers=2 * ((size + 1) // 2),
    )  # fmt: skip


def _opt(config: Config) -> Architecture:
    layers, hidden = _count(config, "num_hidden_layers"), _count(config, "hidden_size")
    heads, inner = _count(config, "num_attention_heads"), _count(config, "ffn_dim")
    wide = _count(config, "word_embed_proj_dim") if config.get("word_embed_proj_dim") is not None else hidden
    positions = (_count(config, "max_position_embeddings", 2048) + 2) * hidden
    last = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    affine = bool(config.get("layer_norm_elementwise_affine", True))
    more: Any = {"bias": bool(config.get("enable_bias", True)), "count": layers}
    outside = (Matrix(PROJECTIONS, wide, hidden, layer=OUTSIDE), Matrix(PROJECTIONS, hidden, wide, layer=OUTSIDE))
    tables = _tables(config, wide, tied=True)
    tables[EMBEDDING] += positions
    return Architecture(
        layers, hidden, inner, heads, heads, hidden // heads,
        vocabulary=_count(config, "vocab_size"),
        matrices=(
            *[Matrix(ATTENTION, hidden, hidden, **more)] * 4,
            Matrix(MLP, hidden, inner, **more),
            Matrix(MLP, inner, hidden, **more),
            *(outside if wide != hidden else ()),
        ),
        plain=tables | {NORMS: 2 * hidden * (2 * layers + bool(last)) * affine},
        mlp_values=4 * hidden + 2 * inner,
    )  # fmt: skip


def _gpt2(config: Config) -> Architecture:
    if config.get("add_cross_attention", False):
        raise UnknownModel("a gpt2 with cross-attention is not known to the estimate")
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads"}
    layers, hidden, heads = (_count(config, new if new in config else old) for old, new in names.items())
    positions = _count(config, "n_positions" if "n_positions" in config else "max_position_embeddings", 1024)
    inner = _count(config, "n_inner") if config.get("n_inner") is not None else 4 * hidden
    tables = _tables(config, hidden, tied=True)
    more: Any = {"bias": True, "count": layers, "layer": CONV1D}
    return Architecture(
        layers, hidden, inner, heads, heads, hidden // heads,
        vocabulary=_count(config, "vocab_size"),
        matrices=(
            Matrix(ATTENTION, hidden, 3 * hidden, **more),
            Matrix(ATTENTION, hidden, hidden, **more),
            Matrix(MLP, hidden, inner, **more),
            Matrix(MLP, inner, hidden, **more),
        ),
        plain=tables | {EMBEDDING: tables[EMBEDDING] + positions * hidden, NORMS: 2 * hidden * (2 * layers + 1)},
        mlp_values=4 * hidden + 4 * inner,
    )  # fmt: skip


FAMILIES: Mapping[str, Callable[[Config], Architecture]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "falcon": _falcon,
    "opt": _opt,
    "gpt2": _gpt2,
}


# What they share.


def _tables(config: Config, width: int, *, tied: bool) -> dict[str, int]:
    """Values of the embedding, and of the output layer where it has some of its own."""
    table = _count(config, "vocab_size") * width
    return {EMBEDDING: table, OUTPUT: 0 if config.get("tie_word_embeddings", tied) else table}


def _routed(hidden: int, width: int, used: int) -> int:
    """Values of a token in experts: its own, and for each that is used its input, gate and up, and their product."""
    return 4 * hidden + used * (hidden + 4 * width)


def _key_heads(config: Config, heads: int) -> int:
    """There are as many key-value heads as heads where the key is null."""
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        return heads
    return _count(config, "num_key_value_heads")


def _rotary(config: Config) -> Config:
    """How positions are rotated: in one mapping since transformers 5, before beside it."""
    found = config.get("rope_parameters")
    return found if isinstance(found, dict) else config


def _check_rotary(config: Config) -> None:
    if _rotary(config).get("partial_rotary_factor", 1) != 1:
        raise UnknownModel("config.json: partial_rotary_factor is not known to the estimate")


def _types(config: Config, full: int) -> list[str]:
    """The kind of each layer; where the configuration does not say, one in `full` sees everything."""
    layers = _count(config, "num_hidden_layers")
    types = config.get("layer_types") or [SLIDING if (at + 1) % full else "full_attention" for at in range(layers)]
    if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
        raise ValueError(f"config.json: layer_types must be a list of names and is {types!r:.60}")
    return types


def _window(config: Config, window: object, types: Sequence[str] | None = None) -> tuple[int, int]:
    """How many layers attend to a window, and its length in tokens; (0, 0) where all see everything.

    Without `types` of layers all attend to it.
    """
    if window is None:
        return 0, 0
    layers = _count(config, "num_hidden_layers")
    sliding = layers if types is None else types.count(SLIDING)
    return sliding, _count({"sliding_window": window}, "sliding_window")


def _window_of_qwen(config: Config) -> tuple[int, int]:
    if not config.get("use_sliding_window", False):
        return 0, 0
    types, layers = config.get("layer_types"), _count(config, "num_hidden_layers")
    if not isinstance(types, list):
        full = min(layers, _count(config, "max_window_layers", 28, least=0))
        types = ["full_attention"] * full + [SLIDING] * (layers - full)
    return _window(config, config.get("sliding_window", 4096), types)


def _count(config: Config, key: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        said = f"is {value!r:.60}" if key in config else "is not there"
        raise ValueError(f"config.json: {key} must be a whole number of at least {least} and {said}")
    return value
