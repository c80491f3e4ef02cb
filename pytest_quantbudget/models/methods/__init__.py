"""The kinds of methods: a lazy mapping from name to the file that says everything about it.

Reading a spec imports no heavy library. A new method is one file and one line of the mapping.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quantbudget.core import entry_points, versions
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust
from pytest_quantbudget.models import auto, checkpoint, config, quantization, tensors
from pytest_quantbudget.models.estimate.formats import Format
from pytest_quantbudget.models.methods import _gguf_types

if TYPE_CHECKING:
    from torch import nn

    from pytest_quantbudget.models.dummy import Dummy

MODULES: Mapping[str, str] = {
    "fp32": "dense",
    "bf16": "dense",
    "fp16": "dense",
    "int8": "bitsandbytes",
    "nf4": "bitsandbytes",
    "gptq-int4": "gptq",
    "awq-int4": "awq",
    "auto-gptq": "auto_gptq",
    "autoawq": "autoawq",
    "torchao-int8": "torchao",
    "torchao-int4": "torchao",
    "torchao-intx": "torchao",
    "torchao-fp8": "torchao",
    "checkpoint": "ready",
    "served": "served",
    **dict.fromkeys(_gguf_types.KINDS, "gguf"),
}

BALANCED = "balanced"
ANY_FORMAT = "any"
BASE_PACKAGES = ("torch", "transformers", "accelerate")
PEFT = "peft"
# The project's extras that bring packages which belong to no method.
EXTRAS = {**dict.fromkeys(BASE_PACKAGES, "models"), "datasets": "hub", "lm_eval": "harness", PEFT: "peft"}


class Load(Protocol):
    """Loads a model."""

    def __call__(
        self, source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST
    ) -> nn.Module:
        """The model in the directory `source`, or with dummy weights, ready on `device`."""
        ...


class Quantize(Protocol):
    """Quantizes a model."""

    def __call__(
        self, source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust = NO_TRUST
    ) -> None:
        """Write a quantized checkpoint of the model in `source`, made on `texts`, into the directory `target`."""
        ...


@dataclass(frozen=True)
class Prepared:
    """What was settled before a model is loaded: `options` that replace given ones, and `notes` for the report."""

    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Prepare(Protocol):
    """Gets ready what loading needs and is no part of it."""

    def __call__(
        self, source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST
    ) -> Prepared:
        """Choose and compile the kernels for the checkpoint `source` on `device`; what was compiled is found again."""
        ...


def _not_run_by_transformers(
    source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST
) -> nn.Module:
    raise NotImplementedError("a budget with such a method is refused when it is read")


@dataclass(frozen=True)
class Spec:
    """What is known of a method before anything is loaded; the method's own file says it all.

    `engines` run it. `load` loads it for the engine `transformers`. `bits` are those of a quantized value, 0 where only
    a checkpoint tells. `packages` are the ones that the method imports beyond the base ones: they must be installed,
    and their versions stand in the report and in the keys of stored figures; `extra` is the project's extra that brings
    them. `ahead` are modules that the packages import for seconds and that a fork server may import once for all
    processes of a run on a CPU: they start no threads. `storage` gives the format that follows from options, and the
    estimate from that; without it there is no estimate. `environ` is set, where unset, before the packages are
    imported. `checkpoint_format` is the `quant_method` of the checkpoints that the method loads, or ANY_FORMAT where it
    is whatever its checkpoint says. Methods that make a checkpoint of the model have a `quantize`, which is given texts
    where it is `calibrated`; those of transformers have `packed` too: the `quantization_config` that their checkpoints
    have with options. `told` reads a checkpoint's `quantization_config`: the `method` that it is, and values by the
    names of options. Methods whose kernels are compiled just in time have a `prepare`, which is called before the model
    is loaded. `inference` names the options that only say how the quantized model runs. `lacking` says why a device
    cannot run the method with such options, where it has to be asked. `adapters` are the engines that run a LoRA
    adapter beside its weights, and with `merges` PEFT merges one into a ready checkpoint of its format. A kind that is
    whatever its checkpoint says has a `resolve`: what loads one, by its `quantization_config` and the type of what is
    not quantized. On one that `trains`, adapters can be trained: it is quantized, and passes gradients on.
    """

    name: str
    summary: str
    load: Load = _not_run_by_transformers
    bits: float = 0
    engines: Sequence[str] = (TRANSFORMERS,)
    options: Sequence[Field] = ()
    packages: Sequence[str] = ()
    ahead: Sequence[str] = ()
    extra: str | None = None
    storage: Callable[[Mapping[str, Any]], Format | None] = lambda options: None
    environ: Mapping[str, str] = field(default_factory=dict)
    checkpoint_format: str | None = None
    quantize: Quantize | None = None
    calibrated: bool = True
    packed: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    told: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    prepare: Prepare | None = None
    inference: Sequence[str] = ()
    lacking: Callable[[Mapping[str, Any], str], str | None] | None = None
    adapters: Sequence[str] = ()
    merges: bool = False
    resolve: Callable[[Mapping[str, Any], str | None], Spec] | None = None
    trains: bool = False

    def filled(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, with defaults for those that are not given."""
        return {**{field.name: field.default for field in self.options}, **options}


