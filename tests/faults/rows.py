"""The rows: how each fault is made, which tests it hits, and what they say."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults import models
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.measure.store import encode, now

LIMITS = ("max_weights", "min_wordmath")

HEALTHY = """
model: builtin
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks: {wordmath: {file: builtin, questions: 12, max_new_tokens: 96}}
methods: {fp32: {budget: {max_weights: 3 MiB, min_wordmath: 50}}}
"""


@dataclass(frozen=True)
class Row:
    """One fault, in a budget of its own beside a healthy one.

    `words` is a pattern for all of what the tests hit say after `METHOD: LIMIT not measured: `, and `hits` are their
    limits. `starts` is how many measuring processes the method takes (a crash is tried once), and `note` a
    pattern for a line of the report. `change` breaks a copy
    of the built-in model; faults without one are made in the measuring process, by the function of their name.
    """

    name: str
    words: str
    method: str = "nf4"
    hits: tuple[str, ...] = LIMITS
    outcome: str = "failed"
    change: Callable[[Path], None] | None = None
    checkpoint: bool = False
    model: str = ""
    questions: str = "builtin"
    asked: int = 4
    right: int = 1  # percent, at least
    more: str = ""
    starts: int = 1
    note: str = ""

    @property
    def budget(self) -> str:
        return f"{self.name}.yaml"

    def write(self, room: Path) -> None:
        """The budget and its model."""
        model = self.model or f"./{self.name}"
        if not self.model:
            folder = room / self.name
            models.copy(folder)
            models.configure(folder, fault=self.name)  # no two rows share a model, and so what is stored
            if self.change:
                self.change(folder)
        checkpoint = f"checkpoint: {model}, " if self.checkpoint else ""
        if self.questions != "builtin":
            shutil.copy(BUILTIN_DIR / "questions.jsonl", room / self.questions)
        (room / self.budget).write_text(
            f"model: {'builtin' if self.checkpoint else model}\ncalibration: builtin\n{self.more}\n"
            f"tasks: {{wordmath: {{file: {self.questions}, questions: {self.asked}, max_new_tokens: 96, "
            f"batch_size: {self.asked}}}}}\n"
            f"methods: {{{self.method}: {{{checkpoint}budget: {{max_weights: 64 MiB, min_wordmath: {self.right}}}}}}}\n"
        )


DIED = r"the measuring process was killed by {} during phase '{}'"
LATE = r"not finished within its timeout of {}\.00 s: ended during phase .{}."
HUB = r"ConnectionError: somebody/model is not on this machine, and the hub \(http://127.0.0.1:[0-9]+\) {}"
ANSWERS = ("min_wordmath",)
BROKEN = (
    Row("out-of-memory-loading", r"out of memory: .*[Cc]an(no|')t allocate memory.*", change=models.large),
    Row("killed", DIED.format(r"SIGKILL \(the system's out-of-memory killer\?\)", "load")),
    Row("killed-quantizing", DIED.format(r"SIGKILL \(.*\)", "quantize"), "gptq-int4"),
    Row("segfault", DIED.format("SIGSEGV", "load")),
    Row("segfault-answering", DIED.format("SIGSEGV", "task wordmath"), hits=ANSWERS),
    Row("abort", DIED.format("SIGABRT", "load")),
    Row("leaves-at-once", "the measuring process ended with exit code 0 during phase 'load'"),
    Row("hang", LATE.format("2", "load"), more="timeout: 2 s"),
    Row("hang-deaf", LATE.format("2", "load"), more="timeout: 2 s"),
    Row("hang-answering", LATE.format("6", "task wordmath"), hits=ANSWERS, more="timeout: 6 s"),
    Row("prints-forever", LATE.format("2", "load"), more="timeout: 2 s"),
    Row("loader-exception", r"RuntimeError: CUDA Setup failed despite GPU being available\."),
    Row("nan-weights", "NotFinite: .* logits are NaN or infinite on 8 random tokens", "fp32", change=models.nan),
    Row("nan-answering", "NotFinite: logits became NaN or infinite while answering task wordmath", hits=ANSWERS),
    Row("silent", "ValueError: every answer is empty: .*", "fp32", hits=ANSWERS, change=models.silent),
    Row(
        "truncated-weights",
        r"ValueError: truncated-weights/model\.safetensors is truncated: it holds 500,000 bytes of 1,152,752",
        "fp32",
        change=models.cut,
    ),
    Row("no-weights", "ValueError: no-weights holds no safetensors weights; .*", "fp32", change=models.no_weights),
    Row("other-shape", "ValueError: .* holds .* in the shape .*", "fp32", change=models.other_shape),
    Row(
        "quantized-already",
        "ValueError: the model in .* is already quantized \\(gptq\\); bf16 needs unquantized weights",
        "bf16",
        change=models.claims_gptq,
    ),
    Row("claims-nf4", "ValueError: nf4 left every layer unquantized: .*", checkpoint=True, change=models.claims_nf4),
    Row(
        "other-format",
        "ValueError: the checkpoint in .* is quantized with gptq; .* needs a bitsandbytes checkpoint",
        checkpoint=True,
        change=models.claims_gptq,
    ),
    Row(
        "no-tokenizer",
        "ValueError: the tokenizer returned no tokens for the questions; are its files missing.",
        "fp32",
        hits=ANSWERS,
        change=models.no_tokenizer,
    ),
    Row(
        "import-error", r"ImportError: libcudart\.so\.11\.0: cannot open shared object file: No such file or directory"
    ),
    Row("hub-stalls", HUB.format("has not answered within 3 s"), "fp32", model="somebody/model"),
    Row(
        "questions-cut-meanwhile",
        "ValueError: cut-meanwhile.jsonl was changed while the run was going on",
        hits=ANSWERS,
        questions="cut-meanwhile.jsonl",
    ),
)
SHRUNK = r"nf4: out of memory with 128 questions of wordmath at once; \d+ were answered at once"
CALM = (
    Row("out-of-memory-answering", "", hits=(), asked=128, right=90, note=SHRUNK),
    Row("prints", "", hits=()),
    Row("leaves-a-process", "", hits=()),
    Row("no-pad-token", "", "fp32", hits=(), change=models.no_pad),
    Row("no-pad-no-end", "", "fp32", hits=(), change=models.no_pad_no_end),
    Row(
        "missing-package",
        r"gptq-int4 needs gptqmodel: pip install 'pytest-quantbudget\[gptqmodel\]'",
        "gptq-int4",
        outcome="skipped",
        starts=0,
    ),
    Row("half-missing", "No module named 'bitsandbytes_kernels': pip install bitsandbytes-kernels", outcome="skipped"),
)
FRESH = (
    Row("forks-and-crashes", DIED.format("SIGSEGV", "load")),
    Row("hub-unreachable", HUB.format("cannot be reached: ConnectError: .*refused"), "fp32", model="somebody/model"),
)
GROUPS = {"broken": BROKEN, "calm": CALM, "fresh": FRESH}
ENVIRON = {"broken": {}, "calm": {"FAULT_MISSING": "gptqmodel"}, "fresh": {"HF_ENDPOINT": "http://127.0.0.1:9"}}
HANG = Row("hang", "")


def into_the_future(store: Path) -> int:
    """Date all entries of a store a year ahead; how many there are."""
    entries = sorted(store.rglob("*.entry"))
    for path in entries:
        content = json.loads(path.read_bytes().partition(b"\n")[2])
        made = now() + datetime.timedelta(days=365)
        path.write_bytes(encode(content["key"], content["payload"], made))
    return len(entries)
