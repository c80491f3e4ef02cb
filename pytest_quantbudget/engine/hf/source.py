"""What a checkpoint has of its own besides packed weights: where that is not the source model's, serving it differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import SAME_AS_SOURCE, Trust
from pytest_quantbudget.models import checkpoint, tensors

TOKENIZER, TEMPLATE, GENERATION, TENSORS = SAME_AS_SOURCE
PROBE = "Adam's 3 boats: 1,234 km/h, \u00e9t\u00e9 \u2014 \u65e5\u672c\u8a9e\n\n\tdef f(x): return x\n"
NOT_SAID = ("transformers_version", "_from_model_config")  # of a generation_config.json: who wrote it


def differences(source: Path, made: Path, asked: Sequence[str], trust: Trust) -> dict[str, str]:
    """What of the checkpoint `made` differs from its source model, in words, by the names of `SAME_AS_SOURCE`.

    Tensors are compared only where they are `asked` for. A checkpoint without a tokenizer, or without a generation
    config, has none that could differ. Raises OSError and ValueError for files that cannot be read.
    """
    found = dict(_of_tokenizer(source, made, trust))
    ours, theirs = (_generation(folder) for folder in (source, made))
    if ours and theirs and ours != theirs:
        found[GENERATION] = f"generation_config.json differs in {_keys(ours, theirs)}"
    if TENSORS in asked:
        found.update(_of_tensors(source, made, trust))
    return found


def _keys(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return tensors.few(names)


def _of_tokenizer(source: Path, made: Path, trust: Trust) -> Iterator[tuple[str, str]]:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((made / name).exists() for name in names):
        return
    from transformers import AutoTokenizer

    ours, theirs = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.remote_code) for folder in (source, made)
    )
    if ours.get_vocab() != theirs.get_vocab():
        yield TOKENIZER, f"its tokenizer has other tokens ({len(theirs):,}, and the source's has {len(ours):,})"
    elif ours.special_tokens_map != theirs.special_tokens_map:
        yield TOKENIZER, f"its special tokens differ: {_keys(ours.special_tokens_map, theirs.special_tokens_map)}"
    elif ours(PROBE)["input_ids"] != theirs(PROBE)["input_ids"]:
        yield TOKENIZER, "its tokenizer splits a text into other tokens"
    if ours.chat_template != theirs.chat_template:
        yield TEMPLATE, "its chat template differs"


def _generation(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.generation(folder).items() if key not in NOT_SAID}


def _of_tensors(source: Path, made: Path, trust: Trust) -> Iterator[tuple[str, str]]:
    """Tensors that both hold under one name: those that the method has left as they were."""
    import torch

    ours, theirs = _open(source, trust), _open(made, trust)
    other = []
    for name in sorted(ours.keys() & theirs.keys()):
        here, there = ours[name].get_tensor(name), theirs[name].get_tensor(name)
        # In the checkpoint's type, which may be the smaller one.
        kept = there.is_floating_point()  # and not packed under the same name
        if kept and (here.shape != there.shape or not torch.equal(here.to(there.dtype), there)):
            other.append(name)
    if other:
        yield TENSORS, f"{len(other):,} tensors that both hold differ ({tensors.few(other)})"


def _open(folder: Path, trust: Trust) -> dict[str, Any]:
    """Each tensor's name with the open file that holds it."""
    from safetensors import safe_open

    paths = [path for path in checkpoint.weight_files(folder, trust) if path.suffix == ".safetensors"]
    opened: list[Any] = [safe_open(path, framework="pt") for path in paths]
    return {name: file for file in opened for name in file.keys()}  # noqa: SIM118  # it is no mapping
