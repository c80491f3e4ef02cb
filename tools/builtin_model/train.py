"""Train the built-in model from scratch and write everything that ships with it.

    python tools/builtin_model/train.py --out DIR [--steps N] [--seed S]

The order of the data depends on the seed alone, never on the clock.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from evaluate import verdicts
from muon import Muon
from problems import Problem, drill, problems, prompt, unique_problems
from tokenizer import padded_size, train_tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

LONGEST = 512  # tokens that the model can attend to
BATCH_TOKENS = 4096
POOL = 768  # examples drawn at a time and sorted by length, so that batches need little padding
DRILL_SHARE = 0.25  # of the examples
DRILL_LINES = 7  # additions and the like in one example
MATRIX_RATE, OTHER_RATE = 0.02, 4e-3
WARMUP_STEPS = 60
DECAY_SHARE = 0.5  # of the steps, at the end
TOKENIZER_PROBLEMS, QUESTIONS, CALIBRATION = 20_000, 2_000, 512
TOKENIZER_SEED, QUESTIONS_SEED, CALIBRATION_SEED = 11, 12, 13  # the same files whatever the seed of the training


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is one to learn to predict."""

    ids: list[int]
    learned: list[bool]


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A stock Qwen3 in which the inputs of every linear layer are a multiple of 128, as 4-bit group sizes need."""
    config = Qwen3Config(
        vocab_size=padded_size(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def problem_examples(tokenizer: PreTrainedTokenizerFast, batch: list[Problem]) -> list[Example]:
    """Questions with their answers; only the answer and the end of text are learned."""
    end = [tokenizer.eos_token_id]
    questions = encode(tokenizer, [prompt(problem) for problem in batch])
    answers = encode(tokenizer, [f" {problem.answer}" for problem in batch])
    return [
        Example(question + answer + end, [False] * len(question) + [True] * (len(answer) + 1))
        for question, answer in zip(questions, answers, strict=True)
    ]


def drill_examples(tokenizer: PreTrainedTokenizerFast, rng: Random, count: int) -> list[Example]:
    """Lines of bare arithmetic; only the results are learned."""
    steps = [drill(rng) for _ in range(count * DRILL_LINES)]
    expressions = encode(tokenizer, [f" {step.expression}=" for step in steps])
    results = encode(tokenizer, [f"{step.value}." for step in steps])
    examples = []
    for start in range(0, len(steps), DRILL_LINES):
        ids: list[int] = []
        learned: list[bool] = []
        for line in range(start, start + DRILL_LINES):
            ids += expressions[line] + results[line]
            learned += [False] * len(expressions[line]) + [True] * len(results[line])
        examples.append(Example(ids, learned))
    return examples


def batches(tokenizer: PreTrainedTokenizerFast, rng: Random) -> Iterator[list[Example]]:
    """Endless batches of examples of like length, at most ``BATCH_TOKENS`` each with padding."""
    drills = round(POOL * DRILL_SHARE)
    source = problems(rng, "train")
    while True:
        pool = problem_examples(tokenizer, list(islice(source, POOL - drills)))
        pool += drill_examples(tokenizer, rng, drills)
        pool.sort(key=lambda example: len(example.ids))
        cut: list[list[Example]] = [[]]
        for example in pool:
            if (len(cut[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        yield from cut


def tensors(batch: list[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the right: with a causal model the padding then needs no attention mask."""
    width = max(len(example.ids) for example in batch)
    ids = [example.ids + [pad] * (width - len(example.ids)) for example in batch]
    learned = [example.learned + [False] * (width - len(example.learned)) for example in batch]
    return torch.tensor(ids), torch.tensor(learned)


def loss_of(model: Qwen3ForCausalLM, ids: Tensor, learned: Tensor) -> Tensor:
    """Mean cross-entropy of the learned tokens; logits are made for no other position."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    chosen = learned[:, 1:]
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][chosen]), ids[:, 1:][chosen])


def rate_at(step: int, steps: int) -> float:
    """The share of the full learning rate: a short warm-up, a plateau, a linear decay."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.02, (1 - step / steps) / DECAY_SHARE))


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, share: float = 1.0
) -> None:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms, at a `share` of the rates."""
    inner = {name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name}
    muon = Muon(weight for name, weight in model.named_parameters() if name in inner)
    others = [weight for name, weight in model.named_parameters() if name not in inner]
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    start, total = time.perf_counter(), 0.0
    for step, batch in enumerate(islice(batches(tokenizer, Random(seed)), steps)):
        loss = loss_of(model, *tensors(batch, tokenizer.pad_token_id))
        loss.backward()
        rate = share * rate_at(step, steps)
        muon.step(MATRIX_RATE * rate)
        adam.param_groups[0]["lr"] = OTHER_RATE * rate
        adam.step()
        model.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % 25 == 0:
            minutes = (time.perf_counter() - start) / 60
            print(f"step {step + 1}/{steps}  loss {total / 25:.4f}  rate {rate:.2f}  {minutes:.1f} min", flush=True)
            total = 0.0


def write_questions(path: Path, rows: list[Problem]) -> None:
    lines = (json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save, with a class name that transformers 4 knows as well as 5, and only the settings that matter to a user."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: settings[key] for key in settings if key not in ("backend", "is_local", "local_files_only")}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_all(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights in bfloat16, settings, tokenizer, held-out questions, and training problems to calibrate with."""
    write_questions(out / "questions.jsonl", unique_problems(Random(QUESTIONS_SEED), "test", QUESTIONS))
    write_questions(out / "calibration.jsonl", unique_problems(Random(CALIBRATION_SEED), "train", CALIBRATION))
    write_tokenizer(tokenizer, out)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model and write it with its questions.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--steps", type=int, default=3200, help="batches to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the data (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)

    corpus = islice(problems(Random(TOKENIZER_SEED), "train"), TOKENIZER_PROBLEMS)
    tokenizer = train_tokenizer((f"{prompt(problem)} {problem.answer}" for problem in corpus), LONGEST)
    model = new_model(tokenizer)
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} parameters", flush=True)
    train(model, tokenizer, options.steps, options.seed)

    write_all(model, tokenizer, options.out)
    verdicts(options.out, "fp32")


if __name__ == "__main__":
    main()
