"""In which order a run measures, and what it leaves out."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import session

from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Request
from pytest_quantbudget.measure.bench import Bench, Gathered
from pytest_quantbudget.measure.runner import Runner

T4 = Gpu(0, "Tesla T4", "GPU-1", 15 * 2**30, 15 * 2**30, "7.5", "580.1")
TEXT = """
model: Qwen/Qwen3-8B
baseline: fp16
tasks: {ours: {file: builtin, questions: 8}}
methods:
  nf4:
    budget: {max_ours_drop: 20, max_vram: 7 GiB}
  fp16:
    budget: {max_vram: 18 GiB}
"""


@pytest.mark.parametrize(("gpus", "order"), [([T4], ["nf4"]), ([], ["fp16", "nf4"])], ids=["too large", "on a CPU"])
def test_the_baseline_is_measured_first_for_its_drafts_unless_it_cannot_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], order: list[str]
) -> None:
    asked: list[str] = []

    def measured(bench: object, request: Request, *_: object) -> Measurement:
        asked.append(request.subject.method)
        return Measurement(request.subject)

    monkeypatch.setattr(Bench, "measure", measured)
    run = session(tmp_path, gpus)
    (tmp_path / "b.yaml").write_text(TEXT)
    budget = run.budgets.load(tmp_path / "b.yaml")
    for method in budget.methods:
        run.plan(budget, method, method.limits)
    assert isinstance(run.measurer, Runner)
    run.measurer.measure_all([budget])
    assert list(dict.fromkeys(asked)) == order


@pytest.mark.parametrize(
    ("gpus", "ahead"), [([], ["datasets", "torch._inductor.compile_fx"]), ([T4], [])], ids=["on a CPU", "with a GPU"]
)
def test_what_several_planned_methods_import_is_imported_once_where_no_gpu_can_be_spoiled(
    tmp_path: Path, gpus: list[Gpu], ahead: list[str]
) -> None:
    (tmp_path / "b.yaml").write_text(TEXT + "  gptq-int4: {checkpoint: org/model, budget: {max_vram: 7 GiB}}\n")

    def asked(*planned: str) -> Sequence[str]:
        run = session(tmp_path, gpus)
        budget = run.budgets.load(tmp_path / "b.yaml")
        for method in map(budget.method, planned):
            run.plan(budget, method, method.limits)
        assert isinstance(run.measurer, Runner)
        return run.measurer.bench.ahead

    assert asked("fp16") == []
    assert asked("fp16", "nf4", "gptq-int4") == ahead


def test_a_baseline_whose_engine_gives_no_logits_is_not_loaded_to_learn_that(tmp_path: Path) -> None:
    run = session(tmp_path)
    text = TEXT.replace("questions: 8", "questions: 8, divergence: true").replace("max_ours_drop: 20", "max_kl: 1")
    (tmp_path / "b.yaml").write_text(text.replace("  fp16:\n", "  fp16:\n    engine: vllm\n"))
    budget = run.budgets.load(tmp_path / "b.yaml")
    method, base = budget.method("nf4"), budget.method("fp16")
    run.plan(budget, method, method.limits)
    assert isinstance(run.measurer, Runner)
    needs, (task,) = run.needs.requests, budget.tasks.values()
    answers = TaskResult(task, (Answer(0, "", "1", "1", True, True, False, 1, (3,)),), 1.0)
    gathered = Gathered(method.subject)
    found = run.measurer.bench._references(
        needs[method.subject.key], {task: answers}, needs[base.subject.key], gathered
    )
    failures = [failure for part in gathered.parts for failure in part.failures]
    assert (found, [failure.kind for failure in failures]) == ({}, ["not offered"])
    assert failures[0].message == "no logits of fp16: vllm does not give full logits"
