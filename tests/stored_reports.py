"""Hand-made reports, and budgets that are judged by them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pytest_quantbudget.budget.find import Budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import Agreement, Answer, Divergence, TaskResult
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import Gpu, Machine
from pytest_quantbudget.core.measurement import Device, Measurement, Perplexity, Speed
from pytest_quantbudget.core.verdict import WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.models import hub
from pytest_quantbudget.plugin.judging import verdict_on
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.report import again, document
from pytest_quantbudget.report.document import BudgetReport, MethodReport, Report
from pytest_quantbudget.report.merged import Merged
from pytest_quantbudget.report.stored_run import StoredRun
from pytest_quantbudget.tasks import prompts

GIB = 2**30
COMMIT = "0123456789abcdef0123456789abcdef01234567"
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-1", 80 * GIB, 9 * GIB, "9.0", "580.1")
ON_H100 = Device(H100.name, H100.uuid, 79 * GIB, "9.0", "13.0", threads=2)
L4 = replace(H100, name="NVIDIA L4", uuid="GPU-9", total=24 * GIB, capability="8.9")
ON_L4 = Device(L4.name, L4.uuid, 23 * GIB, "8.9", "13.0", threads=2)
ON_CPU = Device("cpu", None, None, None, None, threads=2)
TEXT = """
model: org/model
baseline: fp16
calibration: calibration.txt
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  sums: {file: sums.jsonl, questions: 10, divergence: true}
perplexity: {file: wiki.txt, window: 64, stride: 32}
methods:
  fp16:
    budget: {min_sums: 50}
  nf4:
    options: {double_quant: true}
    budget: {max_weights: 5 GiB, max_vram: 6 GiB, max_sums_drop: 20, max_kl: 0.5, max_ppl_ratio: 2}
  gptq-int4:
    budget: {max_weights: 5 GiB}
  awq-int4:
    checkpoint: org/awq
    adapter: org/lora
    budget: {max_weights: 5 GiB}
