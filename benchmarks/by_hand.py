"""The built-in budget by one command, and the same work by hand, one after the other on this machine.

    python benchmarks/by_hand.py [--budget budgets/builtin.yaml] [--out by_hand]

By hand is what one would type: gptqmodel and bitsandbytes to quantize, in one process; lm-evaluation-harness's command
line once a method, on the questions that our command has asked of it; a timing loop over transformers' `generate`, in
one process for all methods. Both begin with empty caches. Processor time is that of all processes. Needs Linux and the
extra `harness`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.measure import hardware

ROOT = Path(__file__).parent.parent
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "float16", "nf4": "float32"}  # others: float16
# lm-eval's own task gsm8k, without worked examples, on another file, and with the budget's `max_new_tokens`.
TASK = r"""
task: wordmath
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: "{{answer}}"
num_fewshot: 0
generation_kwargs: {until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, max_gen_toks: 96}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "#### (\\-?[0-9\\.\\,]+)"}, {function: take_first}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default=str(ROOT / "budgets" / "builtin.yaml"))
    parser.add_argument("--out", type=Path, default=Path("by_hand"))
    parser.add_argument("--step", choices=["quantize", "time"], help="a step by hand, in this process")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    if options.step:
        {"quantize": quantize, "time": time_all}[options.step](out)
        return
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: processes of the fork server are counted, too
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    report = out / "report.json"
    command = ["pytest", "-p", "no:cacheprovider", "--quant-budget", options.budget, "--quant-report", str(report)]
    ours = timed("one command", out, *command, "--quant-cache", str(out / "cache"), cwd=ROOT)
    asked = answers(report.with_suffix(".answers.jsonl"))
    steps = [timed("quantizing", out, __file__, "--step", "quantize", "--out", str(out))]
    scores = {}
    for method, theirs in asked.items():
        steps.append(timed(f"lm-eval, {method}, {len(theirs):,} questions", out, *lm_eval(out, method, theirs)))
        (samples,) = (out / "lm_eval" / method).rglob("samples_*.jsonl")
        scores[method] = {d["doc_id"]: d["exact_match"] for d in map(json.loads, samples.read_text().splitlines())}
    steps.append(timed("timing loop", out, __file__, "--step", "time", "--out", str(out)))
    print(f"by hand: {sum(s for s, _ in steps):.0f} s, {sum(cpu for _, cpu in steps):.0f} s of processor time")
    print(f"by hand over one command: {sum(s for s, _ in steps) / ours[0]:.1f} by the clock, ", end="")
    print(f"{sum(cpu for _, cpu in steps) / ours[1]:.1f} in processor time; on {hardware.cpu()}")
    base, first = next(iter(asked.values())), next(iter(scores.values()))
    for method, theirs in asked.items():
        own = 100 * sum(base[q] - theirs[q] for q in theirs) / len(theirs)
        hand = 100 * sum(first[i] - scores[method][i] for i in scores[method]) / len(theirs)
        print(f"{method}: drop {own:.1f} points by one command, {hand:.1f} by hand, of {len(theirs):,} questions")


def timed(what: str, out: Path, *arguments: str, cwd: Path | None = None) -> tuple[float, float]:
    """Run a module or a script with these arguments; seconds by the clock and of processor time, with all children."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf"), "OMP_WAIT_POLICY": "PASSIVE"}
    module = [] if arguments[0].endswith(".py") else ["-m"]
    before, start = processor_time(), time.perf_counter()
    with (out / "log.txt").open("a") as log:
        command = [sys.executable, *module, *arguments]
        ended = subprocess.run(command, cwd=cwd or out, stdout=log, stderr=log, env={**os.environ, **offline})
    seconds = time.perf_counter() - start
    if ended.returncode:
        sys.exit(f"{what} failed, see {out / 'log.txt'}")
    used = processor_time() - before
    print(f"{what}: {seconds:.1f} s, {used:.1f} s of processor time", flush=True)
    return seconds, used


def processor_time() -> float:
    """Seconds, user and system, of all processes that have ended so far, once those left behind have, too."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def answers(path: Path) -> dict[str, dict[int, bool]]:
    """Which questions our command has asked of each method, in its order, and whether the answer was right."""
    asked: dict[str, dict[int, bool]] = {}
    for line in path.read_text().splitlines():
        answer = json.loads(line)
        asked.setdefault(answer["method"], {})[answer["question"]] = answer["correct"]
    return asked


