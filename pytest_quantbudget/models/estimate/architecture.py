"""What a dense decoder of the Llama family is made of: its layers and their shapes, from its `config.json` alone.

The shapes are those of transformers 5 (`models/{llama,mistral,qwen2,qwen3}/modeling_*.py`), whose classes share one
form: embedding, blocks of attention and gated MLP between RMS norms, a last norm, an output layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
EMBEDDING, ATTENTION, MLP, NORMS, OUTPUT = "embedding", "attention", "MLP", "norms", "output layer"
ROTARY = "rotary"

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Matrix:
    """One linear layer: a weight of shape (outputs, inputs), and a bias of `outputs` values where it has one."""

    kind: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def values(self) -> int:
        """How many numbers the weight holds, bias excluded."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Architecture:
    """A model's shapes. `block` are the linear layers of one of `layers` equal blocks.

    `norms` counts the values of all norms, `rotary` those of the two buffers of inverse frequencies. Of the layers,
    `sliding` attend to the last `window` tokens only.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    block: tuple[Matrix, ...]
    norms: int
    rotary: int
    sliding: int = 0
    window: int = 0

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each kind of layer; tied embeddings count once, as embedding."""
        table = self.vocabulary * self.hidden
        found = {EMBEDDING: table, ATTENTION: 0, MLP: 0, NORMS: self.norms, OUTPUT: 0 if self.tied else table}
        for matrix in self.block:
            found[matrix.kind] += self.layers * (matrix.values + matrix.bias * matrix.outputs)
        return found


def read(config: Config) -> Architecture:
    """The architecture that a parsed `config.json` describes.

    Raises ValueError for a model of another family, and for a configuration that lacks what matters or says what no
    model can be.
    """
    family = config.get("model_type")
    if family not in FAMILY:
        known = ", ".join(FAMILY)
        raise ValueError(f"the architecture {family!r:.100} is not known to the estimate; these are: {known}")
    layers, hidden, inner = (_count(config, k) for k in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    heads = _count(config, "num_attention_heads")
    kv_heads = heads if _as_heads(config, family) else _count(config, "num_key_value_heads")
    own_size = config.get("head_dim") is not None
    head_size = _count(config, "head_dim") if own_size else 128 if family == "qwen3" else hidden // heads
    rotary = config.get("rope_parameters")
    if (rotary if isinstance(rotary, dict) else config).get("partial_rotary_factor", 1) != 1:
        raise ValueError("config.json: partial_rotary_factor is not known to the estimate")
    biased = _biased(config, family)
    query, key = heads * head_size, kv_heads * head_size
    attention = {"q": (hidden, query), "k": (hidden, key), "v": (hidden, key), "o": (query, hidden)}
    mlp = {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    sliding, window = _windows(config, family, layers)
    return Architecture(
        layers, hidden, inner, heads, kv_heads, head_size,
        vocabulary=_count(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        block=(
            *(Matrix(ATTENTION, *shape, name in biased) for name, shape in attention.items()),
            *(Matrix(MLP, *shape, name in biased) for name, shape in mlp.items()),
        ),
        norms=(2 * layers + 1) * hidden + (2 * head_size * layers if family == "qwen3" else 0),
        rotary=2 * ((head_size + 1) // 2),
        sliding=sliding,
        window=window,
    )  # fmt: skip


def _as_heads(config: Config, family: str) -> bool:
    """Whether there are as many key-value heads as heads: where the key is null, and in older llamas not there."""
    return config.get("num_key_value_heads") is None and ("num_key_value_heads" in config or family == "llama")


def _biased(config: Config, family: str) -> set[str]:
    """Which linear layers of a block have a bias."""
    if family == "qwen2":
        return {"q", "k", "v"}
    found = set("qkvo") if family != "mistral" and config.get("attention_bias", False) else set()
    return found | ({"gate", "up", "down"} if family == "llama" and config.get("mlp_bias", False) else set())


def _windows(config: Config, family: str, layers: int) -> tuple[int, int]:
    """How many layers attend to a window, and its length in tokens; (0, 0) where all see everything."""
    used = family == "mistral" or (family != "llama" and config.get("use_sliding_window", False))
    if not used or config.get("sliding_window", 4096) is None:
        return 0, 0
    types = config.get("layer_types")
    if family == "mistral":
        sliding = layers
    elif isinstance(types, list):
        sliding = types.count("sliding_attention")
    else:
        sliding = max(0, layers - _count(config, "max_window_layers", 28, least=0))
    return sliding, _count(config, "sliding_window", 4096)


def _count(config: Config, key: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        said = f"is {value!r:.60}" if key in config else "is not there"
        raise ValueError(f"config.json: {key} must be a whole number of at least {least} and {said}")
    return value
