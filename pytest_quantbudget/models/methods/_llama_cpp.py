"""The library behind GGUF files: what it says while it works, its quantizer and its tokenizers.

All through the low-level functions of llama-cpp-python, which are those of llama.cpp's `llama.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WARN, ERROR, CONTINUED = 3, 4, 5  # levels of ggml_log_level
KEPT = 20_000  # lines of one capture
PRE = b"tokenizer.ggml.pre"


@dataclass
class Said:
    """What the library said, line by line, and at which level."""

    lines: list[str] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    def add(self, level: int, text: str) -> None:
        """Note a part of a line, a line, or several."""
        for piece in text.splitlines(keepends=True):
            if self.lines and not self.lines[-1].endswith("\n"):
                self.lines[-1] += piece
            elif len(self.lines) < KEPT:
                self.lines.append(piece)
                self.levels.append(self.levels[-1] if level == CONTINUED and self.levels else level)

    @property
    def complaint(self) -> str:
        """The first error in words, without the name of the function that found it; empty where there is none."""
        errors = [line for line, level in zip(self.lines, self.levels, strict=True) if level == ERROR]
        return _without_function(errors[0]) if errors else ""


def _without_function(line: str) -> str:
    name, colon, rest = line.strip().partition(": ")
    said = rest if colon and name.replace("_", "").isalnum() else line.strip()
    return said.removeprefix("error loading model: ").removeprefix("error loading model vocabulary: ")


class _Heard:
    """Where the library's log goes: to the capture that is open; warnings and errors to standard error as well."""

    def __init__(self) -> None:
        self.said = Said()

    def __call__(self, level: int, text: bytes, data: Any) -> None:
        words = text.decode("utf-8", "replace")
        self.said.add(level, words)
        if level in (WARN, ERROR):
            sys.stderr.write(words)


_HEARD = _Heard()


@functools.cache
def library() -> Any:
    """The module of the library, set up once: what it says is heard from then on."""
    # Where it breaks off it would have a debugger look at this process, if there is one, and wait for that.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    import llama_cpp

    # The library keeps the pointer and not the object.
    library.callback = llama_cpp.llama_log_callback(_HEARD)  # type: ignore[attr-defined]
    llama_cpp.llama_log_set(library.callback, ctypes.c_void_p(0))  # type: ignore[attr-defined]
    llama_cpp.llama_backend_init()
    return llama_cpp


@contextlib.contextmanager
def listening() -> Iterator[Said]:
    """What the library says meanwhile."""
    library()
    before, _HEARD.said = _HEARD.said, Said()
    try:
        yield _HEARD.said
    finally:
        _HEARD.said = before


def quantize(source: Path, target: Path, name: str) -> None:
    """Write the GGUF file `source` to `target` in the llama_ftype of a name such as `q4_k_m`.

    Raises ValueError, in the library's words, where it cannot.
    """
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = ftype(name)
    parameters.nthread = os.cpu_count() or 1
    with listening() as said:
        failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if failed:
        raise ValueError(f"llama.cpp cannot quantize to {name}: {said.complaint or f'it returned {failed}'}")


def ftype(name: str) -> int:
    """The number that llama.cpp has for a file type such as `q4_k_m`. Raises ValueError where it has none."""
    known = vars(library())
    for form in (f"LLAMA_FTYPE_MOSTLY_{name.upper()}", f"LLAMA_FTYPE_ALL_{name.upper()}"):
        if form in known:
            return int(known[form])
    raise ValueError(f"this version of llama.cpp has no file type {name}")


class Vocabulary:
    """The tokenizer of a GGUF file alone; with `pre`, with another of llama.cpp's pre-tokenizers than the file names.

    Raises ValueError, in the library's words, where the file has none that it knows.
    """

    def __init__(self, path: Path, pre: str = "") -> None:
        llama = library()
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        overrides = (llama.llama_model_kv_override * 2)()  # the last one is empty, and ends the list
        if pre:
            overrides[0].tag, overrides[0].key = llama.LLAMA_KV_OVERRIDE_TYPE_STR, PRE
            overrides[0].value.val_str = pre.encode()
            parameters.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama.llama_model_kv_override))
        with listening() as said:
            self._model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise ValueError(f"{path.name}: {said.complaint or 'llama.cpp cannot read its vocabulary'}")

    def __enter__(self) -> Vocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        library().llama_model_free(self._model)

    def tokens(self, text: str) -> list[int]:
        """The text as token ids, without start and end tokens; special tokens in it are text."""
        return tokenize(self._model, text)


def tokenize(model: Any, text: str) -> list[int]:
    """A text as token ids of a loaded model, without start and end tokens; special tokens in it are text."""
    llama = library()
    data = text.encode()
    room = (llama.llama_token * (len(data) + 8))()
    vocabulary = llama.llama_model_get_vocab(model)
    count = llama.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
    return list(room[: max(count, 0)])
