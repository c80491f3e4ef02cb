"""Limits on layers: kernels by class names, and the share that is quantized."""

import pytest
from judged import Load, measured, verdict

from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.measurement import Failure
from pytest_quantbudget.core.request import LOAD
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, WITHIN

RECEIPT = Receipt(
    (
        Layers("linear", "MarlinLinear", "gptqmodel.marlin", "gptq_marlin", 4, 216, 6_000_000_000),
        Layers("embedding", "Embedding", "torch.nn", "torch", 16, 1, 1_500_000_000),
        Layers("linear", "TorchLinear", "gptqmodel.torch", "gptq_torch", 4, 36, 500_000_000),
        Layers("lm_head", "Linear", "torch.nn", "torch", 16, 1, 0),
    )
)
RAN = "216 MarlinLinear (gptq_marlin, 4 bits), 36 TorchLinear (gptq_torch, 4 bits)"


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        ("kernel: Marlin*", OVER, f"kernel ran {RAN}, limit Marlin*"),
        ("kernel: marlin* | torch*", OVER, f"kernel ran {RAN}, limit marlin* | torch*"),
        ("kernel: MarlinLinear|Torch*", WITHIN, f"kernel ran {RAN}, limit MarlinLinear|Torch*"),
        ("kernel: '*Linear'", WITHIN, f"kernel ran {RAN}, limit *Linear"),
        ("kernel: {'NVIDIA L4*': Marlin*}", SKIPPED, "kernel has no limit for 'NVIDIA H100 80GB HBM3' (only for "
         f"'NVIDIA L4*'); what ran: {RAN}"),
        ("kernel: {'NVIDIA H100*': '*'}", WITHIN, f"kernel ran {RAN}, limit *"),
        ("min_quantized_fraction: 0.8125", WITHIN, "min_quantized_fraction measured 0.812, limit 0.812 (6,500,000,000 "
         "of 8,000,000,000 parameters; kept: embedding 1,500,000,000 in 16 bits)"),
        ("min_quantized_fraction: 0.9", OVER, "min_quantized_fraction measured 0.812, limit 0.9"),
    ],
)  # fmt: skip
def test_the_receipt_is_judged_by_class_names_and_by_counts(load: Load, limit: str, outcome: str, words: str) -> None:
    budget = load(limit)
    found = verdict(budget, measured(budget, "nf4", receipt=RECEIPT))
    assert found.outcome == outcome
    assert found.message.startswith(f"nf4: {words}")


def test_no_quantized_layer_runs_on_the_kernel_that_was_asked_for(load: Load) -> None:
    budget = load("kernel: '*'")
    found = verdict(budget, measured(budget, "nf4", receipt=Receipt(RECEIPT.layers[1::2])))
    assert (found.outcome, found.message) == (OVER, "nf4: kernel ran no quantized linear layer, limit *")


def test_a_receipt_that_is_missing_says_why(load: Load) -> None:
    budget = load("kernel: Marlin*")
    found = verdict(budget, measured(budget, "nf4", failures=(Failure(LOAD, "error", "no weights"),)))
    assert (found.outcome, found.message) == (FAILED, "nf4: kernel not measured: no weights")
