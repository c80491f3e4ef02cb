"""A GGUF model in memory, and the contexts in which it runs: tokens in, logits out."""

from __future__ import annotations

import ctypes
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pytest_quantbudget.models.methods import _llama_cpp

DEFAULT_CTX = 4096  # tokens of a context at first, where the model has as many positions
BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
NAMES = {"model": "model", "KV": "kv", "RS": "kv", "compute": "compute", "output": "compute"}
REPACKED = re.compile(r"repack tensor (\S+) with (\S+)")
# What the library's own words for a failed allocation hold.
NO_MEMORY = ("failed to allocate", "out of memory", "unable to allocate", "failed to reserve", "bad_alloc")

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
MOST_TOKENS = 1 << 16  # in one batch
PADDED = 256  # tokens of a sequence's context are a multiple of that

Row = tuple[int, int, Any, bool | None]


class Session:
    """A model with a context, which is made anew where work needs another shape.

    `options` are those of the engine, with defaults. Sequences are numbered from 0. The `adapter` is the GGUF file of
    one that runs beside the weights.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], adapter: Path | None = None) -> None:
        self.llama = _llama_cpp.library()
        self.options = options
        self.buffers: dict[str, dict[str, int]] = defaultdict(dict)
        self.repacked: dict[str, str] = {}
        self._context: Any = None
        self.sequences = self.tokens = 0
        self._make_batch()
        self._model = self._load(path)
        self._adapter = self._load_adapter(adapter) if adapter is not None else None
        vocabulary = self.llama.llama_model_get_vocab(self._model)
        self.vocabulary: int = self.llama.llama_vocab_n_tokens(vocabulary)

    def _load(self, path: Path) -> Any:
        """The model. Raises ValueError, in the library's words, for a file that it does not take; MemoryError."""
        options = self.options
        parameters = self.llama.llama_model_default_params()
        parameters.n_gpu_layers = options["n_gpu_layers"]
        parameters.main_gpu = options["main_gpu"]
        parameters.load_mode = self.llama.LLAMA_LOAD_MODE_MMAP if options["use_mmap"] else 0
        parameters.use_extra_bufts = options["repack"]
        with _llama_cpp.listening() as said:
            model = self.llama.llama_model_load_from_file(os.fsencode(path), parameters)
        self._hear(said, ("model",))
        if not model:
            raise _error(f"{path.name}: {{}}", said.complaint or "llama.cpp cannot load it", ValueError)
        return model

    def _load_adapter(self, path: Path) -> Any:
        """The adapter, which goes with the model. Raises ValueError, in the library's words, where it does not fit."""
        with _llama_cpp.listening() as said:
            adapter = self.llama.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not adapter:
            raise _error("the adapter: {}", said.complaint or "llama.cpp cannot load it", ValueError)
        return adapter

    def _set_adapter(self) -> None:
        """Have the context run the adapter, at the scale that is written into it."""
        adapters = (self.llama.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        failed = self.llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))
        if failed:
            raise ValueError(f"llama.cpp does not run the adapter: it returned {failed}")

    def _hear(self, said: _llama_cpp.Said, replaced: Sequence[str]) -> None:
        """Take the sizes of buffers, and which tensors were packed anew, from what the library said."""
        for name in replaced:
            self.buffers[name] = {}
        for line in said.lines:
            for device, name, size in BUFFER.findall(line):
                held = self.buffers[NAMES[name]]
                held[device] = held.get(device, 0) + round(float(size) * 2**20)
            self.repacked.update(REPACKED.findall(line))

    @property
    def model(self) -> Any:
        """The library's pointer to the model."""
        return self._model

    @property
    def most(self) -> int:
        """How many sequences there can be at once: the library breaks off where a batch has no token for each."""
        return int(min(self.options["n_batch"], self.options["n_ubatch"], MAX_SEQUENCES))

    def meta(self, key: str) -> str | None:
        """A value of the file's metadata, as text."""
        ask = self.llama.llama_model_meta_val_str
        length = ask(self._model, key.encode(), ctypes.create_string_buffer(1), 1)
        if length < 0:
            return None
        room = ctypes.create_string_buffer(length + 1)
        ask(self._model, key.encode(), room, len(room))
        return room.value.decode("utf-8", "replace")

    @property
    def on_gpus(self) -> dict[str, int]:
        """Bytes of the buffers that lie outside of the machine's own memory, by the library's names of devices."""
        sizes = [each for held in self.buffers.values() for each in held.items() if not _is_host(each[0])]
        return {device: sum(size for other, size in sizes if other == device) for device, _ in sizes}

    def placement(self) -> dict[str, str]:
        """How much of the weights lies on each device, by the library's names of them."""
        return {device: f"{size / 2**20:.2f} MiB" for device, size in self.buffers["model"].items()}

    def shape(self, sequences: int, tokens: int, what: str) -> None:
        """Make room for so many sequences of so many tokens each, all of which are empty afterwards.

        Raises ValueError where the option n_ctx does not allow it, or the library refuses the options; MemoryError.
        """
        limit = self.options["n_ctx"]
        if limit is not None and tokens > limit:
            raise ValueError(f"{what} needs {tokens} tokens of context, and n_ctx is {limit}")
        if self._context is not None and sequences == self.sequences and tokens <= self.tokens:
            self.clear()
            return
        if sequences > self.most:
            raise ValueError(f"{what} needs {sequences} sequences at once, and n_batch and n_ubatch allow {self.most}")
        self._free_context()
        # As many as the library would round to, and complain about.
        tokens = -(-(limit or tokens) // PADDED) * PADDED
        parameters = self.llama.llama_context_default_params()
        options = self.options
        parameters.n_seq_max = sequences
        parameters.n_ctx = sequences * tokens
        parameters.n_batch = options["n_batch"]
        parameters.n_ubatch = min(options["n_ubatch"], options["n_batch"])
        parameters.n_outputs_max_per_seq = 0
        parameters.n_threads = parameters.n_threads_batch = options["n_threads"]
        parameters.type_k, parameters.type_v = (_type(options[name]) for name in ("type_k", "type_v"))
        flash = {None: -1, False: 0, True: 1}
        parameters.flash_attn_type = flash[options["flash_attn"]]
        parameters.no_perf = True
        with _llama_cpp.listening() as said:
            self._context = self.llama.llama_init_from_model(self._model, parameters)
        self._hear(said, ("kv", "compute"))
        if not self._context:
            self._context = None
            raise _error("llama.cpp makes no context: {}", said.complaint or "it says no reason", ValueError)
        if self._adapter is not None:
            self._set_adapter()
        self.sequences, self.tokens = sequences, tokens
        self._memory = self.llama.llama_get_memory(self._context)

    def clear(self) -> None:
        """Empty all sequences."""
        self.llama.llama_memory_clear(self._memory, False)

    def cut(self, sequence: int, length: int) -> None:
        """Shorten a sequence to its first so many tokens."""
        if not self.llama.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise RuntimeError("llama.cpp cannot take back tokens of this model's memory")

    def copy(self, source: int, target: int) -> None:
        """Make one sequence what another one is."""
        self.llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        self.llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def feed(self, rows: Sequence[Row]) -> Any:
        """Append tokens to sequences: the logits after those that ask for them, float32 of shape (asked, vocabulary).

        Each row is a sequence, its length so far, its new tokens, and whether the logits after all of them are asked
        for, or after the last only where that is None. What is returned holds until the next call. Raises MemoryError,
        and RuntimeError with the library's number of what went wrong.
        """
        parts, count = [], 0
        for sequence, at, new, asked in rows:
            given, done = np.asarray(new, np.int32), 0
            while done < len(given):
                if count == self._width:
                    parts.append(self._decode(count).copy())
                    count = 0
                size = min(len(given) - done, self._width - count)
                here = slice(count, count + size)
                self._tokens[here] = given[done : done + size]
                self._positions[here] = np.arange(at + done, at + done + size)
                self._numbers[here] = sequence
                self._asked[here] = bool(asked)
                done, count = done + size, count + size
            if asked is None:
                self._asked[count - 1] = 1
        last = self._decode(count)
        return np.concatenate([*parts, last]) if parts else last

    def _make_batch(self) -> None:
        """The library's record of a batch, on arrays that stay where they are."""
        self._width = min(self.options["n_batch"], MOST_TOKENS)
        self._tokens, self._positions, self._numbers = np.zeros((3, self._width), np.int32)
        self._asked, self._ones = np.zeros(self._width, np.int8), np.ones(self._width, np.int32)
        # Each token has a list of the sequences that it belongs to: one.
        self._lists = self._numbers.ctypes.data + 4 * np.arange(self._width, dtype=np.uint64)
        self._batch = self.llama.llama_batch()
        types = dict(self.llama.llama_batch._fields_)
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._ones),
            ("seq_id", self._lists),
            ("logits", self._asked),
        ):
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, types[name]))

    def _decode(self, count: int) -> Any:
        """Compute the first so many tokens of the batch, and give the logits that are asked for."""
        self._batch.n_tokens = count
        failed = self.llama.llama_decode(self._context, self._batch)
        if failed == -2:
            raise MemoryError("llama.cpp found too little memory for a batch")
        if failed:
            words = {1: "its context is full", -1: "it refuses the batch"}.get(failed, "it broke down")
            raise RuntimeError(f"llama_decode returned {failed}: {words}")
        outputs = int(self._asked[:count].sum())
        if not outputs:
            return np.empty((0, self.vocabulary), np.float32)
        return np.ctypeslib.as_array(self.llama.llama_get_logits(self._context), (outputs, self.vocabulary))

    def _free_context(self) -> None:
        if self._context is not None:
            self.llama.llama_free(self._context)
            self._context = None

    def close(self) -> None:
        """Give back all memory."""
        self._free_context()
        if self._model is not None:
            self.llama.llama_model_free(self._model)
            self._model = None


def _is_host(device: str) -> bool:
    return device.startswith("CPU") or device.endswith(("_Host", "Host"))


def _type(name: str) -> int:
    return int(getattr(_llama_cpp.library(), f"GGML_TYPE_{name.upper()}"))


def _error(form: str, said: str, otherwise: type[Exception]) -> Exception:
    """What a failure of the library is raised as."""
    return (MemoryError if any(words in said for words in NO_MEMORY) else otherwise)(form.format(said))
