"""Which methods a first budget begins with: what there is of the model decides, and what it fits into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_quantbudget.budget.first import ready
from pytest_quantbudget.budget.first.wish import Choice, Planned, Wish
from pytest_quantbudget.core import versions
from pytest_quantbudget.core.budget import DEVELOPMENT, EDGE, PRODUCTION, QLORA
from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS
from pytest_quantbudget.core.problems import nearest
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.architecture import Unknown
from pytest_quantbudget.models.estimate.fit import fits
from pytest_quantbudget.models.estimate.memory import Estimate
from pytest_quantbudget.models.methods._gguf_types import SMALLER

# What each use begins with, after the baseline; the first ones need calibration texts, and come where there are some.
BY_USE: Mapping[str | None, Sequence[str]] = {
    None: ("int8", "nf4", "gptq-int4", "awq-int4"),
    DEVELOPMENT: ("int8", "nf4"),
    QLORA: ("nf4",),
    PRODUCTION: ("gptq-int4", "awq-int4", "nf4"),
    EDGE: ("gguf-q8_0", "gguf-q4_k_m"),
}
AS_GGUF = {"fp32": "gguf-f32", "bf16": "gguf-bf16", "fp16": "gguf-f16"}
DENSE = (*AS_GGUF, *AS_GGUF.values())
# Where 16 bits do not fit, the nearest to them that does is the baseline.
NEXT_BEST = ("int8", "nf4")
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
NO_KIND = {
    "checkpoint": "a ready checkpoint is named by --checkpoint",
    "gguf": "a ready GGUF file is named by --checkpoint",
    "served": "a server is no model that could be loaded: docs/engines.md says how a budget names it",
}
SMALL = 1_000_000_000  # parameters of a model that a CPU runs in float32


class Chooser:
    """Chooses the methods for one wish. `workload` is what the estimates are for."""

    def __init__(self, wish: Wish, workload: Workload) -> None:
        self.wish, self.workload = wish, workload
        self.left_out: dict[str, str] = {}

    def choose(self) -> Choice:
        """The methods. Raises ValueError where none is left, and for what cannot be done."""
        packing = self.wish.found.packing
        if packing is not None:
            return self._as_it_is(packing.label)
        baseline = self._baseline()
        asked = self.wish.methods or self._of_use()
        kinds = [kind for kind in dict.fromkeys(asked) if baseline is None or kind != baseline.kind]
        others = [each for kind in kinds if (each := self._planned(kind)) is not None]
        first = [baseline] if baseline else []
        planned = (*first, *others, *ready.planned(self.wish, [each.name for each in (*first, *others)]))
        if not planned:
            why = "; ".join(f"{name} {reason}" for name, reason in self.left_out.items())
            raise ValueError(f"no method is left: {why}; name a larger GPU, or --methods that are to be written anyway")
        return Choice(planned, baseline.name if baseline else None, tuple(self.left_out.items()))

    def _as_it_is(self, label: str) -> Choice:
        """A model that is quantized already is measured as it is, and compared with nothing."""
        use, asked = self.wish.use, self.wish.methods
        source = f"`init SOURCE --checkpoint {self.wish.model}`, with the model that it was made of, compares the two"
        if asked:
            what = f"{', '.join(asked)} need{'s' * (len(asked) == 1)} unquantized weights"
            raise ValueError(f"the model is already quantized ({label}); {what}; {source}")
        if use in (QLORA, DEVELOPMENT):
            why = "and what is made of it needs unquantized weights"
            raise ValueError(f"the model is already quantized ({label}), {why} for --use {use}; {source}")
        return Choice((ready.as_it_is(self.wish),), None)

    def _of_use(self) -> list[str]:
        """The kinds that the use begins with; with a reason for those that cannot be made here."""
        kinds = []
        for kind in BY_USE[self.wish.use]:
            if methods.spec(kind).calibrated and methods.spec(kind).quantize and self.wish.calibration is None:
                how = "--calibration FILE makes it, and --checkpoint NAME takes a ready one"
                self.left_out[kind] = f"is quantized on texts of yours: {how}"
            else:
                kinds.append(self._in_blocks(kind))
        return kinds

    def _in_blocks(self, kind: str) -> str:
        """A kind of GGUF whose blocks fill the rows of the model."""
        try:
            shape = memory.shape_of(self._subject("fp16", {}))
        except ValueError:
            return kind
        uneven = any(matrix.inputs % 256 for matrix in shape.matrices)
        return SMALLER[kind][0] if uneven and kind in SMALLER else kind

    def _baseline(self) -> Planned | None:
        """What the others are compared with: the model in its own type, or the nearest to it that fits."""
        asked = [kind for kind in self.wish.methods if kind in DENSE]
        if asked:
            return self._planned(asked[0])
        kind = self._own_type()
        edge = self.wish.use == EDGE
        kind = AS_GGUF[kind] if edge else kind
        found = self._planned(kind)
        if found is not None:
            return found
        for next_best in BY_USE[EDGE] if edge else NEXT_BEST:
            if (found := self._planned(self._in_blocks(next_best))) is not None:
                why = f"the baseline, because {kind} does not fit: what the others lose is lost against it"
                return replace(found, remarks=(*found.remarks, why))
        return None

    def _own_type(self) -> str:
        """The kind that keeps the model as it is; without a GPU, a small one is computed in float32."""
        cards = self.wish.cards
        if cards:
            return "bf16" if all(card.bfloat16 for card in cards) and self.wish.found.dtype != "float16" else "fp16"
        if self.wish.use == QLORA:
            return "bf16"
        if self.wish.use != EDGE and self._is_small():
            return "fp32"
        return TYPES.get(self.wish.found.dtype or "", "bf16")

    def _is_small(self) -> bool:
        made = self._estimate("bf16", {})
        return isinstance(made, Estimate) and 0 < made.parameters < SMALL

    def _options(self, kind: str) -> dict[str, Any]:
        """Options that the machine or the use asks for."""
        if kind == "nf4":
            old = not all(card.bfloat16 for card in self.wish.cards)
            alone = not self.wish.cards and self.wish.use != QLORA and self._is_small()
            dtype = "float16" if old else "float32" if alone else "bfloat16"
            return {"double_quant": True, "compute_dtype": dtype}
        return {"texts": 64} if self.wish.found.shipped and kind in ("gptq-int4", "awq-int4") else {}

    def _subject(self, kind: str, options: Mapping[str, Any], engine: str = TRANSFORMERS) -> Subject:
        found = self.wish.found
        return Subject(found.model, self.wish.revision, kind, None, dict(options), None, engine=engine)

    def _estimate(self, kind: str, options: Mapping[str, Any]) -> Estimate | str | None:
        """The estimate of a kind; None where nothing is known of it, and a text where the model cannot be stored so."""
        spec = methods.spec(kind)
        try:
            if spec.engines[0] == LLAMA_CPP:
                whole = memory.estimate(self._subject("fp16", {}), self.workload)
                size = int(whole.parameters * spec.bits / 8)
                return Estimate(whole.parameters, size, (), None, None, size, size, at_least=True)
            return memory.estimate(self._subject(kind, options), self.workload)
        except Unknown:
            return None
        except ValueError as error:
            return str(error)

    def _planned(self, kind: str) -> Planned | None:
        """A method of one kind; None, with the reason noted, where it fits no card and was not asked for."""
        spec, options = methods.spec(kind), self._options(kind)
        engine = spec.engines[0]
        made, remarks = self._estimate(kind, options), []
        if isinstance(made, str):
            self.left_out[kind] = made
            return None
        if made is not None:
            small = [card.words for card in self.wish.cards if not fits(made, card.total)]
            if not self.wish.cards and self.wish.ram is not None and made.peak > self.wish.ram:
                small = [f"the memory of this machine ({format_size(self.wish.ram)})"]
            size = made.process if self.wish.cards else made.weights
            need = f"{'at least ' * made.at_least}{format_size(size)}{' of a GPU' * bool(self.wish.cards)}"
            remarks.append(f"takes {need}, by the estimate")
            if small and len(small) >= len(self.wish.cards) and kind not in self.wish.methods:
                self.left_out[kind] = f"takes {need}, and does not fit {' or '.join(small)}"
                return None
            remarks += [f"does not fit {card}" for card in small]
        keys: dict[str, Any] = {}
        if self.wish.adapter is not None:
            if engine not in spec.adapters:
                self.left_out[kind] = f"runs no adapter in {engine}"
                return None
            keys["adapter"] = self.wish.adapter
        if options:
            keys["options"] = options
        missing = tuple(self._missing(self._subject(kind, options, engine)))
        return Planned(kind, kind, engine, keys, made.process if made else None, tuple(remarks), missing)

    def _missing(self, subject: Subject) -> Iterator[str]:
        """The packages that a subject needs and that are not here."""
        wanted = engines.imported(subject)
        if self.wish.adapter is not None and subject.engine == TRANSFORMERS:
            wanted = [*wanted, methods.PEFT]
        yield from (name for name in wanted if not versions.is_there(name))


def kinds(texts: Sequence[str]) -> tuple[str, ...]:
    """The kinds of methods that are named, singly or with commas. Raises ValueError, with the nearest right name."""
    found = tuple(dict.fromkeys(name for text in texts for name in text.split(",") if name))
    for name in found:
        if name in NO_KIND:
            raise ValueError(f"--methods {name}: {NO_KIND[name]}")
        if name not in methods.names():
            raise ValueError(f"--methods: there is no method {name!r}{nearest(name, methods.names())}")
    return found
