"""gguf-*: files for llama.cpp, made of the model's weights and quantized by the library, or ready ones.

The names are llama.cpp's of file types, most of which mix types of tensors: what a kind stands for is the type of most
values of the matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.methods import Spec
from pytest_quantbudget.models.methods._gguf_types import ANY, FLOATS, PREFIX, TYPES

FILE = "model.gguf"
FORMAT = "gguf"


def quantize(
    source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust = NO_TRUST, *, name: str
) -> None:
    """Write the model in `source` as a GGUF file into the directory `target`; no texts are needed.

    What is quantized is first written in the types that the model has, so that it is rounded once.
    """
    from pytest_quantbudget.models.methods import _gguf_file, _llama_cpp

    if name in FLOATS:
        _gguf_file.write(source, target / FILE, name, trust)
        return
    whole = target / "whole.gguf"
    _gguf_file.write(source, whole, _gguf_file.KEPT, trust)
    _llama_cpp.quantize(whole, target / FILE, name)
    whole.unlink()


def _spec(name: str) -> Spec:
    type_, bits = TYPES[name]

    def made(
        source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust = NO_TRUST
    ) -> None:
        quantize(source, options, texts, target, trust, name=name)

    return Spec(
        f"{PREFIX}{name}",
        f"llama.cpp's {name.upper()}: most matrices are {type_}",
        bits=bits,
        engines=(LLAMA_CPP,),
        adapters=(LLAMA_CPP,),
        packages=("llama_cpp", "gguf"),
        extra="llama-cpp",
        checkpoint_format=FORMAT,
        quantize=made,
        calibrated=False,
    )


SPECS = {
    **{f"{PREFIX}{name}": _spec(name) for name in TYPES},
    ANY: Spec(
        ANY,
        "A ready GGUF file, of whatever types it is.",
        engines=(LLAMA_CPP,),
        adapters=(LLAMA_CPP,),
        packages=("llama_cpp", "gguf"),
        extra="llama-cpp",
        checkpoint_format=FORMAT,
    ),
}
