"""What GPTQ and AWQ share: loading packed checkpoints through transformers, and quantizing through gptqmodel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.fields import Field, one_of, whole
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import auto, checkpoint, tensors
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.estimate.architecture import OUTSIDE, Matrix, Unknown
from pytest_quantbudget.models.estimate.formats import Format
from pytest_quantbudget.models.methods import BALANCED, from_source

if TYPE_CHECKING:
    from torch import nn

PACKAGES = ("gptqmodel", "optimum")
# Itself it starts threads, which a fork would lack.
AHEAD = ("torch._inductor.compile_fx", "datasets")
EXTRA = "gptqmodel"
ENVIRON = {
    # gptqmodel asks for more CPU workers than a machine of two cores has, unless told before its import.
    "GPTQMODEL_CPU_WORKERS": str(max(2, (os.cpu_count() or 2) // 2)),
    # Its progress bar, which nobody sees in the log of a measuring process, is else drawn thousands of times.
    "LOGBAR_PROGRESS_OUTPUT_INTERVAL": "1000",
}
# Entries of a configuration that are the inputs of its layers, by the names of several architectures.
INPUTS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size", "n_embd", "n_inner",
)  # fmt: skip
WEIGHT = ".qweight"
STACKED = 3  # dimensions of a tensor of several experts
JOINED = ".gate_up_proj"  # a layer that gptqmodel takes apart
OPTIONS = (
    Field("bits", one_of(4), "Bits of a weight.", 4),
    Field(
        "group_size", one_of(-1, 32, 64, 128), "Weights of an input row that share a scale; -1 for all of them.", 128
    ),
    Field("texts", whole(1), "How many calibration texts are used.", 128),
    Field("seed", whole(0), "Seed of the drawing of calibration texts.", 0),
)


@dataclass(frozen=True)
class Packed(Format):
    """4-bit values, with a scale and a zero point a group of `group` inputs (-1: all of a row) and output.

    After loading as gptqmodel 7.6 holds it (`nn_modules/qlinear`: the layers in torch that transformers 5 picks on a
    CPU). With `indexed`, GPTQ's, each input's group is stored as well, and eight shifts. What transformers keeps in
    float32 beside float16, gptqmodel does not.
    """

    group: int = 128
    indexed: bool = False

    @property
    def bits(self) -> int:
        """4."""
        return 4

    def packs(self, matrix: Matrix) -> bool:
        """The blocks' layers, whatever class a model derives for them, and experts: gptqmodel takes them apart."""
        return matrix.layer != OUTSIDE

    def values(self, matrix: Matrix) -> int:
        """Half a byte each."""
        return (matrix.values + 1) // 2

    def scales(self, matrix: Matrix) -> int:
        """A float16 and 4 bits of zero point a group and output; with an index, an int32 an input and the shifts."""
        group = matrix.inputs if self.group == -1 else self.group
        if matrix.inputs % group or matrix.inputs % 8 or matrix.outputs % 8:
            shape = f"a layer of {matrix.inputs} inputs and {matrix.outputs} outputs"
            name = "gptq-int4" if self.indexed else "awq-int4"
            raise ValueError(f"{name} in groups of {group} cannot hold {shape}")
        scales = matrix.inputs // group * matrix.outputs * 5 // 2
        return scales + (matrix.joined * (4 * matrix.inputs + 32) if self.indexed else 0)

    def of_checkpoint(self, config: Mapping[str, Any]) -> Format:
        """With the checkpoint's group size. Raises Unknown for other bits."""
        super().of_checkpoint(config)
        bits, group = config.get("bits", 4), config.get("group_size", self.group)
        if bits != 4 or type(group) is not int or not (group == -1 or group > 0):
            raise Unknown(f"a checkpoint of {bits!r:.60} bits in groups of {group!r:.60} is not known to the estimate")
        return replace(self, group=group)


def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """A packed checkpoint in float16, the type of the 4-bit kernels, with those that the option `backend` names.

    Where transformers cannot read it, gptqmodel does. Raises ValueError for dummy weights whose group size would make a
    checkpoint fail in use, and for a directory that does not hold every tensor of its model.
    """
    import torch
    from transformers import AutoConfig
    from transformers.quantizers.auto import AutoQuantizationConfig

    backend = options["backend"]
    if isinstance(source, Path) and only_its_own(source, trust):
        return _load_own(source, backend, device, trust)

    told = read_form(source)
    config: Any = AutoQuantizationConfig.from_dict(dict(told))
    # Not given to the class: AWQ's refuses names that gptqmodel, which gets it, knows.
    config.backend = backend
    settings = {"quantization_config": config}
    if isinstance(source, Dummy):
        check_group_size(source.config, told.get("group_size", -1))
        _check_dummy(source)
    elif checkpoint.is_old_form(source) or checkpoint.early_file(source):
        of_model = AutoConfig.from_pretrained(source, trust_remote_code=trust.remote_code)
        # What transformers looks for in its own configuration alone.
        of_model.quantization_config = told
        if early := checkpoint.early_file(source):
            of_model.transformers_weights = early
        settings["config"] = of_model
    return from_source(source, device, trust, dtype=torch.float16, **settings)


def read_form(source: Path | Dummy) -> dict[str, Any]:
    """How a checkpoint says it is packed, as libraries of today read that.

    Raises ValueError for one that auto-gptq has packed for Marlin kernels alone, which transformers would not notice.
    """
    found = source.config["quantization_config"] if isinstance(source, Dummy) else checkpoint.quantization(source)
    if found.get("is_marlin_format"):
        what = "is packed for auto-gptq's own Marlin kernels (is_marlin_format), which only that reads"
        raise ValueError(f"the checkpoint in {source.name} {what}: save it without `use_marlin`")
    # gptqmodel refuses the entry even where it says no.
    return {name: value for name, value in found.items() if name != "is_marlin_format"}


