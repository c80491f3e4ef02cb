"""What is fuzzed: functions of bytes that return where the code does as it promises and raise where it does not.

An input is the bytes of one file. For `budget` it is up to three, parted by lines of `%%%%`: the budget, `parent.yaml`
for its `extends`, and `questions.jsonl` for its tasks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pytest_quantbudget import records
from pytest_quantbudget.budget import Budget, load_budget
from pytest_quantbudget.hardware import Gpu, Machine, lacking
from pytest_quantbudget.measurement import Measurement
from pytest_quantbudget.report import document, terminal
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.yamlfile import BudgetError

SEPARATOR = b"\n%%%%\n"
BUDGET_FILES = ("budget.yaml", "parent.yaml", "questions.jsonl")
GPU = Gpu(0, "NVIDIA H100", "GPU-0", 2**36, 2**36, "9.0", "1")
MAX_MESSAGE = 300_000

Target = Callable[[bytes], None]


@contextmanager
def targets() -> Iterator[Mapping[str, Target]]:
    """Every target by name, with an empty folder of its own for as long as the context lasts."""
    memory = Path("/dev/shm")  # where there is one, no disk slows the inputs down
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        yield {"budget": lambda data: budget(data, folder), "report": lambda data: report(data, folder)}


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
        assert found.request(method, method.limits).subject == method.subject
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
    """A report is read or refused with ValueError; what is read can be printed as a table and written again."""
    path = folder / "report.json"
    path.write_bytes(data)
    try:
        found = document.read(path)
    except ValueError as error:
        if type(error) is not ValueError:
            raise AssertionError(f"{type(error).__name__} is a detail of the reader") from error
        _printable(str(error))
        return
    for line in terminal.lines(found, replies=True):
        line.text.encode()
    records.write_json(path, found)
    assert document.read(path) == found, "this report does not come back"


def _printable(message: str) -> None:
    assert message.strip()
    assert len(message) < MAX_MESSAGE, f"a message of {len(message):,} characters"
    message.encode()
