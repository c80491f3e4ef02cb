"""LoRA adapters of the built-in model for tests: hand-made ones of zeros, and random ones that PEFT makes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.models import lora

QUERY = "model.layers.0.self_attn.q_proj"
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
OF_QUERY = {f"{QUERY}.lora_A.weight": (2, 128), f"{QUERY}.lora_B.weight": (128, 2)}


def write(folder: Path, tensors: Mapping[str, Sequence[int]] = OF_QUERY, **config: Any) -> Path:
    """An adapter of zeros in float32, without any library; what is None in `config` is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in {**PLAIN, **config}.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[f"{lora.PREFIX}{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    told = json.dumps(header).encode()
    (folder / lora.SAFE).write_bytes(len(told).to_bytes(8, "little") + told + bytes(end))
    return folder


def random(folder: Path, model: Path = BUILTIN_DIR, **config: Any) -> Path:
    """An adapter with random matrices, large enough to change what the model says, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"], **config}
    torch.manual_seed(1)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    made: Any = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **given))
    made.save_pretrained(folder)
    return folder
