"""Loading one subject in this process: the right weights, checked before and after."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import units
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.layers import Receipt
from pytest_quantbudget.core.measurement import Device
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import DUMMY, LOAD, NO_TRUST, Subject, Trust
from pytest_quantbudget.engine.base import Description, Lacking
from pytest_quantbudget.engine.hf import formats
from pytest_quantbudget.engine.machine.gpus import Gpus, Sampler
from pytest_quantbudget.engine.machine.memory_phases import MemoryByPhase
from pytest_quantbudget.models import auto, checkpoint, dummy, engines, hub, lora, methods, quantization, tensors
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.estimate.formats import WIDTHS
from pytest_quantbudget.models.lora import Lora
from pytest_quantbudget.models.methods import Prepared, Spec


@dataclass(frozen=True)
class Loaded:
    """A model on its device, and its tokenizer, None with dummy weights."""

    model: Any
    tokenizer: Any
    description: Description


def load(
    subject: Subject,
    quantized: str | None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    gpus: Gpus | None = None,
    prepared: Prepared | None = None,
) -> Loaded:
    """Load a subject; `quantized` is the directory of its own quantization, where it has one.

    `pins` are the revisions of model and checkpoint, where they are known already; `gpus` are asked for the memory
    in use meanwhile. Kernels are chosen and compiled first, unless they were `prepared`.

    The time runs from local files to a model ready on its device; downloads, imports and kernels come before it. Dummy
    weights come from no file: they are drawn within that time. Raises Lacking where the weights do not fit, ValueError
    where a directory must not be loaded, is not whole or is of another format, or nothing ended up quantized, and
    whatever the libraries raise.
    """
    gpus = gpus or Gpus({})
    with Sampler(gpus.cards) as sampler:
        loaded = _load(subject, quantized, trust, pins, prepared)
        phases = MemoryByPhase(gpus, on_gpu=loaded.description.device.name != "cpu")
        phases.note(LOAD, sampler)
    memory = next(iter(phases.phases()), None)
    return replace(loaded, description=replace(loaded.description, load_memory=memory))


@dataclass(frozen=True)
class Found:
    """What is to be loaded: `source`, with `options`, on `device`. `own` is the directory of the subject's own model.

    `made_with` and `packing` are as in `Description`; `packed` is the checkpoint's `quantization_config`. The `adapter`
    may have been merged into the source already.
    """

    spec: Spec
    device: str
    own: Path | None
    source: Path | Dummy
    revision: str
    options: dict[str, Any]
    made_with: dict[str, Any] | None
    packed: dict[str, Any]
    packing: Packing | None
    adapter: Lora | None = None


def find(subject: Subject, quantized: str | None, trust: Trust, pins: tuple[str, str | None] | None) -> Found:
    """What is to be loaded, checked before that; arguments and errors as those of `load`.

    Raises Lacking too where this device cannot run it.
    """
    import torch

    spec = methods.spec(subject.kind)
    spread = subject.gpus > 1 and torch.cuda.device_count() > 1
    device = methods.BALANCED if spread else "cuda:0" if torch.cuda.is_available() else "cpu"
    source: Path | Dummy
    found = lora.find(subject, trust)
    if subject.load_format == DUMMY:
        own, source = None, dummy.find(subject, spec.packed and spec.packed(spec.filled(subject.options)), trust)
        revision, ready = source.revision, source.ready
    else:
        own, revision = hub.fetched(subject.model, pins[0] if pins else subject.revision, trust)
        source = Path(quantized) if quantized else own
        if subject.checkpoint is not None:
            source, _ = hub.fetched(subject.checkpoint, pins[1] if pins else None, trust)
        ready = subject.checkpoint is not None or (quantized is not None and spec.quantize is not None)
    if spec.resolve is None:
        check_format(spec, source, ready=ready, trust=trust)
    elif isinstance(source, Path):
        checkpoint.check(source, trust)
    packed = formats.packed(source)
    dtype = checkpoint.dtype(source) if isinstance(source, Path) else None
    packing = None if subject.checkpoint is None else quantization.read(packed, dtype)
    if spec.resolve is not None:
        spec = spec.resolve(packed, dtype)
        formats.check_known(packed, source.name)
    settle(spec)
    made_with = None if subject.checkpoint is None else made_as(spec, source, subject.options)
    known = {name: value for name, value in (made_with or {}).items() if name in spec.filled({})}
    options = {**spec.filled(subject.options), **known}
    lacks = spec.lacking(options, device) if spec.lacking else formats.lacking(packed, device)
    if lacks:
        raise Lacking(lacks)
    return Found(spec, device, own, source, revision, options, made_with, packed, packing, found)


def prepare(found: Found, trust: Trust) -> Prepared:
    """Choose and compile the kernels of what is to be loaded, where its method has any to compile."""
    spec = found.spec
    return spec.prepare(found.source, found.options, found.device, trust) if spec.prepare else Prepared()


def _load(
    subject: Subject,
    quantized: str | None,
    trust: Trust,
    pins: tuple[str, str | None] | None,
    prepared: Prepared | None,
) -> Loaded:
    import torch

    from pytest_quantbudget.engine.hf import generation, layers, memory, parts, placement, speed

    found = find(subject, quantized, trust, pins)
    spec, own, source, device = found.spec, found.own, found.source, found.device
    notes = compared(own, source, subject, trust) if subject.checkpoint is not None else ()
    notes = (source.note,) if isinstance(source, Dummy) and source.note else notes
    check_room(spec, source, device, trust)
    expected = _import_ahead(spec, source, trust, adapter=found.adapter is not None)
    prepared = prepared or prepare(found, trust)
    start = time.perf_counter()
    model = spec.load(source, {**found.options, **prepared.options}, device, trust)
    if found.adapter is not None:
        model, odd = _with_adapter(model, found.adapter, subject)
        notes = (*notes, *odd)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    model.eval()
    receipt = layers.receipt(model)
    held = formats.Held() if spec.bits else formats.held(found.packed, found.packing, receipt, expected)
    if 0 < spec.bits < 16 and not receipt.quantized:
        raise ValueError(f"{spec.name} left every layer unquantized: the loaded model has {receipt.linear}")
    if 0 < spec.bits < 16 and receipt.main_bits != spec.bits:
        raise ValueError(f"{spec.name} has {spec.bits:g} bits, and most of what was loaded has {receipt.main_bits}")
    experts = receipt.unpacked_experts if spec.bits < 16 and not held.decompressed else ""
    told = (experts, parts.in_words(parts.besides_text(model)))
    notes = (*notes, *prepared.notes, *held.notes, *filter(None, told))
    weights = memory.weight_bytes(model)
    # Of one that is merged into a ready checkpoint, its file is still needed.
    extra = found.adapter.size if found.adapter is not None and not engines.merged_first(subject) else 0
    outside = placement.outside(model) if device != "cpu" else {}
    description = Description(
        found.revision,
        describe(device),
        seconds,
        None if held.untold else weights,
        Receipt(()) if held.untold else receipt,
        placement.of(model),
        placement.in_words(outside),
        notes,
        positions=speed.positions(model),
        end_tokens=tuple(generation.end_tokens(model)),
        made_with=found.made_with,
        unread=getattr(model, tensors.UNREAD, ()),
        disk=checkpoint.size(source, trust) + extra if isinstance(source, Path) else None,
        untold=dict.fromkeys(("weights", "layers"), held.untold) if held.untold else {},
        packing=found.packing,
        decompressed=held.decompressed,
    )
    return Loaded(model, tokenizer(own, trust), description)


def _with_adapter(model: Any, adapter: Lora, subject: Subject) -> tuple[Any, tuple[str, ...]]:
    """The model with its adapter, and what is odd about that, in words."""
    from pytest_quantbudget.engine.hf import adapter as putting

    odd = lora.other_base(adapter, subject.model)
    notes = (odd,) if odd else ()
    if subject.adapter is None or engines.merged_first(subject):
        return model, notes
    if not subject.adapter.merge:
        return putting.beside(model, adapter), notes
    if subject.load_format == DUMMY:
        return model, (
            *notes,
            "dummy weights are as large with an adapter merged into them as without: it was left out",
        )
    return putting.merged_into(model, adapter), notes


def tokenizer(folder: Path | None, trust: Trust) -> Any:
    """The tokenizer of a model's directory; None for none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.remote_code) if folder else None


