"""Make a Llama of the built-in model, which auto-gptq and autoawq know nothing of, and its GPTQ and AWQ checkpoints.

    python tools/archived/taught_llama.py --out DIR [--steps N] [--seed S]

writes DIR/llama, DIR/llama-gptq and DIR/llama-awq. The built-in model is a Qwen3, which is newer than both libraries,
and its output layer is tied to its embeddings, which auto-gptq does not load. The Llama begins with the same weights,
without the norms of queries and keys and untied, and is trained on for some minutes with the built-in model's recipe,
at a share of its rates. gptqmodel quantizes it, as the kinds `gptq-int4` and `awq-int4` do. The configurations say the
base of the rotary embedding also by the name that transformers before release 5 reads.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.calibration import calibration_texts

sys.path.insert(0, str(Path(__file__).parents[1] / "builtin_model"))

SHARE = 0.3  # of the rates that the built-in model was trained at from scratch
KINDS = {"llama-gptq": "gptq-int4", "llama-awq": "awq-int4"}
TEXTS = 128


def begun() -> Any:
    """A Llama with the built-in model's weights, queries and keys scaled by the norms that it lacks."""
    theirs: Any = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype=torch.float32)
    own = theirs.config
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "eos_token_id", "pad_token_id"),
    )
    config = LlamaConfig(**{name: getattr(own, name) for name in same}, tie_word_embeddings=False, bos_token_id=None)
    model = LlamaForCausalLM(config)
    model.load_state_dict({**theirs.state_dict(), "lm_head.weight": theirs.lm_head.weight.clone()}, strict=False)
    for layer, old in zip(model.model.layers, theirs.model.layers, strict=True):
        for name in ("q", "k"):
            norm = getattr(old.self_attn, f"{name}_norm").weight.detach().repeat(own.num_attention_heads)
            matrix = getattr(layer.self_attn, f"{name}_proj").weight
            # As if every input had the embeddings' length: training does the rest.
            size = matrix.detach().square().sum(1).mean().sqrt()
            matrix.data *= norm[:, None] / size
    return model


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model in float16, with its tokenizer."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    readable(folder)


def readable(folder: Path) -> None:
    """Say the base of the rotary embedding by its older name, too."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    from train import train

    parser = argparse.ArgumentParser(description="Make a Llama of the built-in model, and quantize it.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--steps", type=int, default=400, help="batches to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="of the order of the data")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    model = begun()
    train(model, tokenizer, options.steps, options.seed, SHARE)
    write(model.eval(), tokenizer, options.out / "llama")
    quantize(options.out)


def quantize(out: Path) -> None:
    """The GPTQ and AWQ checkpoints of the Llama."""
    texts = calibration_texts(BUILTIN_DIR / "calibration.jsonl", TEXTS, 0)
    for name, kind in KINDS.items():
        spec = methods.spec(kind)
        assert spec.quantize is not None
        os.environ.update(spec.environ)
        spec.quantize(out / "llama", spec.filled({}), texts, out / name)
        readable(out / name)


if __name__ == "__main__":
    main()
