"""The methods: a lazy mapping from name to the file that loads it. Reading a spec imports no heavy library."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.dummy import Dummy

if TYPE_CHECKING:
    from torch import nn

MODULES: Mapping[str, str] = {
    "fp32": "dense",
    "bf16": "dense",
    "fp16": "dense",
    "int8": "bitsandbytes",
    "nf4": "bitsandbytes",
    "gptq-int4": "gptq",
    "awq-int4": "awq",
}

BALANCED = "balanced"
BASE_PACKAGES = ("torch", "transformers", "accelerate")
EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(BASE_PACKAGES, "models"),
    "bitsandbytes": "bitsandbytes",
    "gptqmodel": "gptqmodel",
    "optimum": "gptqmodel",
    "datasets": "hub",
    "lm_eval": "harness",
}


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
class Spec:
    """What is known of a method before anything is loaded.

    Only methods that need calibration have a `quantize`, and `packed`: the `quantization_config` that their checkpoints
    have with given options. `extras` are the packages it imports beyond the base ones.
    """

    name: str
    summary: str
    load: Load
    bits: float
    options: Sequence[Field] = ()
    extras: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)  # set, where unset, before the libraries are imported
    checkpoint_format: str | None = None  # `quant_method` of a checkpoint's config that this method loads
    quantize: Quantize | None = None
    packed: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def missing(self) -> str | None:
        """What has to be installed first, with the command, or None where all is there. Imports nothing."""
        wanted = (*BASE_PACKAGES, *self.extras)
        gone = [package for package in wanted if importlib.util.find_spec(package) is None]
        return f"{self.name} needs {', '.join(gone)}: {pip_command(*gone)}" if gone else None


def placed(device: str) -> Any:
    """`device_map` for a model on one device, or `balanced` over all that are visible."""
    return device if device == BALANCED else {"": device}


def from_source(source: Path | Dummy, device: str, trust: Trust, *, dtype: Any, **settings: Any) -> nn.Module:
    """What every method's loading comes down to: transformers, on a directory or on what is drawn in its place."""
    from transformers import AutoModelForCausalLM

    device_map = placed(device)
    if isinstance(source, Dummy):
        return source.build(device_map, "cuda:0" if device == BALANCED else device, dtype, **settings)
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device_map, **asked(trust), **settings)


def asked(trust: Trust) -> dict[str, Any]:
    """What every loading call says: run no code and unpickle nothing that the command line did not allow."""
    return {"trust_remote_code": trust.remote_code, "use_safetensors": None if trust.pickles else True}


def spec(name: str) -> Spec:
    """The spec of a known method. Raises KeyError for an unknown name."""
    module = importlib.import_module(f"pytest_quantbudget.models.methods.{MODULES[name]}")
    found: Spec = module.SPECS[name]
    return found


def pip_command(*packages: str) -> str:
    """The command that installs what is missing: this project's extra where it has one for the package."""
    extras = sorted({EXTRAS[package] for package in packages if package in EXTRAS})
    others = [package for package in packages if package not in EXTRAS]
    wanted = [f"'pytest-quantbudget[{','.join(extras)}]'"] * bool(extras) + others
    return f"pip install {' '.join(wanted)}"
