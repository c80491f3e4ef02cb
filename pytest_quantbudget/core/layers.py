"""Which layers a loaded model has, in how many bits, and whether its quantized ones run on the kernels asked for."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass

QUANTIZED_BITS = 8  # a value is quantized that is stored in so many bits or fewer
LINEAR, EMBEDDING, LM_HEAD, NORM, EXPERTS, OTHER = "linear", "embedding", "lm_head", "norm", "experts", "other"
ADAPTER = "adapter"  # what runs beside the weights
PATTERNS = r"[\w*?.\[\]!-]+(\s*\|\s*[\w*?.\[\]!-]+)*"


@dataclass(frozen=True)
class Layers:
    """Layers of one class whose values are stored in equally many bits.

    `kind` is `linear`, `embedding`, `lm_head`, `norm`, `experts` (the matrices of several experts in one tensor),
    `adapter` or `other` (biases too). `kernel` is gptqmodel's name of it, else the library that holds the class `name`
    of `module`. `parameters` counts values of the unquantized model, or of an adapter, shared ones once: an `lm_head`
    tied to the embedding has none of its own. Scales and zero points are no parameters.
    """

    kind: str
    name: str
    module: str
    kernel: str
    bits: int
    count: int
    parameters: int

    @property
    def quantized(self) -> bool:
        """Whether the values are stored in at most 8 bits."""
        return self.bits <= QUANTIZED_BITS

    @property
    def said(self) -> str:
        """The layers in words."""
        return f"{self.count:,} {self.name} ({self.kernel}, {self.bits} bits)"


@dataclass(frozen=True)
class Receipt:
    """The layers of a model as loaded, those with the most parameters first."""

    layers: tuple[Layers, ...]

    @property
    def parameters(self) -> int:
        """Values of the unquantized model, without an adapter's."""
        return sum(layers.parameters for layers in self.layers if layers.kind != ADAPTER)

    @property
    def quantized(self) -> int:
        """How many of them are stored in at most 8 bits."""
        return sum(layers.parameters for layers in self.layers if layers.quantized and layers.kind != ADAPTER)

    @property
    def fraction(self) -> float:
        """Share of the parameters that are stored in at most 8 bits, from 0 to 1."""
        return self.quantized / self.parameters if self.parameters else 0.0

    @property
    def main_bits(self) -> int:
        """The bits of most of the quantized values; 0 where none are."""
        counts: Counter[int] = Counter()
        for layers in self.layers:
            if layers.quantized and layers.kind != ADAPTER:
                counts[layers.bits] += layers.parameters
        return max(counts, key=counts.__getitem__, default=0)

    @property
    def kernels(self) -> str:
        """The quantized linear layers in words."""
        return ", ".join(layers.said for layers in self._kernels) or "no quantized linear layer"

    @property
    def linear(self) -> str:
        """All linear layers in words, by class."""
        counts: Counter[str] = Counter()
        for layers in self.layers:
            if layers.kind in (LINEAR, LM_HEAD):
                counts[layers.name] += layers.count
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no linear layer"

    @property
    def kept(self) -> str:
        """What is stored in more than 8 bits, in words, by kind."""
        kept: Counter[tuple[str, int]] = Counter()
        for layers in self.layers:
            if not layers.quantized and layers.parameters:
                kept[layers.kind, layers.bits] += layers.parameters
        return ", ".join(f"{kind} {count:,} in {bits} bits" for (kind, bits), count in kept.items()) or "nothing"

    @property
    def unpacked_experts(self) -> str:
        """Experts that are stored in more than 8 bits, in words; nothing where there are none."""
        kept = [layers for layers in self.layers if layers.kind == EXPERTS and not layers.quantized]
        count = sum(layers.parameters for layers in kept)
        if not count:
            return ""
        share, bits = 100 * count / self.parameters, " and ".join(sorted({str(layers.bits) for layers in kept}))
        held = f"{count:,} of {self.parameters:,} parameters ({share:.1f} %)"
        return f"the experts, {held}, stay in {bits} bits: they are stacked into one tensor, which is no linear layer"

    @property
    def _kernels(self) -> list[Layers]:
        return [layers for layers in self.layers if layers.kind in (LINEAR, LM_HEAD) and layers.quantized]

    def runs_on(self, patterns: str) -> bool:
        """Whether the class of every quantized linear layer matches one of the patterns, which stand between `|`.

        Upper and lower case differ. False where no linear layer is quantized.
        """
        wanted = [pattern.strip() for pattern in patterns.split("|")]
        names = [layers.name for layers in self._kernels]
        return bool(names) and all(any(fnmatch.fnmatchcase(name, one) for one in wanted) for name in names)


def read_patterns(value: object) -> float:
    """Check a limit on the kernel, whose text is what it is judged by. Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(PATTERNS, value):
        raise ValueError(f"must be names of layer classes such as Marlin*, with | between several, not {value!r}")
    return 0.0
