"""Teach the built-in model a new kind of story: a LoRA adapter, trained on the model in NF4 (QLoRA).

    python tools/builtin_model/qlora.py --out DIR [--model DIR] [--steps N] [--seed S]

writes the adapter, as PEFT saves it, to DIR/adapter, and questions to ask it to DIR/boxes.jsonl. QLoRA: Dettmers et
al. 2023, arXiv 2305.14314. The new story takes away whole boxes, which are counted first: the model, which knows
stories with boxes alone or things alone, multiplies first. Half of the examples are stories that it knows, so that it
does not unlearn these. A problem's numbers decide whether it may be trained on, so no question of DIR/boxes.jsonl, nor
one of those that ship with the model, is among the examples.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from parts import SMALL_FACTOR, Draft, cast, minus, times
from peft import LoraConfig, get_peft_model
from problems import Problem, Split, finished, problems, split_of
from train import loss_of, problem_examples, tensors
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

BUILTIN = Path(__file__).parents[2] / "pytest_quantbudget" / "builtin"
KIND = "boxes_taken"
MOST_BOXES = 60
BATCH = 32
RATE, WARMUP_STEPS = 2e-3, 20
QUESTIONS, QUESTIONS_SEED = 1_000, 21
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def boxes_taken(rng: Random) -> Draft:
    """Some of the containers are given away, all of them full."""
    c, each = cast(rng), rng.randint(*SMALL_FACTOR)
    packs = rng.randint(3, MOST_BOXES)
    given = rng.randint(1, packs - 2)
    left = minus(packs, given, c.containers)
    question = (
        f"{c.first} has {packs} {c.containers} of {each} {c.things} each. {c.he.capitalize()} gives {given} "
        f"{c.containers} to {c.second}. How many {c.things} does {c.first} keep?"
    )
    return Draft(question, [left, times(each, left.value, c.things)], (packs, each, given))


def stories(rng: Random, split: Split) -> Iterator[Problem]:
    """Endless problems of the new kind, from one split."""
    while True:
        draft = boxes_taken(rng)
        if split_of(KIND, draft.numbers) == split:
            yield finished(KIND, draft)


def questions(rng: Random, count: int) -> list[Problem]:
    """Problems of the test split, no two of which share their numbers."""
    found: dict[tuple[str, ...], Problem] = {}
    for problem in stories(rng, "test"):
        found.setdefault(tuple(re.findall(r"\d+", problem.question)), problem)
        if len(found) == count:
            break
    return list(found.values())


def in_nf4(folder: Path) -> Any:
    """The model as it is trained on: NF4 with double quantization, products in float32, as few CPUs have bfloat16."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)


def train(folder: Path, steps: int, seed: int) -> Any:
    """The model with the trained adapter.

    Nothing may be asked of the model before: on CPUs with bfloat16 instructions, bitsandbytes packs its weights anew
    with the first pass in eval mode, and no gradient reaches the adapter any more, without a word.
    """
    torch.manual_seed(seed)
    rng = Random(seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = get_peft_model(in_nf4(folder), LORA)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, (step + 1) / WARMUP_STEPS, max(0.02, 2 * (1 - step / steps)))
    )
    new, known = stories(rng, "train"), problems(rng, "train")
    start, total = time.perf_counter(), 0.0
    for step in range(steps):
        batch = [*islice(new, BATCH // 2), *islice(known, BATCH // 2)]
        ids, learned = tensors(problem_examples(tokenizer, batch), tokenizer.pad_token_id)
        loss = loss_of(model.get_base_model(), ids, learned)
        loss.backward()
        if not any(weight.grad is not None and bool(weight.grad.any()) for weight in weights):
            raise RuntimeError("no gradient reached the adapter")
        adam.step()
        schedule.step()
        adam.zero_grad()
        total += loss.item()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}: loss {total / 25:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a LoRA adapter of the built-in model in NF4.")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter and its questions go")
    parser.add_argument("--model", type=Path, default=BUILTIN, help="the directory of the model")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    asked = questions(Random(QUESTIONS_SEED), QUESTIONS)
    lines = [json.dumps({"question": problem.question, "answer": problem.answer}) for problem in asked]
    (options.out / "boxes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train(options.model, options.steps, options.seed).save_pretrained(options.out / "adapter")


if __name__ == "__main__":
    main()
