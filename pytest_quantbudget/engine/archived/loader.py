"""Loads a checkpoint by the own loader of auto-gptq or autoawq, and tells what was loaded.

It is imported by the script beside it, in an environment that has the library, and nothing of this project: Python 3.8
or later, of whatever torch and transformers the library runs with.
"""

from __future__ import annotations

import collections
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The module of each, and the class that loads.
LIBRARIES = {"auto-gptq": ("auto_gptq", "AutoGPTQForCausalLM"), "autoawq": ("awq", "AutoAWQForCausalLM")}
# Entries of a packed layer, by the names of both.
BITS, INPUTS, OUTPUTS = ("bits", "w_bit"), ("infeatures", "in_features"), ("outfeatures", "out_features")
DTYPE = "torch_dtype"
TRIED = 8  # random tokens whose logits are looked at


class Refused(Exception):
    """Why a model is not served. `kind` is `missing` (a `module`), `lacking` (of the machine), `logits` or `value`."""

    def __init__(self, kind: str, words: str, module: str = "") -> None:
        super().__init__(words)
        self.kind, self.module = kind, module


def load(library: str, folder: Path, options: dict[str, Any], device: str, *, trust: bool, pickles: bool) -> Any:
    """The model in a directory as the library itself loads it, ready to be asked. Raises Refused.

    `device` is one of torch's, or `balanced` for all. With `trust` the model's code runs. With `pickles` other files
    are read where there are no safetensors.
    """
    name, cls = LIBRARIES[library]
    try:
        loader = getattr(importlib.import_module(name), cls).from_quantized
    except ModuleNotFoundError as error:
        missing = error.name or name
        # A part of a library that is there is of another release than the one that is needed.
        kind = "value" if "." in missing else "missing"
        raise Refused(kind, f"{named(library)} cannot be imported: {error}", missing) from error
    except (ImportError, AttributeError) as error:
        raise Refused("value", f"{named(library)} cannot be imported: {error}") from error
    check_options(library, loader, options)
    settings: dict[str, Any] = {**options, "trust_remote_code": trust}
    if DTYPE in settings:
        settings[DTYPE] = getattr(importlib.import_module("torch"), settings[DTYPE])
    safe = not pickles or any(folder.glob("*.safetensors"))
    settings["use_safetensors" if library == "auto-gptq" else "safetensors"] = safe
    settings["device_map"] = device if device == "balanced" else {"": device}
    try:
        model = loader(str(folder), **settings).model.eval()
    except ImportError as error:
        # autoawq on a CPU wants a library from which it takes its kernels.
        raise Refused("lacking", f"{named(library)} does not load it here: {error}") from error
    check_rotary(folder, model)
    check_logits(library, model)
    return model


def check_options(library: str, loader: Any, options: dict[str, Any]) -> None:
    """Raise Refused for options that this release's loader does not have: it would take them for something else."""
    known = inspect.signature(loader).parameters
    for name in options:
        if name not in known and name != DTYPE:
            raise Refused("value", f"the loader of {named(library)} has no option {name}")


def version(library: str) -> str:
    """The release of an installed distribution; nothing where that is not told."""
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def named(library: str) -> str:
    """A library with its release."""
    return f"{library} {version(library)}".strip()


def check_rotary(folder: Path, model: Any) -> None:
    """Raise Refused where rotary embeddings are other ones than the configuration says.

    transformers 5 writes them as `rope_parameters`. Older releases do not look there, and take a base of 10,000.
    """
    told = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("rope_parameters")
    has = getattr(model.config, "rope_theta", None)
    # Releases that read them there have it nowhere else.
    if not isinstance(told, dict) or has is None:
        return
    where = "config.json has {} in rope_parameters, where the transformers of this environment does not look"
    wanted, kind = told.get("rope_theta"), told.get("rope_type", "default")
    if wanted is not None and float(wanted) != float(has):
        said = where.format(f"rope_theta {wanted:g}")
        raise Refused("value", f'{said}: it takes {has:g}; add "rope_theta": {wanted:g} to config.json')
    if kind != "default" and not getattr(model.config, "rope_scaling", None):
        raise Refused("value", f"{where.format(f'rope_type {kind}')}; add it to config.json as rope_scaling")


