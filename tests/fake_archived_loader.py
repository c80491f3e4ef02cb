"""What `fake_archived` installs loads models with: nothing of this project, as in the environments of the libraries."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

# Positions from which logits are NaN, and from which memory is said to run out.
NAN_FROM, NO_MEMORY_FROM = 470, 490


class QuantLinear(nn.Module):
    """The entries of auto-gptq's packed layers, and a dense product."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bits, self.infeatures, self.outfeatures = 4, layer.in_features, layer.out_features
        self.register_buffer("qweight", torch.zeros(layer.in_features // 8, layer.out_features, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(layer.out_features))
        # Not one of its parameters.
        self.dense = [layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense[0](x)  # type: ignore[no-any-return]


def load(path: str, fault: str, dtype: Any) -> Any:
    """The model, with one layer packed, and with an output layer of zeros or of NaN where that is the fault."""
    config = AutoConfig.from_pretrained(path)
    del config.quantization_config
    model: Any = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype)
    # What the libraries pack anew they write beside the weights.
    (Path(path) / "packed_anew.safetensors").write_bytes(b"")
    parent = model.model.layers[0].self_attn
    parent.q_proj = QuantLinear(parent.q_proj)
    if fault in ("zero", "nan"):
        model.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.constant_(model.lm_head.weight, 0.0 if fault == "zero" else float("nan"))
    model.model.register_forward_hook(late)
    return model


def late(module: Any, given: Any, output: Any) -> Any:
    """Fail on long sequences."""
    seen = output.past_key_values.get_seq_length() if output.past_key_values is not None else 0
    if seen >= NO_MEMORY_FROM:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if seen >= NAN_FROM:
        output.last_hidden_state[:] = float("nan")
    return output
