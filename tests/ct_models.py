"""Checkpoints of the built-in model in compressed-tensors' formats, each weight packed by that library's own code.

The scales are those of each group's largest value, as `llmcompressor` takes them where it is given no texts.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR

KEPT = "lm_head"


def made(folder: Path, scheme: str, source: Path = BUILTIN_DIR) -> Path:
    """A checkpoint of the model in `source` under one of the library's own schemes, such as W4A16 or FP8_DYNAMIC."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from safetensors.torch import load_file, save_file

    chosen = preset_name_to_scheme(scheme, ["Linear"])
    layout = infer_module_format(torch.nn.Linear, chosen)
    chosen.format = layout
    compressor: Any = BaseCompressor.get_value_from_registry(layout.value)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        held = {"weight": tensor, **_scales(tensor.float(), chosen.weights)}
        module = name.removesuffix("weight")
        packed = compressor.compress({key: each.to(tensor.dtype) for key, each in held.items()}, chosen)
        tensors |= {f"{module}{key}": each.contiguous() for key, each in packed.items()}
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    told = QuantizationConfig(
        config_groups={"group_0": chosen}, format=layout.value, quantization_status="compressed", ignore=[KEPT]
    )
    says(folder, json.loads(told.model_dump_json()))
    return folder


def says(folder: Path, packed: Any) -> None:
    """Have a checkpoint's `config.json` say that it is packed like this."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": packed}))


def _scales(weight: Any, how: Any) -> dict[str, Any]:
    """What the library needs to round a weight: the scales of its groups, and in NVFP4 that of all of it."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    whole = generate_gparam(weight.min(), weight.max()) if how.strategy == "tensor_group" else None
    grouped = weight.unflatten(-1, (-1, how.group_size)) if how.group_size else weight.unsqueeze(1)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), how, whole)
    found = {"weight_scale": scale, "weight_zero_point": zero}
    return found if whole is None else {**found, "weight_global_scale": whole}
