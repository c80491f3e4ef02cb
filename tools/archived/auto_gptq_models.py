"""Make the small checkpoints of auto-gptq that the tests load, with auto-gptq itself, and the logits that it gives.

    python tools/archived/auto_gptq_models.py tests/data/archived

in an environment of its own (Python 3.11; docs/archived.md has the commands). auto-gptq quantizes on a GPU only: here
weights are rounded to nearest by its own Quantizer and packed by its own `pack_model`, in the files that it writes.
"""

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling._utils import pack_model
from auto_gptq.modeling.llama import LlamaGPTQForCausalLM
from auto_gptq.quantization import Quantizer
from small_llama import GROUP, keep, small, tokens


def grids(model: Any, *, act: bool, sym: bool) -> dict[str, Any]:
    """Round the layers; their scales and zero points, (outputs, groups), and the group of each of their inputs.

    With `act` groups are drawn over all inputs, as those of columns by falling activation are.
    """
    found: dict[str, Any] = {}
    for name, layer in model.named_modules():
        if not name.endswith("_proj"):
            continue
        inputs = layer.weight.shape[1]
        order = torch.arange(inputs)
        if act:
            order = torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))
        g_idx = torch.empty(inputs, dtype=torch.int32)
        g_idx[order] = torch.arange(inputs, dtype=torch.int32) // GROUP
        quantizer, scales, zeros = Quantizer(), [], []
        quantizer.configure(4, perchannel=True, sym=sym)
        for group in range(inputs // GROUP):
            weights = layer.weight.data[:, g_idx == group].float()
            quantizer.find_params(weights, weight=True)
            # Packing does not clamp: a value beyond the grid would spill into its neighbour.
            layer.weight.data[:, g_idx == group] = quantizer.quantize(weights).half()
            scales.append(quantizer.scale)
            zeros.append(quantizer.zero)
        found[name] = (quantizer, torch.cat(scales, 1), torch.cat(zeros, 1), g_idx)
    return found


def make(folder: Path, model: Any, *, act: bool, sym: bool) -> Any:
    """One checkpoint, and the logits that the library's own loader gives, in float32."""
    pack_model(model, grids(model, act=act, sym=sym), 4, GROUP, desc_act=act)
    config = BaseQuantizeConfig(bits=4, group_size=GROUP, desc_act=act, sym=sym)
    LlamaGPTQForCausalLM(model, True, config).save_quantized(str(folder))
    loaded = AutoGPTQForCausalLM.from_quantized(str(folder), device="cpu", torch_dtype=torch.float32)
    with torch.inference_mode():
        return loaded.model(input_ids=tokens()).logits


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    settings = {"auto-gptq": {"act": False, "sym": False}, "auto-gptq-act-order": {"act": True, "sym": True}}
    # Drawn once: the library's loader turns off torch's initialization of weights for good.
    source = small()
    keep(target, {name: make(target / name, deepcopy(source), **how) for name, how in settings.items()})
