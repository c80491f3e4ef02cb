"""What a decoder is made of: its layers and their shapes, as `families` reads them from a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMBEDDING, ATTENTION, MLP, NORMS, OUTPUT = "embedding", "attention", "MLP", "norms", "output layer"
ROUTER, EXPERTS, PROJECTIONS = "router", "experts", "projections"
BUFFERS = "buffers"
# What a matrix is: torch's `Linear` in a block, transformers' `Conv1D`, a class of the model's own, one of the experts
# that transformers stacks into one parameter, or a linear layer outside of the blocks.
LINEAR, CONV1D, OWN, STACKED, OUTSIDE = "Linear", "Conv1D", "own", "stacked", "outside"

Config = Mapping[str, Any]


class Unknown(ValueError):
    """The estimate does not know a format or an architecture: what there is of files may still give a lower bound."""


class UnknownModel(Unknown):
    """It does not know the architecture."""


@dataclass(frozen=True)
class Matrix:
    """`count` equal linear layers: weights of shape (outputs, inputs), with a bias of `outputs` values or without.

    `joined` is of how many layers gptqmodel makes one of them.
    """

    kind: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    layer: str = LINEAR
    joined: int = 1

    @property
    def values(self) -> int:
        """How many numbers one weight holds, bias excluded."""
        return self.inputs * self.outputs

    @property
    def all_values(self) -> int:
        """How many numbers all of these layers hold."""
        return self.count * (self.values + self.bias * self.outputs)


@dataclass(frozen=True)
class Architecture:
    """A model's shapes.

    `matrices` are all its linear layers but the output layer, `plain` the values by kind of all else that has
    parameters; `buffers` counts values in float32 that have none, and `scales` those in the type of the model. Of the
    layers, `sliding` attend to the last `window` tokens only. `intermediate` is the inner width of an MLP, and
    `mlp_values` how many values a token has there at once where all is there in one type. `scores` is how many tables
    of scores, of a value a pair of tokens and a head, the attention keeps at once: none where it is torch's own.
    `norms_in_float32` says that these are, where the model is in float16.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    plain: Mapping[str, int]
    mlp_values: int
    buffers: int = 0
    scales: int = 0
    sliding: int = 0
    window: int = 0
    scores: int = 0
    norms_in_float32: bool = False
    kinds: tuple[str, ...] = field(default=(EMBEDDING, PROJECTIONS, ATTENTION, MLP, ROUTER, EXPERTS, NORMS, OUTPUT))

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each kind of layer; tied embeddings count once, as embedding."""
        found = {kind: self.plain.get(kind, 0) for kind in self.kinds}
        for matrix in self.matrices:
            found[matrix.kind] += matrix.all_values
        always = (EMBEDDING, ATTENTION, MLP, NORMS, OUTPUT)
        return {kind: count for kind, count in found.items() if count or kind in always}
