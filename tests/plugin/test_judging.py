"""A gate that asks for a GPU, or a model too large for it, is neither measured nor passes. GPUs are simulated."""

from pathlib import Path

import pytest
from builders import session

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Device, Measurement
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.plugin.judging import verdict_on
from pytest_quantbudget.plugin.session import Session

SMALL_GPU = Gpu(0, "NVIDIA T4", "GPU-1", 16 * 2**30, 16 * 2**30, "7.5", "580.1")
TEXT = """
model: builtin
baseline: fp16
gpu: {min_vram: 20 GiB}
methods:
  fp16:
    budget: {max_weights: 20 GiB}
  nf4:
    gpu: {min_vram: 8 GiB}
    budget: {max_weights_ratio: 0.5, max_weights: {"NVIDIA*": 5 MiB}}
"""
T4 = Gpu(0, "Tesla T4", "GPU-1", 15 * 2**30, 15 * 2**30, "7.5", "580.1")
LARGE = """
model: Qwen/Qwen3-8B
baseline: fp16
methods:
  fp16:
    budget: {max_weights: 18 GiB, max_vram: 18 GiB}
  nf4:
    budget: {max_vram_ratio: 0.5, max_vram: 7 GiB}
"""
PEAK = "the workload's predicted peak is 15.4 GiB, and Tesla T4 has 15.0 GiB"


def judged(tmp_path: Path, limit: str, run: Session) -> Verdict:
    """The verdict on a limit of nf4."""
    path = tmp_path / "b.yaml"
    path.write_text(TEXT)
    budget = run.budgets.load(path)
    method = budget.method("nf4")
    (line,) = (one for one in method.limits if one.name == limit)
    assert method.gpu is not None
    return verdict_on(run, budget, method, line, [method.gpu])


def on_cpu(self: Runner, budget: Budget, method: Method) -> Measurement:
    """A measurement that ran on the CPU."""
    return Measurement(method.subject, device=Device("cpu", None, None, None, None, 2), weights=1000)


@pytest.mark.parametrize(("required", "outcome"), [(False, "skipped"), (True, "failed")])
def test_a_baseline_that_the_gpu_cannot_hold_is_not_measured(tmp_path: Path, required: bool, outcome: str) -> None:
    run = session(tmp_path, [SMALL_GPU], require_gpu=required)
    verdict = judged(tmp_path, "max_weights_ratio", run)
    assert verdict.outcome == outcome
    assert "the baseline fp16 needs a GPU with 20.0 GiB; found: NVIDIA T4" in verdict.message


@pytest.mark.parametrize(("required", "outcome"), [(False, "skipped"), (True, "failed")])
def test_figures_of_a_cpu_do_not_pass_where_a_gpu_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: bool, outcome: str
) -> None:
    monkeypatch.setattr(Runner, "measure", on_cpu)
    run = session(tmp_path, [SMALL_GPU], require_gpu=required)
    verdict = judged(tmp_path, "max_weights", run)
    assert verdict.outcome == outcome
    assert "torch cannot use it" in verdict.message


def test_a_limit_for_gpus_only_fails_on_a_cpu_where_a_gpu_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "measure", on_cpu)
    run = session(tmp_path, [], require_gpu=True)
    path = tmp_path / "b.yaml"
    path.write_text(TEXT)
    budget = run.budgets.load(path)
    method = budget.method("nf4")
    verdict = verdict_on(run, budget, method, method.limits[1])
    assert verdict.outcome == "failed"
    assert "has no limit for 'cpu'" in verdict.message


@pytest.mark.parametrize(("required", "outcome"), [(False, "skipped"), (True, "failed")])
@pytest.mark.parametrize(
    ("method", "limit", "words"),
    [
        ("fp16", "max_vram", f"fp16: max_vram not measured: cannot fit: {PEAK}"),
        ("fp16", "max_weights", "its weights are predicted to take 15.3 GiB, and Tesla T4 has 15.0 GiB"),
        ("nf4", "max_vram_ratio", f"nf4: max_vram_ratio not measured: the baseline fp16 cannot fit: {PEAK}"),
    ],
)
def test_what_cannot_fit_is_not_loaded(
    tmp_path: Path, method: str, limit: str, words: str, required: bool, outcome: str
) -> None:
    run = session(tmp_path / "run", [T4], require_gpu=required)
    (tmp_path / "b.yaml").write_text(LARGE)
    budget = run.budgets.load(tmp_path / "b.yaml")
    asked = budget.method(method)
    (line,) = (one for one in asked.limits if one.name == limit)
    run.plan(budget, asked, [line])
    verdict = verdict_on(run, budget, asked, line)
    assert verdict.outcome == outcome
    assert words in verdict.message
    assert not (tmp_path / "run").exists()  # nothing was measured
