"""Dummy weights: a model built from its `config.json` alone, to test memory, load and speed before there are weights.

The model is loaded by the libraries that load real ones, in the same way, and so has the same layers and kernels. Only
the tensors that a checkpoint would hold are not read: each is drawn at random, on the device, when its turn comes.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust
from pytest_quantbudget.models import auto, checkpoint
from pytest_quantbudget.models.config import find_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


STD = 0.02  # of drawn weights: transformers' usual `initializer_range`, with which logits stay finite
# Libraries that quantize while a model loads.
WHILE_LOADING = ("bitsandbytes", "torchao")
STEPS = 6.5  # standard deviation of the difference of two random 4-bit numbers, a weight and its zero point


@dataclass(frozen=True)
class Dummy:
    """What a model is built from instead of a directory.

    `config` is its `config.json`. It is `ready` where that says how the weights are packed, as a quantized checkpoint's
    does. `note` tells what had to be assumed.
    """

    name: str
    config: dict[str, Any]
    ready: bool
    note: str = ""

    @property
    def format(self) -> str | None:
        """`quant_method` of a quantized checkpoint; None for any other."""
        return checkpoint.packed_by(self.config, self.name)

    @property
    def revision(self) -> str:
        """A name that differs where the configuration differs."""
        return f"config:{codec.key_of(self.config)}"

    @property
    def parameters(self) -> int:
        """Number of weights, before quantization."""
        return sum(parameter.numel() for parameter in self.skeleton("float16").parameters())

    def build(self, device_map: Any, where: str, dtype: Any, quantization_config: Any = None) -> PreTrainedModel:
        """The model, loaded by transformers from a checkpoint that does not exist; tensors are made on `where`.

        Never is all of it there in 16 bits: of what is quantized while it loads, one tensor at a time is.
        """
        from transformers.quantizers.auto import AutoQuantizationConfig, get_hf_quantizer

        skeleton = self.skeleton(dtype)
        config: Any = skeleton.config
        packed = self.config.get("quantization_config") or {}
        if self.format in WHILE_LOADING:
            # Their checkpoints hold more tensors than layers declare. Quantizing while loading gives the same layers.
            quantization_config, packed = AutoQuantizationConfig.from_dict(packed), {}
        if packed:
            config.quantization_config = packed
            quantizer, told, _ = get_hf_quantizer(copy.deepcopy(config), quantization_config, device_map, True, {})
            quantizer.preprocess_model(model=skeleton, dtype=skeleton.dtype, device_map=device_map)
            packed = told.quantization_config.to_dict()  # with what transformers takes for granted
        tied = skeleton.all_tied_weights_keys
        drawn = {
            name: Drawn(name, tensor, where, packed)
            for name, tensor in skeleton.state_dict().items()
            if name not in tied
        }
        model: PreTrainedModel = type(skeleton).from_pretrained(
            None,
            config=config,
            state_dict=drawn,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization_config,
            trust_remote_code=False,
        )
        return model

    def skeleton(self, dtype: Any) -> Any:
        """The unquantized model without memory. Raises ValueError where transformers does not know it."""
        import torch
        import transformers

        kind = str(self.config.get("model_type"))
        if kind not in transformers.CONFIG_MAPPING:
            version = transformers.__version__
            raise ValueError(f"{self.name}: transformers {version} has no model of the type {kind!r} of its own")
        dense = {key: value for key, value in self.config.items() if key not in ("quantization_config", "auto_map")}
        config = transformers.CONFIG_MAPPING[kind].from_dict(dense)
        with torch.device("meta"):
            return auto.model_class(self.config).from_config(config, dtype=dtype, trust_remote_code=False)


class Drawn:
    """A tensor of a checkpoint that does not exist: drawn on a device when it is asked for, by a seed from its name.

    It offers what transformers asks of safetensors' slices.
    """

    def __init__(self, name: str, like: torch.Tensor, where: str, packed: Mapping[str, Any]) -> None:
        self.name, self.like, self.where, self.packed = name, like, where, packed

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self.like.shape)

    def get_dtype(self) -> str:
        """Kind and bits of a value, such as F16: what matters is whether it may be cast."""
        return f"{'F' if self.like.is_floating_point() else 'I'}{8 * self.like.element_size()}"

    def __getitem__(self, everything: Any) -> torch.Tensor:
        """The whole tensor, which only transformers' `[...]` asks for.

        Matrices are normal, vectors ones and biases zeros. What GPTQ and AWQ pack is random bits, and its scales give
        the unpacked weights the same spread. GPTQ's `desc_act` has taken the columns in some order: a random one.
        """
        import torch

        seeded = torch.Generator(self.where).manual_seed(zlib.crc32(self.name.encode()))
        made = torch.empty(self.like.shape, dtype=self.like.dtype, device=self.where)
        last = self.name.rpartition(".")[2]
        if last == "g_idx":
            count, size = len(made), self.packed["group_size"]
            order = torch.arange(count, device=self.where)
            if self.packed.get("desc_act"):
                order = torch.randperm(count, generator=seeded, device=self.where)
            return made.copy_(order // (size if size > 0 else count))
        if not made.is_floating_point():
            return made.random_(-(2**31), 2**31 - 1, generator=seeded) if made.dtype == torch.int32 else made.zero_()
        if last == "scales":
            return made.uniform_(0.5 * STD / STEPS, 1.5 * STD / STEPS, generator=seeded)
        if made.ndim < 2:
            return made.fill_(0.0 if last == "bias" else 1.0)
        return made.normal_(0.0, STD, generator=seeded)


def find(subject: Subject, packed: Mapping[str, Any] | None = None, trust: Trust = NO_TRUST) -> Dummy:
    """What a subject is built from: the configuration of its checkpoint, else its model's.

    `packed` is the `quantization_config` that a checkpoint of the method has with the subject's options. It is used
    where the budget names no checkpoint, or one whose configuration is not on this machine.

    Raises ValueError where there is no configuration of the model, or one that must not be used.
    """
    note = ""
    if subject.checkpoint is not None:
        try:
            return Dummy(Path(subject.checkpoint).name, config_of(subject.checkpoint, None, trust), True)
        except ValueError as error:
            if Path(subject.checkpoint).is_absolute():
                raise
            note = f"{subject.method}: built from the model's configuration and the method's options: {error}"
    config = config_of(subject.model, subject.revision, trust)
    name = Path(subject.model).name
    if packed is None or "quantization_config" in config:
        return Dummy(name, config, False, note)
    return Dummy(name, {**config, "quantization_config": dict(packed)}, True, note)


def config_of(model: str, revision: str | None, trust: Trust = NO_TRUST) -> dict[str, Any]:
    """The configuration of a model: a hub id, or an absolute directory, of which only the configuration is looked at.

    Raises ValueError.
    """
    if Path(model).is_absolute():
        checkpoint.check(Path(model), trust, weights=False)
    found = find_config(model, revision)
    if not trust.remote_code:
        checkpoint.refuse_code(f"{Path(model).name}/config.json", found)
    return found
