"""A checkpoint that the engine runs decompressed: its quality is judged, its memory and speed are not."""

from dataclasses import replace

import pytest
from judged import GIB, Load, measured, verdict

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.verdict import FAILED, OVER, WITHIN, Verdict

WHY = "transformers decompresses compressed-tensors at the first forward"
DENSE = Receipt((Layers("linear", "Linear", "torch.nn.modules.linear", "torch", 32, 21, 1000),))


def judged(budget: Budget, *, base: bool = False, allowed: str = "") -> Verdict:
    """The verdict where the method, or the baseline, is decompressed, and one of them may be."""
    methods = tuple(replace(m, decompressed=m.name == allowed) for m in budget.methods)
    own = measured(budget, "nf4", decompressed=None if base else WHY, receipt=DENSE, disk=GIB)
    return verdict(
        replace(budget, methods=methods), own, measured(budget, "fp16", decompressed=WHY if base else None, disk=GIB)
    )


@pytest.mark.parametrize(
    "limit",
    [
        "max_weights: 7 GiB",
        "max_vram: 8 GiB",
        "max_vram_reserved: 8 GiB",
        "max_vram_process: 8 GiB",
        "min_tokens_per_s: 1",
        "max_ttft: 1 s",
        "max_load_time: 1 min",
        "min_quantized_fraction: 0.5",
        "kernel: Linear",
        "max_weights_ratio: 2",
        "min_speedup: 0.5",
        "max_vram_ratio: 2",
    ],
)
def test_memory_speed_and_layers_are_not_those_of_the_checkpoint(load: Load, limit: str) -> None:
    found = judged(load(limit))
    name = limit.partition(":")[0]
    assert found.outcome == FAILED
    assert found.message == f"nf4: {name} not measured: {WHY}; `decompressed: allow` judges what runs here"
    assert found.measured is None


@pytest.mark.parametrize("limit", ["min_gsm8k: 50", "max_gsm8k_drop: 3", "max_gsm8k_flips: 5", "max_disk: 2 GiB"])
def test_quality_and_files_are(load: Load, limit: str) -> None:
    assert judged(load(limit)).outcome == WITHIN


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [
        ("max_weights: 7 GiB", WITHIN),
        ("max_weights: 5 GiB", OVER),
        ("max_weights_ratio: 1", WITHIN),
        ("min_tokens_per_s: 1", WITHIN),
        ("max_load_time: 1 s", OVER),
        ("min_quantized_fraction: 0.5", OVER),
        ("kernel: Linear", OVER),
    ],
)
def test_who_allows_it_gets_what_runs_here_judged(load: Load, limit: str, outcome: str) -> None:
    assert judged(load(limit), allowed="nf4").outcome == outcome


def test_a_baseline_that_is_decompressed_compares_no_memory(load: Load) -> None:
    budget = load("max_weights_ratio: 2")
    found = judged(budget, base=True)
    assert (found.outcome, found.message) == (
        FAILED,
        f"nf4: max_weights_ratio not measured: the baseline fp16: {WHY}; `decompressed: allow` judges what runs here",
    )
    assert judged(budget, base=True, allowed="fp16").outcome == WITHIN
    assert judged(budget, base=True, allowed="nf4").outcome == FAILED
    assert judged(load("max_gsm8k_drop: 3"), base=True).outcome == WITHIN
