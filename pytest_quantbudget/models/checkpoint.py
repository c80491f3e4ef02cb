"""A model directory, looked at by hand before a library opens it: may it be loaded, is it whole, what is in it.

Everything here may be hostile. Each function raises ValueError, in one line for the user, where what it reads is not
what it has to be; nothing is imported from the directory, and of weights only the headers are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import files
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.quantization import strange

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = ".index.json"
MAX_JSON = 16_000_000  # bytes of a configuration, an index or the header of a safetensors file
MAX_DIMENSIONS = 64
WHOLE = {"I32": 32, "U8": 8}  # bits of what several small values are packed into
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check(folder: Path, trust: Trust, *, weights: bool = True) -> None:
    """Raise ValueError where a directory must not be loaded, or its weights are not whole.

    Without `weights` only its tokenizer is going to be used.
    """
    check_regular(folder)
    if (folder / ADAPTER_CONFIG).exists():
        # transformers would load the base model that it names, from wherever that is.
        why = "it is a method's `adapter`, and its base model the `model`"
        raise ValueError(f"{folder.name} holds an adapter ({ADAPTER_CONFIG}): {why}")
    for path in sorted(folder.glob("*config.json")):
        found = _object(path)
        if not trust.remote_code:
            refuse_code(_name(path), found)
    for path in weight_files(folder, trust) if weights else ():
        if path.suffix == ".safetensors":
            _header(path)


def check_regular(folder: Path) -> None:
    """Raise ValueError where a directory holds what is no file: reading it might never end."""
    for path in sorted(folder.iterdir()):
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{_name(path)} is neither a regular file nor a directory")


def config(folder: Path) -> dict[str, Any]:
    """The directory's `config.json`."""
    return _object(folder / "config.json")


def adapter_config(folder: Path) -> dict[str, Any]:
    """The `adapter_config.json` of the directory of an adapter."""
    return _object(folder / ADAPTER_CONFIG)


def generation(folder: Path) -> dict[str, Any]:
    """The directory's `generation_config.json`; empty where it has none."""
    path = folder / "generation_config.json"
    return _object(path) if path.exists() else {}


# Left by older tools (auto-gptq, autoawq) instead of an entry in config.json, which alone transformers reads.
OLD_FORMS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
OLD_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
# What those tools called the files of weights, by what they packed.
OLD_FILES = ("gptq_model-{bits}bit-{group_size}g", "awq_model_w{bits}_g{group_size}")
# ModelOpt's, which vLLM reads.
MODELOPT = "hf_quant_config.json"


def format_of(folder: Path) -> str | None:
    """`quant_method` of a quantized model; None for any other."""
    return packed_by({"quantization_config": quantization(folder)}, folder.name)


def quantization(folder: Path) -> dict[str, Any]:
    """What a quantized model says of how it is packed: the entry in `config.json`, else the file of an older tool.

    Empty for any other model. Older names stand under their newer ones. Raises ValueError where both are there and tell
    different things.
    """
    whole = config(folder)
    of_text = whole.get("text_config")
    told = whole.get("quantization_config") or (of_text.get("quantization_config") if isinstance(of_text, dict) else {})
    told = _renamed(told) if isinstance(told, dict) else told or {}
    packed_by({"quantization_config": told}, folder.name)
    for name, method in OLD_FORMS.items():
        if (folder / name).exists():
            old = _renamed(_object(folder / name))
            if not told:
                return {"quant_method": method, **old}
            for key in ("bits", "group_size", "desc_act"):
                if key in old and key in told and old[key] != told[key]:
                    why = f"config.json says {key} {told[key]!r:.40}, and {name} says {old[key]!r:.40}"
                    raise ValueError(f"{folder.name} contradicts itself: {why}")
    if not told and (folder / MODELOPT).exists():
        found = _object(folder / MODELOPT).get("quantization")
        return {**(found if isinstance(found, dict) else {}), "quant_method": "modelopt"}
    return dict(told)


def _renamed(told: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(name, name): value for name, value in told.items()}


