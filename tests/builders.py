"""Records, budgets and reports that several tests are made of."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest_quantbudget
from pytest_quantbudget.budget.find import Budgets
from pytest_quantbudget.core.answers import Agreement, Answer, Divergence, Origin, TaskResult
from pytest_quantbudget.core.budget import Budget, Source
from pytest_quantbudget.core.engines import Adapter, EngineFacts, Server
from pytest_quantbudget.core.gpu_usage import Clocks, Energy, GpuMemory, Occupant, PhaseMemory, Roofline
from pytest_quantbudget.core.gpus import Commit, Gpu, Machine, MergedReport
from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.load import Level, Load, LoadResult, Served
from pytest_quantbudget.core.measurement import Device, Failure, Measurement, Perplexity, Speed
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import Rule, Subject, Task, Text, Workload
from pytest_quantbudget.core.verdict import OVER, LimitReport, Update, Verdict
from pytest_quantbudget.judge.advice import Advice, Fit, Standing
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.judge.noise import Noise, TaskNoise
from pytest_quantbudget.judge.trend import Moved
from pytest_quantbudget.measure.hardware import LocalGpus
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.models.estimate.memory import Estimate, LayerKind
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import BudgetReport, JudgedFrom, MethodReport, Report, StoredFrom, Together

COUNTING = """
from pytest_quantbudget.measure import process

original = process.run

def counted(*args, name, **more):
    with open("started.txt", "a") as file:
        file.write(name.removeprefix("quantbudget-") + "\\n")
    return original(*args, name=name, **more)

process.run = counted

def pytest_unconfigure():
    process.run = original