def only_its_own(source: Path | Dummy, trust: Trust = NO_TRUST) -> bool:
    """Whether only gptqmodel reads a checkpoint: transformers packs all layers alike, whatever `dynamic` says.

    It would fill a layer that is not packed, and an output layer that is, with uninitialized memory. And it packs
    linear layers only: not experts that it stacks into one tensor, matrices that it joins, and classes of a model's
    own, all of which gptqmodel takes apart.
    """
    if isinstance(source, Dummy):
        return False
    told = checkpoint.quantization(source)
    if told.get("dynamic") or told.get("lm_head"):
        return True
    packed = {_in_blocks(name.removesuffix(WEIGHT)) for name in checkpoint.tensors(source, trust) if WEIGHT in name}
    return not packed <= {_in_blocks(name) for name in _linear(auto.skeleton(source, trust))}


def _in_blocks(name: str) -> str:
    """A layer's name from its block on: what stands before, a checkpoint may name otherwise."""
    return name[max(0, name.find("layers.")) :]


def _linear(skeleton: Any) -> list[str]:
    """The names of a model's layers of torch's own linear class."""
    from torch import nn

    return [name for name, module in skeleton.named_modules() if type(module) is nn.Linear]


def _check_dummy(source: Dummy) -> None:
    """Raise ValueError where gptqmodel would pack a model otherwise than transformers, which builds it here."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for name, module in source.skeleton("float16").named_modules():
        derived = isinstance(module, nn.Linear | Conv1D) and type(module) is not nn.Linear
        stacked = any(tensor.ndim == STACKED for tensor in module.parameters(recurse=False))
        if derived or stacked or name.endswith(JOINED):
            packs = f"packs {name} ({type(module).__name__}) otherwise than transformers, which builds it"
            raise ValueError(f"{source.name}: there are no dummy weights of it in this method: gptqmodel {packs}")


def _load_own(source: Path, backend: str, device: str, trust: Trust) -> nn.Module:
    """The model as gptqmodel's own loader reads it."""
    import torch
    from gptqmodel import GPTQModel

    check_source(source, trust)
    if "is_marlin_format" in checkpoint.quantization(source):
        why = "gptqmodel, which alone reads this model, refuses the entry is_marlin_format: take it out of its files"
        raise ValueError(f"{source.name}: {why}")
    where: dict[str, Any] = {"device_map": "auto"} if device == BALANCED else {"device": device}
    settings: dict[str, Any] = {**where, "backend": backend, "dtype": torch.float16}
    model: Any = GPTQModel.load(str(source), trust_remote_code=trust.remote_code, **settings).model
    tensors.check_names(source, model, trust)
    return model  # type: ignore[no-any-return]


def told(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the `quantization_config` of a checkpoint says: the method with its bits, and the group size."""
    bits = config.get("bits", 4)
    return {"method": f"{name}-int{bits}", "bits": bits, "group_size": config.get("group_size", -1)}


def packed(options: Mapping[str, Any], method: str, layout: str, **more: object) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that gptqmodel makes with these options: what its layers go by."""
    told = {"bits": options["bits"], "group_size": options["group_size"], "lm_head": False, "pack_dtype": "int32"}
    return {"quant_method": method, "checkpoint_format": layout, "format": layout, **told, **more}


def quantize(
    source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, trust: Trust, **config: object
) -> None:
    """Quantize the model in `source` on `texts` and save it, with its tokenizer, into `target`.

    Raises ValueError for a group size that does not divide the layers' inputs (such a checkpoint saves and loads, and
    fails in use), and for a source that may not be loaded.
    """
    check_source(source, trust)
    check_group_size(checkpoint.config(source), options["group_size"])
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    awq_on_cpu = config.get("quant_method") == "awq" and not torch.cuda.is_available()
    # The compiled packer needs a C++ compiler and half a minute; the original one gives the same bytes without.
    quantize_config = QuantizeConfig(
        bits=options["bits"], group_size=options["group_size"], pack_impl="original", **config
    )
    model = GPTQModel.load(str(source), quantize_config, trust_remote_code=trust.remote_code)
    model.quantize(list(texts), batch_size=1, **({"backend": BACKEND.AWQ_TORCH} if awq_on_cpu else {}))
    model.save(str(target))


def check_source(source: Path, trust: Trust) -> None:
    """Raise ValueError for a model that may not be loaded, before gptqmodel sees it.

    Whatever it is told, gptqmodel imports the model's code where `auto_map` names some, unpickles weights where it
    finds no others, and imports tokenizers that lie beside the model when theirs does not load.
    """
    checkpoint.check(source, trust)
    code = [*source.glob("tokenization_*.py"), *source.glob("tiktoken.py")]
    if code and not trust.remote_code:
        what = f"{source.name} holds {code[0].name}, which gptqmodel might run"
        raise ValueError(f"{what}; only --quant-trust-remote-code lets it run")


def check_group_size(config: Mapping[str, Any], group_size: int) -> None:
    """Raise ValueError where `group_size` does not divide what the model's layers take: its hidden or inner size."""
    for name in INPUTS:
        size = config.get(name)
        if group_size > 0 and isinstance(size, int) and size % group_size:
            fitting = [g for g in (128, 64, 32) if size % g == 0]
            hint = f"; {fitting[0]} does" if fitting else ""
            raise ValueError(f"group size {group_size} does not divide the model's {name} {size}{hint}")
