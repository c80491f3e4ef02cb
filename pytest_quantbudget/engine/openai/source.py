"""What a server is to load that an engine starts itself.

A directory with weights, or, of dummy weights, one with a configuration alone.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import DUMMY, NO_TRUST, Subject, Trust
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.models import checkpoint, dummy, hub, lora, methods, quantization
from pytest_quantbudget.models.lora import Lora
from pytest_quantbudget.models.methods import ANY_FORMAT, Spec

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """The directory `folder`, and `own` of the budget's model, whose tokenizer is used; None with dummy weights.

    `weights` are the bytes of the weights as far as files or shapes tell, by `counted` in words. `disk` are those of
    the files. `made_with` and `notes` are as in `Description`. The `adapter` runs beside the weights. They are `ready`
    where they are a checkpoint of its own.
    """

    folder: Path
    own: Path | None
    revision: str
    weights: int | None = None
    counted: str = ""
    disk: int | None = None
    made_with: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    adapter: Lora | None = None
    ready: bool = False

    @property
    def packing(self) -> Packing | None:
        """What it says it is, where it is a ready checkpoint."""
        return quantization.read(self.packed, checkpoint.dtype(self.folder)) if self.ready else None

    @property
    def packed(self) -> dict[str, Any]:
        """Its `quantization_config`; empty where it has none."""
        return checkpoint.quantization(self.folder)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is one beside the weights."""
        return any((self.folder / name).exists() for name in TOKENIZERS)


def find(
    subject: Subject,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    merged: str | None = None,
) -> Source:
    """What a subject is loaded from, checked as for transformers. Raises ValueError where it must not be loaded.

    `merged` is the directory of the model with its adapter merged into it, where it has one of these.
    """
    found = lora.find(subject, trust)
    source = _find(subject, trust, pins, merged)
    if found is None:
        return source
    other = lora.other_base(found, subject.model)
    notes = (*source.notes, other) if other else source.notes
    if subject.adapter is None or subject.adapter.merge:
        return replace(source, notes=notes)
    return replace(
        source,
        notes=notes,
        adapter=found,
        weights=None if source.weights is None else source.weights + found.size,
        counted=f"{source.counted} and of the adapter's",
        disk=None if source.disk is None else source.disk + found.size,
    )


def _find(subject: Subject, trust: Trust, pins: tuple[str, str | None] | None, merged: str | None) -> Source:
    spec = methods.spec(subject.kind)
    if subject.load_format == DUMMY:
        return _dummy(subject, spec, trust)
    own, revision = hub.fetched(subject.model, pins[0] if pins else subject.revision, trust)
    folder, ready = Path(merged) if merged else own, subject.checkpoint is not None
    if subject.checkpoint is not None:
        folder, _ = hub.fetched(subject.checkpoint, pins[1] if pins else None, trust)
    if spec.checkpoint_format == ANY_FORMAT:
        checkpoint.check(folder, trust)
    else:
        loading.check_format(spec, folder, ready=ready, trust=trust)
    disk = checkpoint.size(folder, trust)
    weights, counted = disk, "the checkpoint's files"
    if not ready:
        count = checkpoint.parameters(folder, trust)
        weights, counted = int(count * spec.bits / 8), f"the files' {count:,} values in {spec.name}"
    notes = loading.compared(own, folder, subject, trust) if ready else ()
    made_with = loading.made_as(spec, folder, subject.options) if ready else None
    return Source(folder, own, revision, weights, counted, disk, made_with, notes, ready=ready)


def check_adapters(modules: Any, trust: Trust = NO_TRUST) -> None:
    """Raise ValueError where LoRA adapters (`lora_modules`) are no directories of safetensors on this machine."""
    for each in modules if isinstance(modules, list) else [modules] if modules is not None else []:
        path = each.get("path") if isinstance(each, dict) else str(each).partition("=")[2] or None
        if not isinstance(path, str) or not Path(path).is_dir():
            raise ValueError(f"lora_modules: {each} names no directory on this machine as its `path`")
        if not trust.pickles and not (Path(path) / "adapter_model.safetensors").is_file():
            raise ValueError(f"lora_modules: {path} has no adapter_model.safetensors")


def _dummy(subject: Subject, spec: Spec, trust: Trust) -> Source:
    found = dummy.find(subject, spec.packed and spec.packed(spec.filled(subject.options)), trust)
    # Removed with the temporary files of the measuring process.
    folder = Path(tempfile.mkdtemp(prefix="dummy-"))
    (folder / "config.json").write_text(json.dumps(found.config), encoding="utf-8")
    notes = (found.note,) if found.note else ()
    if found.format is not None:
        return Source(folder, None, found.revision, notes=notes)
    weights = int(found.parameters * spec.bits / 8)
    return Source(folder, None, found.revision, weights, f"the model's values in {spec.name}", notes=notes)


class Ids:
    """In place of a tokenizer where there is none: the model's vocabulary as ids alone."""

    all_special_ids = ()
    eos_token_id = None

    def __init__(self, folder: Path) -> None:
        config = checkpoint.config(folder)
        self.size = int(config.get("vocab_size") or config["text_config"]["vocab_size"])

    def __len__(self) -> int:
        """How many ids there are."""
        return self.size

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Some ids, whatever the text."""
        return {"input_ids": list(range(min(self.size, 8)))}
