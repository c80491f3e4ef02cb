"""Copies of the built-in model, broken in their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def copy(folder: Path) -> None:
    """A whole copy."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(BUILTIN_DIR / name, folder)


def configure(folder: Path, name: str = "config.json", **entries: object) -> None:
    """Set entries of a JSON file; None takes one out."""
    content = {**json.loads((folder / name).read_text()), **entries}
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def cut(folder: Path) -> None:
    """Weights as a download leaves them that was broken off."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500_000])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def nan(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))


def silent(folder: Path) -> None:
    """Every first token is one that ends an answer."""
    configure(folder, "generation_config.json", eos_token_id=list(range(640)))
    configure(folder, eos_token_id=list(range(640)))


def other_shape(folder: Path) -> None:
    configure(folder, intermediate_size=512)


def claims_gptq(folder: Path) -> None:
    configure(folder, quantization_config=GPTQ)


def claims_nf4(folder: Path) -> None:
    """A quantization config beside weights that are not quantized."""
    configure(folder, quantization_config=NF4)


def no_pad(folder: Path) -> None:
    configure(folder, "tokenizer_config.json", pad_token=None)
    configure(folder, "generation_config.json", pad_token_id=None)
    configure(folder, pad_token_id=None)


def no_pad_no_end(folder: Path) -> None:
    no_pad(folder)
    configure(folder, "tokenizer_config.json", eos_token=None)


def with_vocabulary(folder: Path, size: int) -> None:
    """Weights with a large table of embeddings, which take no room on the disk: a file with a hole."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = "model.embed_tokens.weight"
    end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
    start, stop = header[name]["data_offsets"]
    others = {key: entry for key, entry in header.items() if key not in ("__metadata__", name)}
    table = 2 * size * header[name]["shape"][1]
    moved = {
        key: {**entry, "data_offsets": [at - (stop - start) * (at > start) for at in entry["data_offsets"]]}
        for key, entry in others.items()
    }
    rest = end - (stop - start)
    moved[name] = {**header[name], "shape": [size, 128], "data_offsets": [rest, rest + table]}
    head = json.dumps({"__metadata__": {"format": "pt"}, **moved}).encode()
    body = data[8 + length :]
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head + body[:start] + body[stop:])
        file.truncate(8 + len(head) + rest + table)
    configure(folder, vocab_size=size)


def large(folder: Path) -> None:
    with_vocabulary(folder, 400_000)
