"""Reports whose pages are looked at: one with all that a page can show, and large ones."""

import json
import random
from dataclasses import replace
from pathlib import Path

from builders import GIB, MEASUREMENT, MEMORY, REPORT, TASK, WORKLOAD

from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.budget import Source
from pytest_quantbudget.core.files import file_hash
from pytest_quantbudget.core.gpu_usage import GpuMemory
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.core.verdict import OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.advice import Advice, Standing
from pytest_quantbudget.models.estimate.memory import Estimate
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report

HOSTILE = '</script><img src=x onerror="window.hacked = 1"><b>bold</b>'
SOURCE = """model: org/model
baseline: fp16
methods:
  fp16: {}
  nf4:
    budget:
      max_weights_ratio: 0.2       # too tight
      max_vram: 7 GiB
      max_sums_drop: 5
  awq-int4:
    budget: {max_weights: 5 GiB, max_disk: 5 GB}
"""
QUESTIONS = [("How many are 2 and 3?", 5), *((f"How many are {n} and {n}?", 2 * n) for n in range(2, 41))]
WORDS = [
    "so",
    "the",
    "shop",
    "sells",
    "apples",
    "for",
    "dollars",
    "each",
    "and",
    "she",
    "has",
    "left",
    "after",
    "lunch",
]
TASK_OF_SUMS = replace(TASK, name="sums", harness=None, shots_file=None, extract="strict", divergence=False)


def typical(folder: Path) -> Report:
    """fp16, nf4 and awq-int4 on a GPU: a limit is over, one undecided, one skipped; nf4 loses question 0 and gains two.

    The file of the questions is written into the folder.
    """
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": f"#### {a}"}) + "\n" for q, a in QUESTIONS))
    task = replace(TASK_OF_SUMS, file=str(file), questions=len(QUESTIONS), start=None)
    sizes = {"fp16": 16.0, "nf4": 6.0, "awq-int4": 5.5}
    limits = {
        "nf4": (
            _limit("nf4", "max_weights_ratio", 7, Verdict(OVER, "measured 0.375, limit 0.2", 0.375, 0.2)),
            _limit("nf4", "max_vram", 8, Verdict(WITHIN, "", 6.9 * GIB, 7.0 * GIB, "7 GiB", "GiB")),
            _limit(
                "nf4",
                "max_sums_drop",
                9,
                Verdict(WITHIN, "too few", 2.5, 5.0, "5", "points", decision=UNDECIDED, low=-4.0, high=9.0),
            ),
        ),
        "awq-int4": (
            _limit("awq-int4", "max_weights", 11, Verdict(WITHIN, "", 5.5 * GIB, 6.0 * GIB, "6 GiB", "GiB")),
            _limit("awq-int4", "max_disk", 11, Verdict(SKIPPED, f"not told: {HOSTILE} \u202e")),
        ),
    }
    methods = []
    for name, size in sizes.items():
        told = tuple(_answer(n, name) for n in range(len(QUESTIONS)))
        result = TaskResult(task, told, 1.0, source=file_hash(file), planned=len(told))
        record = _record(name, size, (result,))
        peak = int((size + 1) * GIB)
        estimate = Estimate(8 * 10**9, int(size * GIB), (), GIB // 2, GIB // 2, peak, peak + GIB)
        methods.append(MethodReport(name, record, limits.get(name, ()), estimate))
    standings = (
        Standing("fp16", "unknown", "it has no limits", "front", None, ""),
        Standing("nf4", "misses", "max_weights_ratio", "dominated", "awq-int4", "less memory (5.50 GiB, 6.00 GiB)"),
        Standing("awq-int4", "meets", "", "front", None, ""),
    )
    budget = replace(
        REPORT.budgets[0],
        file="budgets/release.yaml",
        model="org/model",
        baseline="fp16",
        text=None,
        tasks=(task,),
        methods=tuple(methods),
        stored=None,
        uses=(),
        workload=replace(WORKLOAD, repeats=6),
        advice=Advice(("weights", "sums"), (), standings, ()),
        sources=(Source("budgets/release.yaml", SOURCE),),
    )
    return replace(REPORT, budgets=(budget,))


def large(questions: int, methods: int) -> Report:
    """So many methods with so many answers each, of some 600 characters; a third of them have the baseline's text."""
    drawing = random.Random(0)
    base = [" ".join(drawing.choices(WORDS, k=110)) for _ in range(questions)]
    task = replace(TASK_OF_SUMS, file="/nowhere/sums.jsonl", questions=questions, start=None)
    reports = []
    for number in range(methods):
        answers = []
        for n, text in enumerate(base):
            same = not number or drawing.random() < 1 / 3
            own = text if same else f"{text[:300]} {' '.join(drawing.choices(WORDS, k=55))}"
            right = drawing.random() < 0.9
            answers.append(Answer(n, own, str(n), str(n), right, right, False, 120, prompt=f"{n:x}"))
        reports.append(
            MethodReport(
                f"method-{number}", _record(f"method-{number}", 2.0, (TaskResult(task, tuple(answers), 1.0),)), ()
            )
        )
    budget: BudgetReport = replace(
        REPORT.budgets[0],
        baseline="method-0",
        tasks=(task,),
        methods=tuple(reports),
        text=None,
        stored=None,
        uses=(),
        workload=replace(WORKLOAD, repeats=6),
        advice=None,
        noise=None,
    )
    return replace(REPORT, budgets=(budget,))


def _limit(method: str, name: str, line: int, verdict: Verdict) -> LimitReport:
    return LimitReport(f"budgets/release.yaml::{method}::{name}", name, line, verdict)


def _answer(number: int, method: str) -> Answer:
    right = (number != 0 if method == "nf4" else number not in (1, 2)) and number % 7 != 6
    value = QUESTIONS[number][1] + (0 if right else 1)
    text = HOSTILE if number == 7 else f"That makes {value}."
    if method == "nf4" and number == 9:
        text = f"Altogether {value}."
    return Answer(number, text, str(value), str(value), right, right, False, 5, prompt=f"{number:x}")


def _record(name: str, size: float, tasks: tuple[TaskResult, ...]) -> Measurement:
    """A measurement with `size` GiB of weights."""
    weights, spare = int(size * GIB), GIB
    held = GpuMemory(weights + spare, weights + spare + GIB // 4, weights + spare + GIB, None, None, None)
    loaded = GpuMemory(weights, weights, weights + GIB // 2, None, None, None)
    memory = [replace(MEMORY, phase=phase, total=held, gpus={}) for phase in ("prefill", "decode")]
    pace = 20 / size
    speed = Speed(
        replace(WORKLOAD, repeats=6),
        tuple(0.05 / pace * factor for factor in (1, 1.01, 0.98, 1.2, 1.02, 0.99)),
        tuple(2 / pace * factor for factor in (1, 1.02, 0.97, 1.1, 1.01, 0.99)),
        weights + spare,
        weights + spare + GIB // 4,
        memory=tuple(memory),
    )
    return replace(
        MEASUREMENT,
        subject=replace(MEASUREMENT.subject, method=name, against=None),
        weights=weights,
        load_memory=replace(MEMORY, phase="load", total=loaded, gpus={}),
        speeds=(speed,),
        tasks=tasks,
        perplexities=(),
        loads=(),
        decompressed=None,
        offloaded=None,
        untold=None,
        engine=None,
        replies={"Hello": f"{HOSTILE} \u202e says {name}"},
    )
