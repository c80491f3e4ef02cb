"""Questions a second of the engine `transformers` against lm-evaluation-harness's HF backend, with drafts and without.

    python benchmarks/evaluation.py [--model builtin] [--methods fp32,bf16,nf4] [--questions 1000] [--batch 250]
        [--shots 0] [--file FILE] [--shots-file FILE] [--fewshot fixed] [--repeats 1] [--plain] [--json FILE]

The first method is the baseline; its answers are the drafts of the others. All ways answer the same prompts, in batches
of the same size, in one process and by turns; GPTQ and AWQ are quantized beforehand, on the built-in texts. `--plain`
counts the answers in which the fast way and transformers' `generate` differ: all of them batch by batch, and the first
100 one at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Task
from pytest_quantbudget.engine.hf import engine as transformers_engine
from pytest_quantbudget.engine.hf import plain_generate
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.measure import ask, hardware
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.models import methods
from pytest_quantbudget.tasks import prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--methods", default="fp32,bf16,int8,nf4,gptq-int4,awq-int4")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--file", default="builtin")
    parser.add_argument("--shots-file")
    parser.add_argument("--fewshot", default="fixed")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    found = compare(options)
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": hardware.cpu(), "options": vars(options), "rows": found}))


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    task = Task(
        name="questions",
        questions=options.questions,
        shots=options.shots,
        seed=0,
        file=str(BUILTIN_DIR / "questions.jsonl") if options.file == "builtin" else str(Path(options.file).resolve()),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch,
        extract="strict",
        shots_file=str(Path(options.shots_file).resolve()) if options.shots_file else None,
        fewshot=options.fewshot,
    )
    asked = prompts.sample(task)
    baseline: TaskResult | None = None
    rows: list[dict[str, Any]] = []
    print(f"{len(asked)} questions, {task.shots} shots, batches of {task.batch_size}, on {hardware.cpu()}")
    for method in options.methods.split(","):
        engine = load(options.model, method, options.group_size)
        ways: dict[str, Callable[[], Any]] = {
            "lm-eval": functools.partial(harness, engine, task, asked),
            "without drafts": functools.partial(answers, engine, task, asked, None),
        }
        if baseline is not None:
            ways["with drafts"] = functools.partial(answers, engine, task, asked, baseline)
        # First calls cost more.
        answers(engine, replace(task, batch_size=8), asked[:8], None)
        rows += measured(method, ways, options.repeats, len(asked))
        if options.plain or baseline is None:
            fast = answers(engine, task, asked, baseline)
            if options.plain:
                rows[-1]["apart"] = apart(engine, task, asked, fast)
            baseline = baseline or fast
        engine.close()
        del ways
    return rows


def answers(
    engine: Transformers, task: Task, asked: Sequence[prompts.Asked], baseline: TaskResult | None
) -> TaskResult:
    return ask.run(engine, task, asked, KeptAnswers(task), baseline)[0]


def measured(method: str, ways: dict[str, Callable[[], Any]], repeats: int, questions: int) -> list[dict[str, Any]]:
    """Each way's questions a second, taken by turns; the median of the repeats."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["lm-eval"])
    lines = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        lines.append({"method": method, "way": name, "seconds": taken, "rate": questions / median})
        print(f"{method:10} {name:22} {questions / median:8.1f} questions/s {reference / median:6.2f}x", flush=True)
    return lines


def load(model: str, method: str, group_size: int) -> Transformers:
    spec = methods.spec(method)
    options = {field.name: field.default for field in spec.options}
    if "compute_dtype" in options:
        options["compute_dtype"] = "float32"  # few CPUs multiply bfloat16 at speed
    if "group_size" in options:
        options |= {"group_size": group_size, "texts": 32}
    place = str(BUILTIN_DIR) if model == "builtin" else str(Path(model).resolve())
    subject = Subject(place, None, method, None, options, str(BUILTIN_DIR / "calibration.jsonl"))
    quantized = None
    if spec.quantize is not None:
        cache = Path(tempfile.gettempdir()) / "evaluation-benchmark"
        cache.mkdir(exist_ok=True)
        with contextlib.chdir(Path.cwd()):
            quantized = str(transformers_engine.quantize(subject, NO_TRUST, None, cache, cache))
    return transformers_engine.load(subject, quantized=quantized)


def harness(engine: Transformers, task: Task, asked: Sequence[prompts.Asked]) -> list[str]:
    """The same prompts through the harness's own class for transformers models."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    prompter = prompts.Prompter(engine.tokenizer, task)
    how = {"until": list(prompter.style.stops), "max_gen_toks": task.max_new_tokens, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompter.text(each), how), i, metadata=("questions", i, 1))
        for i, each in enumerate(asked)
    ]
    lm = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=task.batch_size)
    found: list[str] = lm.generate_until(requests, disable_tqdm=True)
    return found


def apart(
    engine: Transformers, task: Task, asked: Sequence[prompts.Asked], fast: TaskResult
) -> dict[str, tuple[int, int]]:
    """In how many answers, as texts and as verdicts, the fast way and `generate` differ: in batches, and one by one."""
    asking = ask._Asking(engine, task, asked, KeptAnswers(task), None, "")
    longest_first = sorted(range(len(asked)), key=lambda i: -len(asking.prompts[i]))
    found = {}
    for name, size, order in (("in batches", task.batch_size or 1, longest_first), ("one by one", 1, range(100))):
        differ, turned = 0, 0
        for start in range(0, len(order), size):
            part = list(order[start : start + size])
            some = [asking.prompts[i] for i in part]
            texts = plain_generate.generate(engine.model, engine.tokenizer, some, asking.ends, "all")
            for i, decoded in zip(part, texts, strict=True):
                answer = asking.answer(i, decoded)
                differ += answer.text != fast.answers[i].text
                turned += answer.strict_correct != fast.answers[i].strict_correct
        found[name] = differ, turned
        print(
            f"{'':10} against generate {name}: {differ} of {len(order)} answers differ, {turned} verdicts", flush=True
        )
    return found


if __name__ == "__main__":
    main()