"""

IDS = [
    "small.yaml::fp32::max_weights",
    "small.yaml::fp32::min_wordmath",
    "small.yaml::bf16::max_weights_ratio",
    "small.yaml::bf16::max_wordmath_drop",
    "small.yaml::bf16::max_wordmath_flips",
]


def last(*_: object) -> None:
    """What a process does that is still there a minute later; it is found here by one that is started afresh."""
    time.sleep(60)


def outcomes(report: Path) -> dict[str, str]:
    """Test id to outcome, from a JSON report."""
    budgets = json.loads(report.read_text())["budgets"]
    limits = [limit for b in budgets for m in b["methods"] for limit in m["limits"]]
    return {limit["id"]: limit["verdict"]["outcome"] for limit in limits}


def session(root: Path, gpus: Sequence[Gpu] = (), *, require_gpu: bool = False) -> Session:
    """A session whose runner sees these GPUs, and measures into `root`."""
    local = LocalGpus()
    local.usable = list(gpus)
    return Session(root, Budgets(), Needs(), lambda needs: Runner(needs, local, root, folder=root), require_gpu)


H100 = Device("NVIDIA H100 80GB HBM3", "GPU-1", 80 * 2**30, "9.0", "13.0", 4)
GIB = 2**30
STEADY = tuple(math.exp(0.01 * step) for step in (-2, -1, 0, 1, 2))  # of logarithms: standard deviation 0.0158


def answers(*outcomes: tuple[int, bool]) -> tuple[Answer, ...]:
    """So many right, so many wrong, and so on."""
    flat = [right for count, right in outcomes for _ in range(count)]
    return tuple(Answer(i, "", "1", "1", right, right, False, 5) for i, right in enumerate(flat))


def measured(budget: Budget, times: Sequence[float] = STEADY, b: int = 0, c: int = 0, **more: object) -> Measurement:
    """nf4 with 6.001 GiB of weights and 7 GiB of memory, whose answers differ from `base` in `b` and `c`."""
    task = budget.tasks["gsm8k"]
    n = task.questions or 0
    told = answers((n // 2 - b, True), (b, False), (c, True), (n - n // 2 - c, False))
    speed = Speed(budget.workload, tuple(0.05 * t for t in times), tuple(times), 7 * GIB, None, peaks=(7 * GIB,) * 5)
    record = Measurement(
        budget.method("nf4").subject, device=H100, load_time_s=2.5, weights=int(6.001 * GIB), speeds=(speed,),
        tasks=(TaskResult(task, told, 1.0),),
    )  # fmt: skip
    return replace(record, **more)  # type: ignore[arg-type]


WORKLOAD = Workload(512, 128, 1, 2, True)
TASK = Task(
    "gsm8k", 100, 5, 0, "/data/q.jsonl", 256, 32, "strict", "gsm8k_cot", "/data/s.jsonl", "harness", True, "Be brief.",
    False, 1.5, True, "/data/t.yaml", 50, "acc", 20, "topic",
)  # fmt: skip
TEXT = Text("/data/wiki.txt", 512, 256)
LOAD = Load(512, 3, (2,), (1.5,), 2, 4, 1, 60.0, "/data/wiki.txt", "guidellm", "/venv/bin/python")
LOADED = LoadResult(
    LOAD,
    (
        Level("concurrency", 2, 2.5, (Served(0.0, 0.05, "1000 1250", 3, "", 16), Served(0.1, error="timeout")), 0.001),
        Level("rate", 1.5, 2.5, (Served(0.25, 0.05, "2000", 3), Served(0.5, 0.0625, "900 1", 3)), 0.002),
    ),
    Origin("2026-01-01T00:00:00Z", True), 100, 60, "not told", ("a note",), "guidellm 0.8.1", "sha256:00ff",
)  # fmt: skip
ANSWER = Answer(7, "#### 2", "2", "2", True, True, False, 5, (3, 1, 4), -2.5, "00ff", 1.25, "trains")
AGREEMENT, DIVERGENCE = (
    Agreement("00ff", 100, 98, -40.0, -38.5, (60, 40), (59, 39), (0.5, 1.0)),
    Divergence(
        100, 97, 0.01, 0.5, 0.2, "fp16-00ff", (60, 40), (58, 39), (0.4, 0.6), 20, 0.001, 0.05, ("400000000", "6 0")
    ),
)
SUBJECT = Subject(
    "Qwen/Qwen3-8B", "abc", "nf4", "Qwen/x", {"double_quant": True, "group": -1, "t": 6.0}, "/data/c",
    same_as_source=("tokenizer",), against="00ff", kind="nf4", engine="openai", engine_options={"max_model_len": 8},
    python="/venv/bin/python", server=Server("http://127.0.0.1:1/v1", ("serve", "8"), "/data", "q", "KEY", 60.0, 8),
    adapter=Adapter("acme/lora", merge=True, revision="abc"),
)  # fmt: skip
RULE = Rule("gsm8k", "drop", "max", ("*",), (2.5,), 0.95)
MEMORY = PhaseMemory("prefill", GpuMemory(7, 8, 9, 10, 1, 2), {"GPU-1": GpuMemory(7, 8, 9, 10, 1, 2)}, "pid 7")
ORIGIN = Origin("2026-01-01T00:00:00Z", True)
MEASUREMENT = Measurement(
    subject=SUBJECT,
    revision="abcdef",
    device=Device("NVIDIA L4", "GPU-1", 24 * 2**30, "8.9", "13.0", 4),
    quantized="/cache/x",
    quantize_s=12.5,
    quantized_at="2026-01-01T00:00:00Z",
    kernels_s=140.5,
    load_time_s=2.0,
    weights=6 * 2**30,
    receipt=Receipt(
        (Layers("linear", "Linear4bit", "bitsandbytes.nn.modules", "bitsandbytes", 4, 252, 6_945_767_424),)
    ),
    load_memory=MEMORY,
    placement={"cuda:0": "all"},
    offloaded="parts of it are on cpu",
    loaded=ORIGIN,
    replies={"The three primary colours are": " red,\nyellow and \U0001f535 blue"},
    speeds=(
        Speed(
            WORKLOAD,
            (0.05, 0.06),
            (1.5, 1.6),
            7 * 2**30,
            8 * 2**30,
            ORIGIN,
            (7 * 2**30,),
            ("hot",),
            (0.04, 0.05),
            (1.4, 1.5),
            (2.5,),
            (MEMORY,),
            (Occupant("GPU-1", 123, "python", 2**30, True),),
            35,
            (Clocks("GPU-1", (1400,), (2600,), (312.5,), (61,), 1900, 3100, 400.0),),
            Roofline(6 * 2**30, 2**26, 0.02, 3e11, 0.7, 4),
            (8 * 2**30,),
            (9 * 2**30,),
            "compiled",
            12.5,
            "other tokens in 1 of 2 sequences",
            ("AwqMarlinLinear",),
            Energy((12.5, 13.0), (310.0, 312.5), 0.1, "one of two GPUs alone"),
        ),
    ),
    tasks=(
        TaskResult(
            TASK,
            (ANSWER,),
            3.25,
            ORIGIN,
            1,
            AGREEMENT,
            DIVERGENCE,
            "acc,none",
            9,
            "decided",
            "00ff",
            "sha256:0",
            25.0,
            "2026-01-01T00:00:00Z",
            "00ff",
        ),
    ),
    perplexities=(Perplexity(TEXT, 320.5, 100, ORIGIN, (60, 40), (200.0, 120.5), "sha256:00ff", "00ff"),),
    failures=(Failure("task math", "error", "out of memory", "log\nlines", False),),
    libraries={"torch": "2.9.0"},
    notes=("the cache cannot be written",),
    checkpoint_revision="c0ffee",
    calibration="sha256:00ff",
    made_with={"group_size": 128},
    unread=("mtp.weight",),
    disk=6 * 2**30,
    took_s=60.0,
    allowed_s=7200.0,
    engine=EngineFacts("vllm", "0.32", {"kv": 9}, 4096, {"seed": "yes"}, {"backend": "x"}),
    untold={"disk": "the server does not tell"},
    loads=(LOADED,),
    adapter_revision="abc",
    packing=Packing("fp8", "fp8 W8A8", 8.0, ("lm_head",)),
    decompressed="it is unpacked when it is loaded",
)
OVER_VRAM = LimitReport(
    "q.yaml::nf4::max_vram",
    "max_vram",
    9,
    Verdict(OVER, "over", 7.5, 7.0, "7 GiB", "GiB", "log", True, OVER, 7.25, 7.75, 0.95, 0.01, n=450, of="questions"),
    Update("7 GiB", "7.6 GiB", "measured 7.50 GiB, margin 1.3 % (equal peaks)", 0.01, "why"),
)
GPU = Gpu(0, "NVIDIA L4", "GPU-1", 24 * 2**30, 23 * 2**30, "8.9", "580.1")
MACHINE = Machine("Linux", "3.11.7", "a CPU", 4, 16 * 2**30, (GPU,), {"pytest": "9.0"})
REPORT = Report(
    version=document.VERSION,
    created="2026-01-01T00:00:00+00:00",
    machine=MACHINE,
    commit=Commit("f" * 40, True),
    budgets=(
        BudgetReport(
            file="budgets/q.yaml",
            model="Qwen/Qwen3-8B",
            revision="abc",
            baseline="fp16",
            workload=WORKLOAD,
            text=TEXT,
            noise=Noise("fp16", 1, {"ttft": (0.05, 0.06)}, (TaskNoise("gsm8k", 100, (1,), (2,)),), ("a note",)),
            prompt="Hello",
            tasks=(TASK,),
            together=(Together("q.yaml::nf4::max_gsm8k_drop", 0.01, 0.02),),
            stored=StoredFrom("v1.json", "q.yaml", "nf4", "2025-12-31T00:00:00+00:00", "a CPU"),
            uses=(replace(OVER_VRAM, id="q.yaml::use::edge", name="edge"),),
            advice=Advice(
                ("GPU memory",),
                ("tokens/s of 1 of 3 methods",),
                (Standing("nf4", "misses", "max_vram", "dominated", "awq-int4", "less memory (6 GiB, 7 GiB)"),),
                (Fit("edge", "awq-int4", "the only one that meets all its limits"),),
            ),
            changes=(
                Moved(
                    "nf4",
                    "min_tokens_per_s",
                    "tokens/s",
                    60.0,
                    57.0,
                    -5.0,
                    "%",
                    True,
                    False,
                    "2025-12-31T00:00:00Z",
                    2,
                    (61.0, 60.0, 57.0),
                ),
            ),
            sources=(Source("budgets/q.yaml", "model: Qwen/Qwen3-8B\n"),),
            methods=(
                MethodReport(
                    "nf4",
                    MEASUREMENT,
                    (OVER_VRAM,),
                    Estimate(9, 8, (LayerKind("MLP", 9, 8, 1, 4),), 2, 1, 11, 12, ("taken to be so",), True),
                    LOAD,
                    True,
                    "old.json",
                    MEASUREMENT,
                ),
            ),
            machine="NVIDIA L4",
        ),
    ),
    judged_from=JudgedFrom("old.json", "2025-12-31T00:00:00+00:00"),
    merged_from=(MergedReport("old.json", "2025-12-31T00:00:00+00:00", MACHINE, Commit("e" * 40, False)),),
    notes=("the CPU is a CPU in old.json; another CPU in new.json",),
)


def with_method(folder: Path, name: str, file: str) -> None:
    """A copy of the package in a folder that has one method more: a file of `tests/data`, and a line of the mapping."""
    package = folder / "pytest_quantbudget"
    shutil.copytree(Path(pytest_quantbudget.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    module = file.removesuffix("_method.py")
    shutil.copy(Path(__file__).parent / "data" / file, package / "models" / "methods" / f"{module}.py")
    mapping = package / "models" / "methods" / "__init__.py"
    before, line = mapping.read_text(), f'    "{name}": "{module}",\n'
    after = before.replace('    "awq-int4": "awq",\n', f'    "awq-int4": "awq",\n{line}')
    assert len(after) == len(before) + len(line)
    mapping.write_text(after)
