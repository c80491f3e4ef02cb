"""Which type each tensor of a GGUF file has, and whether that is what the budget asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.layers import ADAPTER, EMBEDDING, LINEAR, LM_HEAD, NORM, OTHER, Layers, Receipt
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.models.methods import _gguf_types as kinds
from pytest_quantbudget.models.methods import gguf

BITS = re.compile(r"\d+")
MATRICES = (".lora_a", ".lora_b")


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, its type in lower case, the length of its rows, and how many values it has."""

    name: str
    type: str
    row: int
    values: int

    @property
    def kind(self) -> str:
        """What it is, as in `Layers`."""
        if self.name.endswith(MATRICES):
            return ADAPTER
        if self.name.endswith("_norm.weight"):
            return NORM
        if not self.name.endswith(".weight") or self.row == self.values:
            return OTHER
        return {"token_embd.weight": EMBEDDING, "output.weight": LM_HEAD}.get(self.name, LINEAR)

    @property
    def bits(self) -> int:
        """The bits of a value, without its share of scales."""
        found = BITS.search(self.type)
        return int(found[0]) if found else 0


def read(paths: Iterable[Path]) -> list[Tensor]:
    """The tensors of files that the library has loaded."""
    from gguf import GGUFReader

    return [
        Tensor(found.name, found.tensor_type.name.lower(), int(found.shape[0]), int(found.n_elements))
        for path in paths
        for found in GGUFReader(path).tensors
    ]


def receipt(tensors: Sequence[Tensor], repacked: Mapping[str, str]) -> Receipt:
    """The layers by kind and type; those that were packed anew for this CPU go by the name of that form."""
    counts: Counter[tuple[str, str, str, int]] = Counter()
    values: Counter[tuple[str, str, str, int]] = Counter()
    for tensor in tensors:
        form = repacked.get(tensor.name)
        group = tensor.kind, form or tensor.type, "repack" if form else "ggml", tensor.bits
        counts[group] += 1
        values[group] += tensor.values
    found = [
        Layers(kind, name, "ggml", kernel, bits, count, values[kind, name, kernel, bits])
        for (kind, name, kernel, bits), count in counts.items()
    ]
    return Receipt(tuple(sorted(found, key=lambda layers: (-layers.parameters, layers.kind, layers.name, layers.bits))))


def packing(tensors: Sequence[Tensor], kind: str) -> Packing:
    """What a ready file is: of the file type that its kind names, else of the type of most of its matrices' values."""
    main = _main(tensors)
    told = kind.removeprefix(kinds.PREFIX) if kind in kinds.DOMINANT else f"mostly {main}"
    return Packing(gguf.FORMAT, f"{gguf.FORMAT} {told}", max((t.bits for t in tensors if t.type == main), default=0))


def _main(tensors: Sequence[Tensor]) -> str:
    """The type of most values of the matrices."""
    values: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.kind == LINEAR:
            values[tensor.type] += tensor.values
    return max(values, key=values.__getitem__, default="no matrix")


def check(tensors: Sequence[Tensor], kind: str, name: str) -> None:
    """Raise ValueError where most values of the matrices are not of the type that a kind stands for.

    The message counts the matrices of each type, and names the kinds that fit.
    """
    wanted = kinds.DOMINANT.get(kind)
    matrices = Counter(tensor.type for tensor in tensors if tensor.kind == LINEAR)
    main = _main(tensors)
    if wanted is None or main == wanted:
        return
    told = ", ".join(f"{count} {type_}" for type_, count in matrices.most_common())
    why = f"{kind} stands for {wanted}, and of the {sum(matrices.values())} matrices in {name} there are {told}"
    block = kinds.BLOCKS.get(wanted, 1)
    odd = [tensor for tensor in tensors if tensor.kind == LINEAR and tensor.row % block]
    if odd and kind in kinds.SMALLER:
        rows = sorted({tensor.row for tensor in odd})
        blocks = {each: kinds.BLOCKS[kinds.DOMINANT[each]] for each in kinds.SMALLER[kind]}
        fits = [each for each, size in blocks.items() if not any(row % size for row in rows)]
        why += f": {len(odd)} have rows of {', '.join(map(str, rows))} values, which blocks of {block} do not divide; "
        why += f"{' and '.join(fits or ['gguf-f16'])} {'fit' if len(fits) > 1 else 'fits'}"
    else:
        same = [each for each, type_ in kinds.DOMINANT.items() if type_ == main]
        why += f"; {' or '.join(same)} is what it is" if same else ""
    raise ValueError(why)
