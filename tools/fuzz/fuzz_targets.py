"""What is fuzzed: functions of bytes that return where the code does as it promises and raise where it does not.

An input is the bytes of one file. For `budget` it is up to three, parted by lines of `%%%%`: the budget, `parent.yaml`
for its `extends`, and `questions.jsonl` for its tasks. For `entry` it is an entry of the results store, or only its
JSON, which is then given a checksum: no mutation would ever hit the right one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.gpus import Gpu, Machine, lacking
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.judge import needs
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure import store
from pytest_quantbudget.report import document, table
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.page import render

SEPARATOR = b"\n%%%%\n"
BUDGET_FILES = ("budget.yaml", "parent.yaml", "questions.jsonl")
GPU = Gpu(0, "NVIDIA H100", "GPU-0", 2**36, 2**36, "9.0", "1")
MAX_MESSAGE = 300_000

KEY: Mapping[str, Any] = {"model": "sha256:0", "method": "nf4", "options": {"a": [1, 2.5, None, "\u00e9"]}}
JUDGED = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 4, new_tokens: 4}
tasks: {t: {file: builtin}}
methods:
  fp32:
    budget:
      max_vram: {cpu: 1 GiB, "NVIDIA*": 2 GiB}
      max_weights: 1 MB
      min_tokens_per_s: 1
      max_ttft: 1 ms
      min_t: 5
  nf4:
    budget:
      max_vram_ratio: 0.5
      max_weights_ratio: 0.5
      min_speedup: 1
      max_ttft_ratio: 2
      max_load_time: 1 s
      max_t_drop: 1
      max_t_flips: 2
"""

Target = Callable[[bytes], None]


@contextmanager
def targets() -> Iterator[Mapping[str, Target]]:
    """Every target by name, with an empty folder of its own for as long as the context lasts."""
    memory = Path("/dev/shm")  # where there is one, no disk slows the inputs down
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        judged = folder / "judged.yaml"
        judged.write_text(JUDGED)
        for_entries = load_budget(judged)
        yield {
            "budget": lambda data: budget(data, folder),
            "report": lambda data: report(data, folder),
            "entry": lambda data: entry(data, for_entries),
        }


def budget(data: bytes, folder: Path) -> None:
    """A budget file is read or refused with BudgetError; what is read can be reported."""
    parts = data.split(SEPARATOR, len(BUDGET_FILES) - 1)
    for name, part in zip(BUDGET_FILES, parts, strict=False):
        (folder / name).write_bytes(part)
    for name in BUDGET_FILES[len(parts) :]:
        (folder / name).unlink(missing_ok=True)
    try:
        found = load_budget(folder / BUDGET_FILES[0])
    except BudgetError as error:
        _printable(str(error))
        return
    report = _report_of(found)
    document.write(folder / "r.json", report)
    assert document.read(folder / "r.json") == report, "the report of this budget does not come back"
    for method in found.methods:
        assert method.subject.key
        assert needs.request(found, method, method.limits).subject == method.subject
        if method.gpu is not None:
            _printable(lacking(method.gpu, [GPU]) or "enough")


def _report_of(found: Budget) -> Report:
    """The report of a run in which nothing was measured."""
    return Report(
        version=document.VERSION,
        created="",
        machine=Machine("", "", "", 1, None, (), {}),
        commit=None,
        budgets=(
            BudgetReport(
                file=str(found.path),
                model=found.model,
                revision=None,
                baseline=found.baseline,
                workload=found.workload,
                prompt=found.prompt,
                tasks=tuple(found.tasks.values()),
                methods=tuple(MethodReport(m.name, Measurement(m.subject), ()) for m in found.methods),
            ),
        ),
    )


def report(data: bytes, folder: Path) -> None:
    """A report is read or refused with ValueError; what is read can be shown and written again."""
    path = folder / "report.json"
    path.write_bytes(data)
    try:
        found = document.read(path)
    except ValueError as error:
        if type(error) not in (ValueError, document.NoReport):
            raise AssertionError(f"{type(error).__name__} is a detail of the reader") from error
        _printable(str(error))
        return
    for line in table.lines(found, replies=True):
        line.text.encode()
    if importlib.util.find_spec("jinja2"):
        render.render(found).encode()
    codec.write_json(path, found)
    assert document.read(path) == found, "this report does not come back"


def entry(data: bytes, judged: Budget) -> None:
    """An entry is whole and of its key, or refused with Damaged; figures of any form are refused or can be judged."""
    if not data.startswith(store.MAGIC.encode()):
        data = f"{store.MAGIC} {hashlib.sha256(data).hexdigest()}\n".encode() + data + b"\n"
    try:
        found = store.decode(data, KEY)
    except store.Damaged as error:
        _printable(str(error))
        return
    assert store.decode(store.encode(KEY, found.payload, found.made), KEY) == found, "this entry does not come back"
    assert found.at
    found.younger_than(1)
    for cls in (Measurement, TaskResult):
        try:
            record = codec.from_builtins(cls, found.payload)
        except ValueError as error:
            _printable(str(error))
            continue
        if isinstance(record, Measurement):
            _judge(judged, record)


def _judge(judged: Budget, record: Measurement) -> None:
    """Every verdict of a budget on one measurement, which serves its baseline too."""
    measured = {method.name: record for method in judged.methods}
    for method in judged.methods:
        for limit in method.limits:
            _printable(judge(judged, method, limit, measured).message)


def _printable(message: str) -> None:
    assert message.strip()
    assert len(message) < MAX_MESSAGE, f"a message of {len(message):,} characters"
    message.encode()