def placed(device: str) -> Any:
    """`device_map` for a model on one device, or `balanced` over all that are visible."""
    return device if device == BALANCED else {"": device}


def from_source(source: Path | Dummy, device: str, trust: Trust, *, dtype: Any, **settings: Any) -> nn.Module:
    """What every method's loading comes down to: transformers, on a directory or on what is drawn in its place.

    Raises ValueError for a directory that does not hold every tensor of its model.
    """
    from pytest_quantbudget.models.dummy import Dummy

    device_map = placed(device)
    if isinstance(source, Dummy):
        return source.build(device_map, "cuda:0" if device == BALANCED else device, dtype, **settings)
    settings |= _readable_generation(source)
    loaded: Any = auto.model_class(checkpoint.config(source), trust).from_pretrained(
        source, dtype=dtype, device_map=device_map, output_loading_info=True, **asked(trust), **settings
    )
    model: nn.Module = loaded[0]
    tensors.check_loaded(source, model, loaded[1], trust)
    return model


def _readable_generation(source: Path) -> dict[str, Any]:
    """A generation config in place of one that transformers refuses to read: with its end tokens alone."""
    from transformers import GenerationConfig

    told = checkpoint.generation(source)
    try:
        GenerationConfig.from_dict(told)
    except ValueError:
        ends = {name: told[name] for name in ("eos_token_id", "pad_token_id") if name in told}
        return {"generation_config": GenerationConfig(**ends)}
    return {}


def asked(trust: Trust) -> dict[str, Any]:
    """What every loading call says: run no code and unpickle nothing that the command line did not allow."""
    return {"trust_remote_code": trust.remote_code, "use_safetensors": None if trust.pickles else True}


def others() -> entry_points.Added:
    """The kinds of other packages: an entry point of `pytest_quantbudget.methods` names a Spec."""
    return entry_points.added(entry_points.METHODS, Spec, tuple(MODULES))


def names() -> tuple[str, ...]:
    """All kinds."""
    return (*MODULES, *others().objects)


def spec(name: str) -> Spec:
    """The spec of a known kind of method. Raises KeyError for an unknown name."""
    if name not in MODULES:
        added: Spec = others().objects[name]
        return added
    module = importlib.import_module(f"pytest_quantbudget.models.methods.{MODULES[name]}")
    found: Spec = module.SPECS[name]
    return found


def resolved(subject: Subject) -> Spec:
    """What loads a subject: its kind, or what its checkpoint says, where that is on this machine."""
    found = spec(subject.kind)
    if found.resolve is None or subject.checkpoint is None:
        return found
    try:
        folder = config.find_folder(subject.checkpoint)
        return found.resolve(checkpoint.quantization(folder), checkpoint.dtype(folder))
    except (ValueError, OSError):
        # Loading will say what is wrong with it.
        return found


def run_by(engine: str) -> list[str]:
    """The kinds that an engine runs."""
    return [name for name in names() if engine in spec(name).engines]


def packages() -> dict[str, str | None]:
    """The packages of all methods and of all formats of checkpoints, with the project's extra that brings each."""
    of_methods = {package: one.extra for one in map(spec, names()) for package in one.packages}
    return {**quantization.packages(), **of_methods}


def library_names() -> tuple[str, ...]:
    """Everything that a figure may depend on."""
    return tuple(dict.fromkeys((*BASE_PACKAGES, *packages(), PEFT, *versions.COMMON)))


def libraries() -> dict[str, str]:
    """Installed versions of everything that a figure may depend on."""
    return versions.installed(library_names())


def pip_command(*missing: str, python: str | None = None) -> str:
    """The command that installs what is missing: this project's extra where it has one for the package.

    In another interpreter, `python`, the packages themselves: nothing of this project belongs there.
    """
    if python is not None:
        return f"{shlex.quote(python)} -m pip install {' '.join(map(versions.distribution, missing))}"
    known = {**EXTRAS, **{package: extra for package, extra in packages().items() if extra}}
    extras = sorted({known[package] for package in missing if package in known})
    others = [versions.distribution(package) for package in missing if package not in known]
    wanted = [f"'pytest-quantbudget[{','.join(extras)}]'"] * bool(extras) + others
    return f"pip install {' '.join(wanted)}"