def lm_eval(out: Path, method: str, questions: dict[int, bool]) -> list[str]:
    """The command that asks these questions of the built-in file."""
    lines = (BUILTIN_DIR / "questions.jsonl").read_text().splitlines()
    (out / f"{method}.jsonl").write_text("\n".join(lines[number] for number in questions) + "\n")
    task = out / method / "wordmath.yaml"
    task.parent.mkdir()
    task.write_text(TASK.replace("QUESTIONS", str(out / f"{method}.jsonl")))
    model = f"pretrained={weights(out, method)},dtype={DTYPES.get(method, 'float16')}"
    how = ["--model", "hf", "--model_args", model, "--tasks", str(task), "--batch_size", "250", "--device", "cpu"]
    return ["lm_eval", "run", *how, "--output_path", str(out / "lm_eval" / method), "--log_samples"]


def weights(out: Path, method: str) -> Path:
    made = out / "weights" / method
    return made if made.is_dir() else BUILTIN_DIR


def quantize(out: Path) -> None:
    """Checkpoints of the four quantized methods, with the budget's options."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    for method, told in (("int8", {"load_in_8bit": True}), ("nf4", {"load_in_4bit": True, **nf4})):
        config, dtype = BitsAndBytesConfig(**told), getattr(torch, DTYPES[method])
        model: Any = AutoModelForCausalLM.from_pretrained(
            BUILTIN_DIR, dtype=dtype, device_map={"": "cpu"}, quantization_config=config
        )
        model.save_pretrained(out / "weights" / method)
        AutoTokenizer.from_pretrained(BUILTIN_DIR).save_pretrained(out / "weights" / method)
    texts = [json.loads(line) for line in (BUILTIN_DIR / "calibration.jsonl").read_text().splitlines()]
    lines = [f"Question: {text['question']}\nAnswer: {text['answer']}" for text in texts]
    for method, told, more in (
        ("gptq-int4", {"desc_act": True, "sym": True}, {}),
        ("awq-int4", {"quant_method": "awq", "format": "gemm", "sym": False}, {"backend": BACKEND.AWQ_TORCH}),
    ):
        config = QuantizeConfig(bits=4, group_size=128, pack_impl="original", **told)
        model = GPTQModel.load(str(BUILTIN_DIR), config)
        model.quantize(lines[:64], batch_size=1, **more)
        model.save(str(out / "weights" / method))


def time_all(out: Path) -> None:
    """Bytes, time to first token and tokens a second of every method: 128 random tokens, 32 new ones, five repeats."""
    import torch
    from transformers import AutoModelForCausalLM

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    for method in ("fp32", "bf16", "int8", "nf4", "gptq-int4", "awq-int4"):
        dtype = getattr(torch, DTYPES.get(method, "float16"))
        model: Any = AutoModelForCausalLM.from_pretrained(
            weights(out, method), dtype=dtype, device_map={"": "cpu"}
        ).eval()
        held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        prompt = torch.randint(0, model.config.vocab_size, (1, 128))
        seconds: dict[int, list[float]] = {1: [], 32: []}
        for _ in range(6):
            for tokens, taken in seconds.items():
                start = time.perf_counter()
                with torch.inference_mode():
                    model.generate(prompt, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
                taken.append(time.perf_counter() - start)
        first, all_ = (statistics.median(taken[1:]) for taken in seconds.values())
        print(f"{method}: {held:,} bytes, first token {1000 * first:.1f} ms, {31 / (all_ - first):.0f} tokens/s")


if __name__ == "__main__":
    main()
