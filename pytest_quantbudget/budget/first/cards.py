"""The GPUs that a first budget is for: named, by their size, or those of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.problems import nearest
from pytest_quantbudget.core.units import format_size, parse_size
from pytest_quantbudget.models.estimate.fit import CARDS

# Makers and series, which nobody says, and cards that do not compute in bfloat16 (compute capability below 8.0).
UNSAID = ("nvidia", "geforce", "tesla")
OLD = ("Tesla T4",)


@dataclass(frozen=True)
class Card:
    """A GPU with `total` bytes. `pattern` matches its name, empty where only its size is known.

    `bfloat16` says whether it computes in that type.
    """

    name: str
    total: int
    pattern: str = ""
    bfloat16: bool = True

    @property
    def words(self) -> str:
        """`NVIDIA L4 (22.5 GiB)`."""
        return f"{self.name} ({format_size(self.total)})" if self.pattern else self.name


def named(texts: Iterable[str]) -> tuple[Card, ...]:
    """The cards that are called so. Raises ValueError, with the nearest right name."""
    return tuple(dict.fromkeys(map(_named, texts)))


def _named(text: str) -> Card:
    if text[:1].isdigit() and not _found(text):
        total = int(parse_size(text)[0])
        return Card(f"a GPU with {format_size(total)}", total)
    found = _found(text)
    if len(found) > 1:
        raise ValueError(f"--gpu {text}: {' or '.join(repr(name) for name in found)}?")
    if not found:
        short = {" ".join(_words(name)): name for name in CARDS}
        raise ValueError(f"--gpu {text}: no such GPU is known here{nearest(text.lower(), short)}, or a size: '24 GiB'")
    return Card(found[0], CARDS[found[0]], _pattern(found[0]), found[0] not in OLD)


def _words(name: str) -> list[str]:
    return [word for word in name.lower().replace("-", " ").split() if word not in UNSAID]


def _found(text: str) -> list[str]:
    """The known cards in whose name all words of a text stand; of several the one that has no others."""
    wanted = _words(text)
    found = [name for name in CARDS if wanted and set(wanted) <= set(_words(name))]
    return [name for name in found if _words(name) == wanted] or found


def _pattern(name: str) -> str:
    """What matches the names that drivers give a card: behind its model they say its form and size."""
    words = name.split()
    return f"{' '.join(words[:-1] if words[-1].endswith('GB') else words)}*"


def of_machine(gpus: Sequence[Gpu]) -> tuple[Card, ...]:
    """The cards of this machine, each name once."""
    kinds = {gpu.name: gpu for gpu in reversed(gpus)}
    return tuple(
        Card(gpu.name, gpu.total, gpu.name, int(gpu.capability.partition(".")[0] or 0) >= 8)
        for gpu in reversed(kinds.values())
    )
