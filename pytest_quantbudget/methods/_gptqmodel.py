"""What GPTQ and AWQ share: loading packed checkpoints through transformers, and quantizing through gptqmodel."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.grammar import Field, one_of, whole

if TYPE_CHECKING:
    from torch import nn

EXTRAS = ("gptqmodel", "optimum")
# gptqmodel asks for more CPU workers than a machine of two cores has, unless told before its import.
ENVIRON = {"GPTQMODEL_CPU_WORKERS": str(max(2, (os.cpu_count() or 2) // 2))}
OPTIONS = (
    Field("bits", one_of(4), "Bits of a weight.", 4),
    Field(
        "group_size", one_of(-1, 32, 64, 128), "Weights of an input row that share a scale; -1 for all of them.", 128
    ),
    Field("texts", whole(1), "How many calibration texts are used.", 128),
    Field("seed", whole(0), "Seed of the drawing of calibration texts.", 0),
)


def load(source: Path, options: Mapping[str, Any], device: str) -> nn.Module:
    """A packed checkpoint in float16, the type of the 4-bit kernels. On a CPU the kernel is gptqmodel's in torch."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    asked: dict[str, Any] = {}
    if device == "cpu" and _format(AutoConfig.from_pretrained(source)) == "awq":
        from transformers import AwqConfig

        asked["quantization_config"] = AwqConfig(backend="torch_awq")  # type: ignore[arg-type]  # its enum has no name for it
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16, device_map={"": device}, **asked)


def _format(config: Any) -> str | None:
    found = getattr(config, "quantization_config", None) or {}
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def quantize(source: Path, options: Mapping[str, Any], texts: Sequence[str], target: Path, **config: object) -> None:
    """Quantize the model in `source` on `texts` and save it, with its tokenizer, into `target`.

    Raises ValueError for a group size that does not divide the layers' inputs: such a checkpoint saves and loads, and
    fails in use.
    """
    check_group_size(source, options["group_size"])
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    awq_on_cpu = config.get("quant_method") == "awq" and not torch.cuda.is_available()
    # The compiled packer needs a C++ compiler and half a minute; the original one gives the same bytes without.
    quantize_config = QuantizeConfig(
        bits=options["bits"], group_size=options["group_size"], pack_impl="original", **config
    )
    model = GPTQModel.load(str(source), quantize_config)
    model.quantize(list(texts), batch_size=1, **({"backend": BACKEND.AWQ_TORCH} if awq_on_cpu else {}))
    model.save(str(target))


def check_group_size(source: Path, group_size: int) -> None:
    """Raise ValueError where `group_size` does not divide the model's hidden or intermediate size."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for name in ("hidden_size", "intermediate_size"):
        size = config.get(name)
        if group_size > 0 and isinstance(size, int) and size % group_size:
            fitting = [g for g in (128, 64, 32) if size % g == 0]
            hint = f"; {fitting[0]} does" if fitting else ""
            raise ValueError(f"group size {group_size} does not divide the model's {name} {size}{hint}")
