"""The methods of ready checkpoints: which engine runs each, and what of it can be judged there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.first.wish import Planned, Wish
from pytest_quantbudget.budget.keys import METHOD_NAME
from pytest_quantbudget.core import versions
from pytest_quantbudget.core.budget import PRODUCTION, USE
from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS, VLLM
from pytest_quantbudget.models import checkpoint, engines, methods, quantization
from pytest_quantbudget.models.config import find_folder

SERVER = "`engine: vllm` measures it as the server that ships: docs/vllm.md"


def planned(wish: Wish, taken: Sequence[str]) -> Iterator[Planned]:
    """The checkpoints of a wish, each under a name of its own."""
    names = [*taken, *methods.names(), USE]
    for written in wish.checkpoints:
        name = _name_of(written, names)
        names.append(name)
        yield _planned(wish, name, written)


def as_it_is(wish: Wish) -> Planned:
    """The method of a model that is quantized itself."""
    return _planned(wish, _name_of(wish.model, [*methods.names(), USE]), wish.model)


def _planned(wish: Wish, name: str, written: str) -> Planned:
    keys: dict[str, Any] = {"checkpoint": written}
    if written.endswith(".gguf"):
        return Planned(name, "gguf", LLAMA_CPP, keys, missing=_absent(engines.spec(LLAMA_CPP).packages))
    told = _told(wish.places.get(written, written))
    here, there = (quantization.run(told, engine) for engine in (TRANSFORMERS, VLLM)) if told else (None, None)
    remarks = [f"says that it is {quantization.read(told).label}"] if told else []
    production = wish.use == PRODUCTION and versions.is_there("vllm")
    if there is not None and there.how == quantization.PACKED and (production or _is(here, quantization.REFUSED)):
        remarks += [f"transformers does not run it: {here.why}"] if here and here.how == quantization.REFUSED else []
        keys["engine"] = VLLM
        return Planned(name, "checkpoint", VLLM, keys, None, tuple(remarks), _absent(engines.spec(VLLM).serving))
    decompressed = _is(here, quantization.DECOMPRESSED)
    if decompressed and here is not None:
        remarks.append(f"{here.why}, so that its memory and speed are no limits here; {SERVER}")
    elif wish.use == PRODUCTION:
        remarks.append(SERVER)
    form = quantization.form_of(told) if told else None
    missing = _absent((*engines.spec(TRANSFORMERS).packages, *(form.packages if form else ())))
    return Planned(name, "checkpoint", TRANSFORMERS, keys, None, tuple(remarks), missing, decompressed)


def _is(run: quantization.Run | None, how: str) -> bool:
    return run is not None and run.how == how


def _told(name: str) -> Mapping[str, Any]:
    """What a checkpoint says of how it is quantized; empty where it says nothing, or is not on this machine."""
    try:
        return checkpoint.quantization(find_folder(name))
    except (ValueError, OSError):
        return {}


def _absent(packages: Sequence[str]) -> tuple[str, ...]:
    return tuple(package for package in packages if not versions.is_there(package))


def _name_of(written: str, taken: Sequence[str]) -> str:
    """A name for the method of a ready checkpoint: the end of its own, as far as a method's name has such letters."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", Path(written).name.removesuffix(".gguf")).strip("-.+_")[:50] or "ready"
    name, number = plain, 2
    while name in taken or not re.fullmatch(METHOD_NAME, name):
        name, number = f"{plain}-{number}", number + 1
    return name
