"""Random models of two small layers, of every architecture that the estimate knows, and of some that it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR

SMALL: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What one of each architecture has beside that.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 64},
    "gemma3_text": {"head_dim": 32, "sliding_window": 64},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_oss": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "falcon": {},
    "opt": {"ffn_dim": 128},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
}


def config_of(kind: str, **more: Any) -> Any:
    """transformers' configuration of a small model."""
    from transformers import AutoConfig

    own = KINDS.get(kind, {})
    small = {key: value for key, value in SMALL.items() if kind != "gpt2" or key.endswith(("vocab_size", "_id"))}
    return AutoConfig.for_model(kind, **(small | own | more))


def save(folder: Path, kind: str, **more: Any) -> Path:
    """A random model in a directory, with the built-in model's tokenizer: the same one for the same arguments."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(kind, **more)).save_pretrained(folder)
    return _with_tokenizer(folder)


VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_vision(folder: Path, kind: str) -> Path:
    """A random model of two small layers that reads images, with the built-in model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {**SMALL, "head_dim": 16}
    if kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
        vision = {
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": SMALL["hidden_size"],
        }
        more: dict[str, Any] = {
            "text_config": {**text, "rope_parameters": rope}, "vision_config": vision, "vision_start_token_id": 630,
            "image_token_id": 631, "video_token_id": 632,
        }  # fmt: skip
    elif kind == "gemma3":
        vision = {**VISION, "image_size": 28, "patch_size": 14, "vision_use_head": False}
        more = {"text_config": {**text, "sliding_window": 64}, "vision_config": vision, "mm_tokens_per_image": 4}
        more |= {"image_token_index": 631, "boi_token_index": 632, "eoi_token_index": 633}
    else:
        tower = {**VISION, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}
        more = {"text_config": {**text, "model_type": "llama"}, "vision_config": tower, "image_token_index": 631}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **more))
    model.save_pretrained(folder)
    return _with_tokenizer(folder)


def _with_tokenizer(folder: Path) -> Path:
    for path in BUILTIN_DIR.glob("token*.json"):
        shutil.copy(path, folder)
    return folder
