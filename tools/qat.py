"""Quantization-aware training of the built-in model with torchao, and a budget that judges what came out of it.

    python tools/qat.py --out DIR [--bits 4 3] [--group-size 128] [--steps N] [--seed S]
    pytest --quant-budget DIR/qat.yaml

While it is trained, every linear layer of the blocks computes with its weight rounded to the integers that will be
stored (`QATConfig(..., step="prepare")`); the gradient passes the rounding as if it were not there (straight-through
estimator). Then the weights are rounded for good (`step="convert"`) and saved as transformers saves torchao's tensors.

Two others show what that wins: `int3` rounds the model that ships, and `int3-tuned` rounds one that was trained on for
as many steps without rounding. All of them are the same integers of the same size, in the same groups.

The problems to train on are of the training split of `builtin_model/problems.py`, drawn by a seed of their own: a hash
of template and numbers keeps the kinds of numbers that the test questions ask about out of it.
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_quantbudget.core.files import BUILTIN_DIR

sys.path.insert(0, str(Path(__file__).parent / "builtin_model"))

SEED = 21  # of the problems; the model's own training and its files were drawn by 0 and 11 to 13
STEPS = 200
SHARE = 0.1  # of the rates that the model was trained at from scratch
# Points of accuracy, and questions in a hundred, that the gate allows by bits; 2,000 questions tell both from nothing.
MAX_DROP, MAX_FLIPS = {3: 4.0}, {3: 6.0}
DROP, FLIPS = 2.5, 5.0

BUDGET = """\
# Written by tools/qat.py: the built-in model rounded to {bits} bits: as it is, trained on, and trained for it.
model: builtin
baseline: fp32
tasks:
  wordmath: {{file: builtin, questions: 2000, max_new_tokens: 96, batch_size: 500}}
methods:
  fp32: {{budget: {{min_wordmath: 95}}}}
"""
METHOD = (
    "  {name}: {{kind: torchao-intx, {made}, budget: {{max_wordmath_drop: {drop}, max_wordmath_flips: {flips}}}}}\n"
)


def rounding(bits: int, group_size: int) -> Any:
    """The configuration of torchao: symmetric integers, a scale for `group_size` weights of a row."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(group_size))


def in_block(module: nn.Module, name: str) -> bool:
    """Whether a layer is one that methods quantize: the output layer shares the embedding and stays as it is."""
    return isinstance(module, nn.Linear) and name != "lm_head"


def train(model: Any, tokenizer: Any, steps: int, seed: int, share: float) -> None:
    """Train on, as the model was trained, on problems of the training split."""
    from train import train as train_on

    start = time.perf_counter()
    train_on(model, tokenizer, steps, seed, share)
    print(f"{steps} steps in {time.perf_counter() - start:.0f} s", flush=True)


def prepared(model: Any, config: Any) -> Any:
    """A copy of the model that computes with rounded weights, and is trained in the ones that are not."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    made = copy.deepcopy(model)
    quantize_(made, QATConfig(config, step="prepare"), filter_fn=in_block)
    return made


def convert(model: Any, config: Any) -> None:
    """Round the weights of a prepared model for good."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    quantize_(model, QATConfig(config, step="convert"))


def rounded(model: Any, config: Any) -> Any:
    """A copy of the model, rounded to the nearest."""
    from torchao.quantization import quantize_

    made = copy.deepcopy(model)
    quantize_(made, config, filter_fn=in_block)
    return made


def save(model: Any, tokenizer: Any, config: Any, folder: Path) -> None:
    """Save a model that torchao has quantized as transformers does: safetensors, and how it was made in config.json."""
    from transformers import TorchAoConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    model.config.quantization_config = TorchAoConfig(config)
    model.hf_quantizer = AutoHfQuantizer.from_config(model.config.quantization_config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def budget(bits: list[int], group_size: int) -> str:
    """The budget of the base, and of the three ways to each number of bits."""
    text = BUDGET.format(bits=" and ".join(map(str, bits)))
    for count in bits:
        options = f"options: {{bits: {count}, group_size: {group_size}, compute_dtype: float32}}"
        for name in (f"int{count}", f"int{count}-tuned", f"int{count}-qat"):
            made = f"checkpoint: {name}" if "-" in name else options
            allowed = {"drop": MAX_DROP.get(count, DROP), "flips": MAX_FLIPS.get(count, FLIPS)}
            text += METHOD.format(name=name, made=made, **allowed)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model for rounding, and write a budget for it.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], help="bits of a weight (default: 4 3)")
    parser.add_argument("--group-size", type=int, default=128, help="weights that share a scale (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="batches to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the problems (default: %(default)s)")
    parser.add_argument("--share", type=float, default=SHARE, help="of the rates from scratch (default: %(default)s)")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    model = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype=torch.float32)
    tuned = copy.deepcopy(model)
    train(tuned, tokenizer, asked.steps, asked.seed, asked.share)
    for bits in asked.bits:
        config = rounding(bits, asked.group_size)
        made = prepared(model, config)
        train(made, tokenizer, asked.steps, asked.seed, asked.share)
        convert(made, config)
        save(made, tokenizer, config, asked.out / f"int{bits}-qat")
        save(rounded(tuned, config), tokenizer, config, asked.out / f"int{bits}-tuned")
    (asked.out / "qat.yaml").write_text(budget(asked.bits, asked.group_size), encoding="utf-8")
    print(f"pytest --quant-budget {asked.out / 'qat.yaml'}")


if __name__ == "__main__":
    main()
