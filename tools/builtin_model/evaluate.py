"""Ask the model questions and count the right answers, as stored or quantized.

    python tools/builtin_model/evaluate.py --model DIR [--method fp32] [--limit N] [--against fp32]

With ``--against`` the same questions are put to the model under a second method too, and the report says how many
answers went from right to wrong (b) and from wrong to right (c).
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

LONGEST_ANSWER = 96  # tokens; the working of four steps takes fewer


def loading_options(method: str) -> dict[str, Any]:
    """What ``from_pretrained`` needs for a method."""
    if method == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
        return {"dtype": torch.float16, "quantization_config": config}
    if method == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        return {"dtype": torch.bfloat16, "quantization_config": config}
    return {"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[method]}


@torch.inference_mode()
def greedy_answers(model: Any, tokenizer: Any, questions: Sequence[str], batch_size: int = 100) -> list[str]:
    """Continue every question by the most likely tokens."""
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        prompts = [f"Question: {question}\nAnswer:" for question in questions[start : start + batch_size]]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
        )
        answers += tokenizer.batch_decode(output[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def final_number(answer: str) -> str | None:
    """What follows the last ``####``, or None."""
    _, mark, final = answer.rpartition("####")
    return final.strip() if mark else None


def verdicts(directory: Path, method: str, limit: int | None = None) -> list[bool]:
    """Load the model under a method, ask its questions, and tell right answers from wrong ones."""
    start = time.perf_counter()
    lines = (directory / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, **loading_options(method))
    answers = greedy_answers(model.eval(), tokenizer, [row["question"] for row in rows])
    right = [final_number(answer) == final_number(row["answer"]) for answer, row in zip(answers, rows, strict=True)]
    seconds = time.perf_counter() - start
    print(f"{method}: {sum(right)} of {len(right)} right, {sum(right) / len(right):.4f} ({seconds:.0f} s)", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the built-in model's accuracy on its held-out questions.")
    parser.add_argument("--model", type=Path, required=True, help="directory with the model and questions.jsonl")
    methods = ("fp32", "bf16", "int8", "nf4")
    parser.add_argument("--method", choices=methods, default="fp32")
    parser.add_argument("--against", choices=methods, help="compare, question by question, with this method")
    parser.add_argument("--limit", type=int, help="ask only the first so many questions")
    options = parser.parse_args()
    right = verdicts(options.model, options.method, options.limit)
    if options.against:
        before = verdicts(options.model, options.against, options.limit)
        lost = sum(old and not new for old, new in zip(before, right, strict=True))
        gained = sum(new and not old for old, new in zip(before, right, strict=True))
        drop = 100 * (lost - gained) / len(right)
        print(f"{options.method} against {options.against}: drop {drop:.2f} points, b {lost}, c {gained}")


if __name__ == "__main__":
    main()
