"""A GGUF file of a LoRA adapter, as llama.cpp's own convert_lora_to_gguf.py writes it.

Each of the two matrices of a layer is named after the tensor of the model that they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import Trust
from pytest_quantbudget.models import lora
from pytest_quantbudget.models.lora import Lora
from pytest_quantbudget.models.methods import _gguf_file

FILE = "adapter.gguf"
NO_ALPHA = 0.0  # llama.cpp then scales by nothing


def write(found: Lora, model: Path, target: Path, trust: Trust) -> None:
    """Write an adapter of the model in the directory `model` as the GGUF file `target`, in float32.

    What PEFT scales the product by is multiplied into its second matrix, because llama.cpp knows one alpha for all
    layers. Raises ValueError for a model that is not known here, and for an adapter of another model.
    """
    import gguf
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust.remote_code)
    architecture = _gguf_file.architecture(config, model.name)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, NO_ALPHA)
    for name, matrix in _matrices(found, config, architecture, model, trust):
        writer.add_tensor(name, matrix.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(found: Lora, config: Any, architecture: str, model: Path, trust: Trust) -> Iterator[tuple[str, Any]]:
    """The matrices under llama.cpp's names."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust.remote_code)
    lora.check_fits(found, dict(skeleton.named_modules()), model.name)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for theirs, tensor in _read(found.path).items():
        match = lora.LAYER.fullmatch(theirs.removeprefix(lora.PREFIX))
        module, part = (match["module"], match["part"]) if match else (theirs, "")
        if part not in ("lora_A", "lora_B"):
            raise ValueError(
                f"{found.folder.name} holds {theirs}, which llama.cpp's adapters cannot; `merge: true` can"
            )
        name = names.get_name(module)
        if name is None:
            raise ValueError(f"{model.name}: llama.cpp's {architecture} has no tensor like {module}")
        if part == "lora_B":
            matrix = tensor.float() * found.scaling(module, tensor.shape[1])
            count = heads.get(module.rpartition(".")[2]) if architecture in _gguf_file.INTERLEAVED else None
            yield f"{name}.weight.lora_b", _gguf_file.interleaved(matrix, count) if count else matrix
        else:
            yield f"{name}.weight.lora_a", tensor


def _read(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found