def settle(spec: Spec) -> None:
    """Set the environment that the method's libraries need before their import."""
    for name, value in spec.environ.items():
        os.environ.setdefault(name, value)


def _import_ahead(spec: Spec, source: Path | Dummy, trust: Trust, *, adapter: bool) -> int | None:
    """Import the method's libraries and the model's code before the clock starts: a first import is not load time.

    Returns the number of the unquantized model's values, as far as it is known.

    Raises ValueError where the files of unquantized weights do not hold the model's tensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    for package in spec.packages:
        importlib.import_module(package)
    if adapter:
        from pytest_quantbudget.engine.hf.adapter import import_ahead

        import_ahead()
    if isinstance(source, Dummy):
        return None  # its parameters have been counted, which imports the model's code
    skeleton = auto.skeleton(source, trust)
    if not checkpoint.quantization(source) and not get_model_conversion_mapping(skeleton, add_legacy=False):
        tensors.check_headers(source, skeleton, trust)
    return int(sum(parameter.numel() for parameter in skeleton.parameters()))


def check_format(spec: Spec, source: Path | Dummy, *, ready: bool, trust: Trust = NO_TRUST) -> None:
    """Raise ValueError where a directory must not be loaded or is not whole.

    Also where a checkpoint is not of the method's format, or `model` itself is quantized already.
    """
    if isinstance(source, Dummy):
        found = source.format
    else:
        checkpoint.check(source, trust)
        found = checkpoint.format_of(source)
    wanted = spec.checkpoint_format if ready else None
    if found != wanted:
        if not ready:
            raise ValueError(
                f"the model in {source.name} is already quantized ({found}); {spec.name} needs unquantized weights"
            )
        now = f"is quantized with {found}" if found else "is not quantized"
        raise ValueError(f"the checkpoint in {source.name} {now}; {spec.name} needs a {wanted} checkpoint")


def compared(own: Path | None, source: Path | Dummy, subject: Subject, trust: Trust) -> tuple[str, ...]:
    """How a ready checkpoint differs from its source model, in words.

    Raises ValueError where the budget asks for that to be the same.
    """
    if own is None or isinstance(source, Dummy):
        return ()
    from pytest_quantbudget.engine.hf.source import differences

    found = differences(own, source, subject.same_as_source, trust)
    wrong = [words for name, words in found.items() if name in subject.same_as_source]
    if wrong:
        raise ValueError(f"the checkpoint in {source.name} is not as `same_as_source` asks: {'; '.join(wrong)}")
    return tuple(f"the checkpoint in {source.name} is not like its source: {words}" for words in found.values())


def made_as(spec: Spec, source: Path | Dummy, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a ready checkpoint says of how it was made, by the names of options.

    Raises ValueError where it is of another method, or was made with other options than those that the budget names.
    """
    config = checkpoint.config(source) if isinstance(source, Path) else source.config
    packed = formats.packed(source)
    if spec.told is None or not packed:  # dummy weights of a checkpoint whose configuration is not here
        return {}
    told = dict(spec.told(checkpoint.with_dtype(packed, config)))
    method = told.pop("method")
    if method != spec.name:
        raise ValueError(f"the checkpoint in {source.name} is {method}, and {spec.name} is asked for")
    for name, value in options.items():
        if name in told and told[name] != value:
            raise ValueError(f"the checkpoint in {source.name} has {name} {told[name]}, and the options say {value}")
    return told