"""
ALL = {
    *["fp16 min_sums", "nf4 max_weights", "nf4 max_vram", "nf4 max_sums_drop", "nf4 max_kl", "nf4 max_ppl_ratio"],
    *["gptq-int4 max_weights", "awq-int4 max_weights"],
}
NF4 = {limit for limit in ALL if limit.startswith("nf4")}
TASK = {"fp16 min_sums", "nf4 max_sums_drop", "nf4 max_kl"}


def furnish(folder: Path) -> Path:
    """A directory with the files that the budget names."""
    questions = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(20)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "calibration.txt").write_text("a text\n" * 128)
    (folder / "wiki.txt").write_text("another text\n" * 128)
    return folder


def read(room: Path, text: str, name: str = "b.yaml", *, elsewhere: bool = False) -> Budget:
    (room / name).write_text(text)
    return load_budget(room / name, elsewhere=elsewhere)


def measured(budget: Budget, method: Method, device: Device = ON_H100) -> Measurement:
    """A complete measurement, as a run of the budget would have told it."""
    subject = method.subject
    size, base = {"fp16": 4, "nf4": 1}.get(method.name, 2) * GIB, budget.baseline == method.name
    answers = tuple(Answer(n, "#### 1", "1", "1", n != 3 or base, True, False, 5) for n in range(10))
    tasks = []
    for task in budget.tasks.values():
        answered = TaskResult(task, answers, 1.0, name=f"{method.name}'s", source=prompts.state(task))
        parts = (1,) * 10, (1,) * 9 + (0,), (0.1,) * 10
        thought = Agreement(f"{budget.baseline}'s", 10, 9, -3.0, -2.0, *parts)
        far = Divergence(10, 9, 0.1, 0.3, 0.2, f"{budget.baseline}-00ff", (10,), (9,), (1.0,))
        tasks.append(answered if base else replace(answered, agreement=thought, divergence=far))
    texts = [budget.text] if budget.text else []
    return Measurement(
        subject,
        revision=hub.content_hash(Path(subject.model)) if Path(subject.model).is_absolute() else COMMIT,
        device=device,
        load_time_s=1.0,
        weights=size,
        speeds=(Speed(budget.workload, (0.1, 0.2), (0.1, 0.2), size + GIB if device is ON_H100 else None, None),),
        tasks=tuple(tasks),
        perplexities=tuple(Perplexity(t, 20.0, 10, None, (10,), (20.0,), files.file_hash(Path(t.file))) for t in texts),
        checkpoint_revision=COMMIT if subject.checkpoint else None,
        adapter_revision=COMMIT if subject.adapter else None,
        calibration=files.file_hash(Path(subject.calibration)) if subject.calibration else None,
    )


def report(budget: Budget, **changes: Callable[[Measurement], Measurement | None]) -> Report:
    """The report of a run on one H100; `changes` are made to what was measured of the methods they name."""
    methods = []
    for method in budget.methods:
        record = measured(budget, method)
        change = changes.get(method.name)
        methods.append(MethodReport(method.name, change(record) if change else record, ()))
    return Report(
        version=document.VERSION,
        created="2026-01-01T00:00:00+00:00",
        machine=Machine("Linux", "3.11.7", "a CPU", 4, None, (H100,), {}),
        commit=None,
        budgets=(
            BudgetReport(
                file=budget.path.name,
                model=budget.model,
                revision=None,
                baseline=budget.baseline,
                workload=budget.workload,
                prompt=budget.prompt,
                tasks=tuple(budget.tasks.values()),
                methods=tuple(methods),
                text=budget.text,
            ),
        ),
    )


def job(
    budget: Budget,
    *methods: str,
    device: Device = ON_H100,
    change: Callable[[Measurement], Measurement] = lambda record: record,
) -> Report:
    """The report of a run that was asked for some methods; the baseline is measured with each, as in a run."""
    gpu = {H100.name: H100, L4.name: L4}.get(device.name)
    found = []
    for method in budget.methods:
        if method.name in methods or method.name == budget.baseline:
            asked = method.limits if method.name in methods else ()
            verdicts = tuple(
                LimitReport(f"b.yaml::{method.name}::{limit.name}", limit.name, limit.line, Verdict(WITHIN, ""))
                for limit in asked
            )
            found.append(MethodReport(method.name, change(measured(budget, method, device)), verdicts))
    whole = report(budget)
    machine = replace(whole.machine, gpus=(gpu,) if gpu else ())
    return replace(whole, machine=machine, budgets=(replace(whole.budgets[0], methods=tuple(found)),))


def judging(room: Path, report: Report, *, require_gpu: bool = False) -> Session:
    source = again.Stored("report.json", report, room / "hashes")
    return Session(
        room, Budgets(elsewhere=True), Needs(), lambda needs: StoredRun(needs, Merged((source,))), require_gpu
    )


def judged(room: Path, text: str, report: Report, *, require_gpu: bool = False) -> dict[str, Verdict]:
    """The verdict on each limit of a budget, as `METHOD LIMIT`."""
    (room / "b.yaml").write_text(text)
    session = judging(room, report, require_gpu=require_gpu)
    budget = session.budgets.load(room / "b.yaml")
    verdicts = {}
    for method in budget.methods:
        session.plan(budget, method, method.limits)
        for limit in method.limits:
            needs = [method.gpu] if method.gpu else []
            verdicts[f"{method.name} {limit.name}"] = verdict_on(session, budget, method, limit, needs)
    return verdicts


def refused(verdicts: Mapping[str, Verdict], words: str) -> set[str]:
    """The limits that failed with these words; all others hold."""
    failed = {name: v for name, v in verdicts.items() if v.outcome != "within"}
    assert all(v.outcome == "failed" for v in failed.values()), failed
    assert all(words in v.message for v in failed.values()), failed
    return set(failed)