def with_dtype(packed: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A `quantization_config` with the `dtype` of the model, in which some formats keep their scales."""
    return {"dtype": config.get("dtype", config.get("torch_dtype")), **packed}


def dtype(folder: Path) -> str | None:
    """The type of what is not quantized in a model, by its configuration; None where that does not say."""
    whole = config(folder)
    for found in (whole, whole.get("text_config")):
        told = isinstance(found, dict) and (found.get("dtype") or found.get("torch_dtype"))
        if isinstance(told, str):
            return told.removeprefix("torch.")
    return None


def is_old_form(folder: Path) -> bool:
    """Whether only the file of an older tool says how a model is packed."""
    return bool(quantization(folder)) and not config(folder).get("quantization_config")


def packed_by(config: Mapping[str, Any], name: str) -> str | None:
    """`quant_method` that the configuration of the model `name` tells, or None."""
    found = config.get("quantization_config") or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name}/config.json: quantization_config is not an object")
    if found.get("load_in_8bit") or found.get("load_in_4bit"):
        return "bitsandbytes"
    return str(found.get("quant_method", "an unknown method")) if found else None


def weight_files(folder: Path, trust: Trust) -> list[Path]:
    """The files that hold the weights, in the order in which transformers looks for them."""
    named = config(folder).get("transformers_weights")
    names = [SAFE, PICKLED] if trust.pickles else [SAFE]
    if named is not None:  # transformers takes this file instead, a pickle as well
        names = [str(named).removesuffix(INDEX)]
        _check_plain(folder / "config.json", names[0])
        if not names[0].endswith(".safetensors"):
            raise ValueError(f"{folder.name}/config.json: transformers_weights names no safetensors file")
    early = early_file(folder)
    for name in [*names, *([early] if early else [])]:
        single, index = folder / name, folder / (name if name.endswith(INDEX) else f"{name}{INDEX}")
        if not single.is_file() and not index.is_file():
            continue
        if early and name != early:
            why = "libraries differ in which of them they read: take one away"
            raise ValueError(f"{folder.name} holds weights in {name} and in {early}, and {why}")
        return _shards(index, Path(name.removesuffix(INDEX)).suffix) if index.is_file() else [single]
    for usual, endings in ((SAFE, ["safetensors"]), (PICKLED, ["bin", "pt"] * trust.pickles)):
        others = sorted(path.name for ending in endings for path in folder.glob(f"*.{ending}"))
        if others and quantization(folder).get("quant_method") in OLD_FORMS.values():
            raise ValueError(f"{folder.name} holds its weights in {others[0]}, where no library looks: name it {usual}")
    hint = "" if trust.pickles else "; only --quant-allow-pickle allows others, and loading those can run code"
    if any(folder.glob("*.gguf")):
        hint = "; a GGUF file is for `engine: llama.cpp`"
    raise ValueError(f"{folder.name} holds no {'weights' if trust.pickles else 'safetensors weights'}{hint}")


def early_file(folder: Path) -> str | None:
    """The file of weights, or of their index, under a name that auto-gptq or autoawq gave to those packed as these are.

    None where there is none, where it is today's name, and where the configuration names a file itself.
    """
    told = quantization(folder)
    if told.get("quant_method") not in OLD_FORMS.values() or config(folder).get("transformers_weights") is not None:
        return None
    known = {"bits": told.get("bits", 4), "group_size": told.get("group_size", -1)}
    bases = [name.format(**known) for name in OLD_FILES]
    if isinstance(told.get("model_file_base_name"), str):
        bases.insert(0, told["model_file_base_name"])
    for base in bases:
        _check_plain(folder / "quantize_config.json", base)
    names = [f"{base}.safetensors" for base in bases]
    every = [each for name in names if name != SAFE for each in (name, f"{name}{INDEX}")]
    return next((name for name in every if (folder / name).is_file()), None)


def _shards(index: Path, suffix: str) -> list[Path]:
    found = _object(index).get("weight_map")
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{_name(index)} has no weight_map from names to files")
    shards = []
    for name in sorted(set(names)):
        _check_plain(index, name)
        if not name.endswith(suffix):
            raise ValueError(f"{_name(index)} names {name!r:.100}, which is not a *{suffix} file")
        if not (index.parent / name).is_file():
            raise ValueError(f"{_name(index)} names {name!r:.100}, which is not there")
        shards.append(index.parent / name)
    return shards


def index(folder: Path) -> dict[str, Any]:
    """The index of a model's safetensors files, which need not be there. Raises ValueError where there is none."""
    return _object(folder / f"{SAFE}{INDEX}")


def parameters(folder: Path, trust: Trust = NO_TRUST) -> int:
    """Number of values in the safetensors files that hold the weights; 0 where they are pickled."""
    return sum(math.prod(shape) for _, shape in tensors(folder, trust).values())


def unpacked(folder: Path, bits: float, trust: Trust = NO_TRUST) -> float:
    """About how many values the files hold of which a quantized one takes so many bits; scales count too."""
    held = tensors(folder, trust).values()
    return sum(math.prod(shape) * (WHOLE.get(kind, bits) / bits if bits else 1) for kind, shape in held)


def tensors(folder: Path, trust: Trust = NO_TRUST) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in the safetensors files that hold the weights; none where they are pickled."""
    paths = [path for path in weight_files(folder, trust) if path.suffix == ".safetensors"]
    return {name: entry for path in paths for name, entry in _header(path).items()}


def header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor in one safetensors file, whose size has to be what its header says."""
    return _header(path)


def size(folder: Path, trust: Trust = NO_TRUST) -> int:
    """Bytes of the files that hold the weights."""
    return sum(path.stat().st_size for path in weight_files(folder, trust))


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of a safetensors file's tensors, from its header, whose offsets have to fit the file's size."""
    with files.opened(path) as file:
        held = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_JSON:
            raise ValueError(f"{_name(path)} is not a safetensors file: its header would take {length:,} bytes")
        if held < 8 + length:
            raise ValueError(f"{_name(path)} is truncated: it holds {held:,} bytes of at least {8 + length:,}")
        header = _parsed(path, file.read(length), "has no header of a safetensors file")
    found: dict[str, tuple[str, list[int]]] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, span = _tensor(entry)
        if shape is None:
            raise ValueError(f"{_name(path)}: its header is not valid for the tensor {name!r:.100}")
        found[name] = str(entry.get("dtype")), shape
        spans.append(span)
    end = max((span[1] for span in spans), default=0)
    if sum(span[1] - span[0] for span in spans) != end:
        raise ValueError(f"{_name(path)}: its tensors overlap or leave gaps")
    if held < 8 + length + end:
        raise ValueError(f"{_name(path)} is truncated: it holds {held:,} bytes of {8 + length + end:,}")
    if held > 8 + length + end:
        raise ValueError(f"{_name(path)} holds {held:,} bytes, and its header says {8 + length + end:,}")
    return found


def _tensor(entry: object) -> tuple[list[int] | None, list[int]]:
    """Shape and span of bytes of a header's entry; None for the shape of an impossible one."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any = fields.get("shape")
    span: Any = fields.get("data_offsets")
    if not _counts(shape) or not _counts(span) or len(span) != 2:
        return None, []
    # No type of a tensor packs more than eight values into a byte, and none takes a negative number of them.
    return (shape if math.prod(shape) <= 8 * (span[1] - span[0]) else None), span


def _counts(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMENSIONS
        and all(type(number) is int and 0 <= number < 2**63 for number in value)
    )


def refuse_code(name: str, found: dict[str, Any]) -> None:
    """Raise ValueError where a configuration names code: its own, another repository's, or an installed module's."""
    for key, value in _entries(found):
        what = (
            "code that comes with the model"
            if key == "auto_map" and value
            else "a kernel to be downloaded"
            if key in KERNELS and "/" in str(value)
            else "a module to be imported"
            if key == "tokenizer_class" and "." in str(value)
            else f"{strange(value)!r}, which a library would look up and call"
            if key == "quantization_config" and isinstance(value, dict) and strange(value) is not None
            else ""
        )
        if what:
            raise ValueError(f"{name} names {what} ({key}); only --quant-trust-remote-code lets it run")


def _entries(found: object) -> Iterator[tuple[str, Any]]:
    """All entries of nested objects."""
    stack = [found]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from node.items()
            stack += node.values()
        elif isinstance(node, list):
            stack += node


def _check_plain(source: Path, name: str) -> None:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{_name(source)} names {name!r:.100}, which is not a file of its own directory")


def _object(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path, files.read(path, MAX_JSON), "is not a JSON object")
    except OSError as error:
        raise ValueError(f"{_name(path)} cannot be read: {error.strerror or error}") from None
    except files.TooLarge as error:
        raise ValueError(f"{_name(path)} is {error}; at most {MAX_JSON:,} are read") from None


def _parsed(path: Path, data: bytes, complaint: str) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{_name(path)} {complaint}")
    return found


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