def check_room(spec: Spec, source: Path | Dummy, device: str, trust: Trust = NO_TRUST) -> None:
    """Raise Lacking where not even the weights fit: a model that swaps or is killed gives no figures."""
    import torch

    from pytest_quantbudget.engine.hf import memory

    if isinstance(source, Dummy):
        need = source.parameters * spec.bits / 8
    elif packed := checkpoint.quantization(source):
        need = float(checkpoint.size(source, trust))
        done = quantization.run(packed, TRANSFORMERS)
        if done is not None and done.how == quantization.DECOMPRESSED:
            values = checkpoint.unpacked(source, quantization.read(packed).bits, trust)
            need = values * WIDTHS.get(checkpoint.dtype(source) or "", 2)
    else:
        need = checkpoint.parameters(source, trust) * spec.bits / 8
    gpus = range(torch.cuda.device_count() if device == methods.BALANCED else 1)
    free = memory.free_ram() if device == "cpu" else sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    if free is not None and need > free:
        where = "this machine's memory" if device == "cpu" else torch.cuda.get_device_name(0)
        there, needed = units.sizes_apart(free, need)
        raise Lacking(
            f"too little free memory: the weights take {needed} in {spec.name}, and {there} of {where} is free"
        )


def describe(device: str) -> Device:
    """The device for the record."""
    import torch

    threads = torch.get_num_threads()
    if device == "cpu":
        return Device("cpu", None, None, None, None, threads)
    found = torch.cuda.get_device_properties(0)
    uuid = f"GPU-{found.uuid}" if hasattr(found, "uuid") else None
    return Device(found.name, uuid, found.total_memory, f"{found.major}.{found.minor}", torch.version.cuda, threads)