def check_logits(library: str, model: Any) -> None:
    """Raise Refused where logits are no numbers, or all alike: so auto-gptq loads tied output layers, with no error."""
    import torch

    ids = torch.randint(0, model.config.vocab_size, (1, TRIED), generator=torch.Generator().manual_seed(0))
    forget(model)
    with torch.inference_mode():
        logits = model(input_ids=ids.to(place(model)), use_cache=False).logits
    bad, what = int((~torch.isfinite(logits)).sum()), ""
    if bad:
        what = f"{bad:,} of {logits.numel():,} logits are NaN or infinite on {TRIED} random tokens"
    elif bool((logits == logits.flatten()[0]).all()):
        what = f"all {logits.numel():,} logits are {float(logits.flatten()[0]):g}: the weights do nothing"
    if what:
        tied = getattr(model.config, "tie_word_embeddings", False)
        why = f"; the output layer is tied to the embeddings, and {library} needs one of its own in the files"
        raise Refused("logits", what + why * bool(tied))


def forget(model: Any) -> None:
    """Begin a sequence: fused layers of autoawq keep the last one, and take a prompt one token longer to go on with."""
    for module in model.modules():
        for name in ("start_pos", "last_forward_num_tokens"):
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, 0)


def place(model: Any) -> Any:
    """The device that token ids go to."""
    return model.get_input_embeddings().weight.device


# What was loaded


def facts(library: str, model: Any) -> dict[str, Any]:
    """The size of its weights in bytes, and what runs it."""
    import platform

    import torch

    told: dict[str, Any] = {
        "size": size(model),
        "library": named(library),
        "python": platform.python_version(),
        "class": type(model).__name__,
        "dtype": str(next(iter(model.parameters())).dtype),
        "device": str(place(model)),
    }
    for name in ("transformers", "accelerate"):
        told[name] = version(name)
    return {**told, "torch": torch.__version__}


def size(model: Any) -> int:
    """Bytes of all parameters and buffers; what several share counts once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def layers(model: Any) -> list[dict[str, Any]]:
    """Layers by kind, class and bits, with the values of the unquantized model that they hold."""
    head, seen = model.get_output_embeddings(), set()
    found: dict[tuple[Any, ...], list[int]] = collections.defaultdict(lambda: [0, 0])
    for module in model.modules():
        cls, main = type(module), "lm_head" if module is head else kind_of(module)
        for at, (bits, values, tensor) in enumerate(held(module)):
            counts = found["other" if at else main, cls.__name__, cls.__module__, bits]
            counts[0] += 1
            counts[1] += 0 if (tensor.device, tensor.data_ptr()) in seen else values
            seen.add((tensor.device, tensor.data_ptr()))
    names = ("kind", "name", "module", "bits", "count", "parameters")
    return [dict(zip(names, (*group, *counts))) for group, counts in found.items()]


def kind_of(module: Any) -> str:
    """What a layer is."""
    import torch

    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if isinstance(module, torch.nn.Linear) or hasattr(module, "qweight"):
        return "linear"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


def held(module: Any) -> Iterator[tuple[int, int, Any]]:
    """What a module holds itself, its weight first: bits of a value, values of the unquantized model, the tensor."""
    packed = getattr(module, "qweight", None)
    if packed is not None:
        bits, inputs, outputs = (number(module, names) for names in (BITS, INPUTS, OUTPUTS))
        yield bits, inputs * outputs, packed
        # auto-gptq gives each layer one: zeros, where the model has none.
        if module.bias is not None and bool(module.bias.any()):
            yield 8 * module.bias.element_size(), module.bias.numel(), module.bias
        return
    own = dict(module.named_parameters(recurse=False))
    for name in sorted(own, key=lambda name: name != "weight"):
        yield 8 * own[name].element_size(), own[name].numel(), own[name]


def number(module: Any, names: tuple[str, ...]) -> int:
    """A packed layer's entry."""
    return int(next(getattr(module, name) for name in names if hasattr(module, name)))


def memory(*, anew: bool = False) -> dict[str, int | None]:
    """What torch's allocator gave out and held at most of all GPUs together, in bytes; `anew` begins to count."""
    import torch

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    if anew:
        for card in cards:
            torch.cuda.reset_peak_memory_stats(card)
    allocated = sum(torch.cuda.max_memory_allocated(card) for card in cards)
    return {"allocated": allocated or None, "reserved": sum(map(torch.cuda.max_memory_reserved, cards)) or None}
