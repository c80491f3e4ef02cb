"""A ready checkpoint, whatever it says it is: whether transformers can read it, and in which form it then holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.layers import Receipt
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.models import checkpoint, quantization
from pytest_quantbudget.models.dummy import Dummy


def packed(source: Path | Dummy) -> dict[str, Any]:
    """The `quantization_config` of what is to be loaded; empty for unquantized weights."""
    if isinstance(source, Path):
        return checkpoint.quantization(source)
    return source.config.get("quantization_config") or {}


def check_known(packed: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a checkpoint that transformers cannot read.

    Of a format that it does not know it takes the packed numbers for weights, with a warning in its log alone.
    """
    if not packed:
        return
    label, done = quantization.read(packed).label, quantization.run(packed, TRANSFORMERS)
    if done is None:
        import transformers
        from transformers.quantizers.auto import AutoHfQuantizer

        method = quantization.method_of(packed)
        if not method or not AutoHfQuantizer.supports_quant_method(dict(packed)):
            what = f"says it is {method!r:.60}" if method else "does not say what it is (quant_method)"
            why = f"transformers {transformers.__version__} would take what is packed for weights"
            raise ValueError(f"the quantization_config of {name} {what}: {why}")
    elif done.how == quantization.REFUSED:
        others = [engine for engine in quantization.packed_in(packed) if engine != TRANSFORMERS]
        hint = f"; {' and '.join(others)} run{'s' * (len(others) == 1)} it packed" if others else ""
        raise ValueError(f"the checkpoint in {name} is {label}: {done.why}{hint}")


def lacking(packed: Mapping[str, Any], device: str) -> str | None:
    """Why this device cannot run a checkpoint, None where it can."""
    form = quantization.form_of(packed)
    unable = form is not None and not form.on_cpu and device == "cpu"
    return f"transformers runs {quantization.read(packed).label} on a GPU alone" if unable else None


@dataclass(frozen=True)
class Held:
    """How transformers holds a checkpoint: `decompressed`, in words, or in a form that is `untold`, in words."""

    decompressed: str | None = None
    untold: str = ""
    notes: tuple[str, ...] = ()


def held(packed: Mapping[str, Any], packing: Packing | None, receipt: Receipt, expected: int | None) -> Held:
    """How a loaded checkpoint is held whose bits no kind of method says: by what is there, of `expected` values."""
    assert packing is not None
    form, done = quantization.form_of(packed), quantization.run(packed, TRANSFORMERS)
    always = done is not None and done.how == quantization.DECOMPRESSED
    untold = ""
    if form is None or not form.counted or receipt.parameters != expected:
        of = f"{receipt.parameters:,} values are seen of the model's {expected or 0:,}"
        why = of if receipt.parameters != expected else "a part of it is out of sight"
        untold = f"how {packing.label} lies in memory is not known here: {why}"
    if always or (not untold and not receipt.quantized):
        words = f"{_why(packing, done, receipt)}, so that memory and speed here are not the checkpoint's"
        others = [engine for engine in quantization.packed_in(packed) if engine != TRANSFORMERS]
        words += f"; `engine: {others[0]}` runs it packed" if others else ""
        return Held(words, untold, (words,))
    if packing.bits and not untold and receipt.main_bits != packing.bits:
        said = f"{packing.label} has {packing.bits:g} bits a value, and transformers holds most in {receipt.main_bits}"
        return Held(notes=(said,))
    return Held(untold=untold)


def _why(packing: Packing, done: quantization.Run | None, receipt: Receipt) -> str:
    """That a checkpoint was decompressed, in words."""
    if done is not None and done.how == quantization.DECOMPRESSED:
        return done.why
    if done is not None and done.why:
        return f"transformers runs {packing.label} packed {done.why}"
    return f"transformers holds all of {packing.label} in more than 8 bits ({receipt.kept})"
