"""The small random Llama that auto-gptq and autoawq quantize, and its test tokens; for the scripts beside it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

GROUP = 32
TOKENS = 24
# What the logits of every model are stored in, by the name of its directory.
LOGITS = "logits.safetensors"


def small() -> Any:
    """Two layers of four heads, untied, in float16, with weights so large that its logits tell tokens apart."""
    torch.manual_seed(16)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.08,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).half().eval()


def tokens(seed: int = 1, count: int = TOKENS) -> torch.Tensor:
    """Random tokens, shape (1, count)."""
    return torch.randint(0, 64, (1, count), generator=torch.Generator().manual_seed(seed))


def keep(folder: Path, logits: dict[str, torch.Tensor]) -> None:
    """Add logits to those that are stored, with the tokens that they follow."""
    path = folder / LOGITS
    known = load_file(path) if path.exists() else {}
    save_file({**known, "tokens": tokens(), **logits}, path)
