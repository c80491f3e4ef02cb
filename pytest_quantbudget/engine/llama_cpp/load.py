"""Loading one subject into llama.cpp: the right file, checked before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import units
from pytest_quantbudget.core.engines import LLAMA_CPP, EngineFacts
from pytest_quantbudget.core.measurement import Device
from pytest_quantbudget.core.request import Subject, Trust
from pytest_quantbudget.engine.base import Description, Lacking
from pytest_quantbudget.engine.llama_cpp import file, receipt
from pytest_quantbudget.engine.llama_cpp.session import DEFAULT_CTX, Session
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.models import checkpoint, config, engines, hub, lora
from pytest_quantbudget.models.methods import _gguf_adapter, _gguf_tokenizer, _llama_cpp

# Of a ready file and its model. The tokenizer is compared whether a budget asks for it or not.
COMPARED = ("tokenizer", "chat_template")
BASE = "base"  # beside an adapter's file, a link to the directory of the model's own


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and its tokenizer."""

    session: Session
    tokenizer: Any
    description: Description


def load(
    subject: Subject, quantized: str | None, trust: Trust, pins: tuple[str, str | None] | None, gpus: Gpus
) -> Loaded:
    """Load a subject; `quantized` is the directory of its own GGUF file, where it has one.

    `pins` are the revisions of model and checkpoint, where they are known already. The time runs from a local file to a
    model with a context. Raises Lacking where the file does not fit into memory or the library has no GPU support that
    is asked for; ValueError where the file must not be loaded, is not whole, is another model, or has other types than
    the kind says.
    """
    from transformers import AutoConfig

    # Its weights are those of the file.
    own, revision = hub.fetched(subject.model, pins[0] if pins else subject.revision, trust, weights=False)
    made = Path(quantized) if quantized else None
    adapter = made / _gguf_adapter.FILE if made is not None and beside(subject) else None
    if adapter is not None:
        made = made / BASE if made is not None and subject.checkpoint is None else None
    paths = file.parts(made if made is not None else _checkpoint(subject, trust, pins))
    size = sum(path.stat().st_size for path in [*paths, *filter(None, [adapter])])
    options = filled(subject.engine_options)
    llama = _llama_cpp.library()
    offload = bool(llama.llama_supports_gpu_offload())
    if not offload or not options["n_gpu_layers"]:
        _check_room(size)
    tokenizer = _gguf_tokenizer.load(own, trust)
    shape = AutoConfig.from_pretrained(own, trust_remote_code=trust.remote_code)
    if subject.engine_options.get("n_gpu_layers", 0) > 0 and not offload:
        raise Lacking("n_gpu_layers is set, and this llama-cpp-python was built without support for GPUs")
    start = time.perf_counter()
    session = Session(paths[0], options, adapter)
    file.check_model(session, shape, paths[0], own.name)
    positions = config.positions(shape)
    session.shape(1, min(positions or DEFAULT_CTX, options["n_ctx"] or DEFAULT_CTX), "loading")
    seconds = time.perf_counter() - start
    tensors = receipt.read(paths)
    receipt.check(tensors, subject.kind, paths[0].name)
    added = receipt.read([adapter]) if adapter is not None else []
    odd = file.check_tokenizer(session, tokenizer, paths[0])
    template = file.other_template(session, tokenizer, paths[0]) if subject.checkpoint else ""
    if template and "chat_template" in subject.same_as_source:
        raise ValueError(template)
    changed = lora.find(subject, trust)
    other = lora.other_base(changed, subject.model) if changed is not None else ""
    description = Description(
        revision,
        device(session.on_gpus, gpus, options["n_threads"]),
        seconds,
        int(llama.llama_model_size(session.model)) + sum(tensor.values * tensor.bits // 8 for tensor in added),
        receipt.receipt([*tensors, *added], session.repacked),
        session.placement(),
        notes=tuple(filter(None, (odd, template, other))),
        positions=positions,
        end_tokens=tuple(_end_tokens(own, shape)),
        disk=size,
        untold={"energy": "energy is not read where llama.cpp runs a model"},
        packing=receipt.packing(tensors, subject.kind) if subject.checkpoint else None,
        facts=EngineFacts(
            LLAMA_CPP,
            f"{llama.__version__}",
            {name: sum(held.values()) for name, held in session.buffers.items() if held},
            session.tokens,
            details={
                "file": paths[0].name,
                "file_type": session.meta("general.file_type"),
                "options": {name: value for name, value in options.items() if value is not None},
                "system": llama.llama_print_system_info().decode("utf-8", "replace").strip(),
                "buffers": {name: dict(held) for name, held in session.buffers.items() if held},
            },
        ),
    )
    return Loaded(session, tokenizer, description)


def beside(subject: Subject) -> bool:
    """Whether the subject has an adapter that runs beside its weights."""
    return subject.adapter is not None and not subject.adapter.merge


def filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options, with defaults for those that are not given: as many threads as torch would take."""
    import torch

    fields = engines.spec(LLAMA_CPP).options or ()
    values = {**{field.name: field.default for field in fields}, **given}
    return {**values, "n_threads": values["n_threads"] or torch.get_num_threads()}


def _checkpoint(subject: Subject, trust: Trust, pins: tuple[str, str | None] | None) -> Path:
    """The ready file, or the directory that holds it."""
    other = [name for name in subject.same_as_source if name not in COMPARED]
    if other:
        raise ValueError(f"same_as_source: {', '.join(other)} of a GGUF file cannot be compared with the model's")
    if subject.checkpoint is None:
        raise ValueError(f"{subject.method} has neither a `checkpoint` nor a file of its own")
    return hub.fetch_gguf(subject.checkpoint, pins[1] if pins else None, subject.kind.partition("-")[2])


def _check_room(size: int) -> None:
    """Raise Lacking where this machine's memory does not hold the file; of layers on a GPU it need not."""
    from pytest_quantbudget.engine.hf import memory

    free = memory.free_ram()
    if free is not None and size > free:
        there, needed = units.sizes_apart(free, size)
        raise Lacking(f"too little free memory: the file takes {needed}, and {there} of this machine's memory is free")


def device(on_gpus: Mapping[str, int], gpus: Gpus, threads: int) -> Device:
    """Where a model runs that has buffers `on_gpus`, by the library's names of these."""
    import torch

    from pytest_quantbudget.engine.hf.load import describe

    if not on_gpus:
        return Device("cpu", None, None, None, None, threads)
    if torch.cuda.is_available():
        return describe("cuda:0")
    # The library was built for a GPU for which this torch was not.
    found = gpus.device(threads)
    return found if found.uuid else replace(found, name=next(iter(on_gpus)))


def _end_tokens(folder: Path, shape: Any) -> list[int]:
    """The tokens that end an answer: those of the generation config, else the configuration's own."""
    own = checkpoint.generation(folder).get("eos_token_id")
    found = own if own is not None else shape.get_text_config().eos_token_id
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
