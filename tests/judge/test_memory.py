"""Limits on GPU memory: of torch's tensors, of its allocator, and of the whole process as the driver tells it."""

from dataclasses import replace

import pytest
from judged import CPU, GIB, Load, measured, verdict

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import EngineFacts
from pytest_quantbudget.core.gpu_usage import GpuMemory, PhaseMemory
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.verdict import OVER, SKIPPED, WITHIN

PROCESS = "NVML names no process, as in many containers"


def on_gpu(budget: Budget, process: int | None, allocated: int | None = 7 * GIB) -> Speed:
    """A workload with 7 GiB allocated, 9 reserved, and what NVML tells of the process."""
    memory = GpuMemory(7 * GIB, 9 * GIB, process)
    phases = tuple(PhaseMemory(name, memory, {"GPU-1": memory}, PROCESS) for name in ("prefill", "decode"))
    speed = measured(budget, "nf4").speeds[0]
    return replace(speed, peak_allocated=allocated, peak_reserved=9 * GIB, memory=phases)


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        ("max_vram: 8 GiB", WITHIN, "measured 7.00 GiB, limit 8.00 GiB"),
        ("max_vram_reserved: 9 GiB", WITHIN, "measured 9.00 GiB, limit 9.00 GiB"),
        ("max_vram_reserved: 8 GiB", OVER, "measured 9.00 GiB, limit 8.00 GiB"),
        ("max_vram_process: 9.5 GiB", OVER, "measured 10.0 GiB, limit 9.50 GiB"),
        ("max_vram_process: 11 GB", WITHIN, "measured 10.7 GB, limit 11.0 GB"),
        ("max_vram_reserved_ratio: 1", WITHIN, "measured 1.00, limit 1.00 (9.00 GiB against fp16's 9.00 GiB)"),
        ("max_vram_process_ratio: 0.4", OVER, "measured 0.5, limit 0.4 (10.0 GiB against fp16's 20.0 GiB)"),
    ],
)
def test_what_torch_holds_and_what_the_process_takes_are_limits_of_their_own(
    load: Load, limit: str, outcome: str, words: str
) -> None:
    budget = load(limit)
    own = measured(budget, "nf4", speeds=(on_gpu(budget, 10 * GIB),))
    told = verdict(budget, own, measured(budget, "fp16", speeds=(on_gpu(budget, 20 * GIB),)))
    assert (told.outcome, told.message) == (outcome, f"nf4: {limit.partition(':')[0]} {words}")


def test_of_a_server_that_takes_its_memory_at_once_it_is_said_what_for(load: Load) -> None:
    budget = load("max_vram: 8 GiB")
    facts = EngineFacts("vllm", buffers={"model": 2 * GIB, "kv": 4 * GIB})
    own = measured(budget, "nf4", speeds=(on_gpu(budget, None),), engine=facts)
    assert verdict(budget, own).message == (
        "nf4: max_vram measured 7.00 GiB, limit 8.00 GiB (the server's processes, which take it when they start: "
        "weights 2.00 GiB, KV cache 4.00 GiB, the rest 1.00 GiB)"
    )


def test_what_repeats_differ_by_is_told_of_the_memory_that_is_limited(load: Load) -> None:
    def message(limit: str) -> str:
        budget = load(limit)
        allocated, reserved, process = (6 * GIB, 7 * GIB), (8 * GIB, 9 * GIB), (9 * GIB, 10 * GIB)
        speed = on_gpu(budget, 10 * GIB)
        speed = replace(speed, peaks=allocated, reserved_peaks=reserved, process_peaks=process)
        return verdict(budget, measured(budget, "nf4", speeds=(speed,))).message

    assert "(6.00 to 7.00 in the 2 repeats)" in message("max_vram: 20 GiB")
    assert "(8.00 to 9.00 in the 2 repeats)" in message("max_vram_reserved: 20 GiB")
    assert "(9.00 to 10.0 in the 2 repeats)" in message("max_vram_process: 20 GiB")


def test_a_process_whose_memory_nvml_does_not_tell_is_not_judged(load: Load) -> None:
    budget = load("max_vram_process: 999 GiB")
    told = verdict(budget, measured(budget, "nf4", speeds=(on_gpu(budget, None),)))
    assert (told.outcome, told.measured, told.for_want_of_gpu) == (SKIPPED, None, True)
    assert told.message == (
        f"nf4: max_vram_process not measured: NVML does not tell the GPU memory of this process: {PROCESS}"
    )
    unrecorded = replace(on_gpu(budget, None), memory=())
    assert verdict(budget, measured(budget, "nf4", speeds=(unrecorded,))).message.endswith(": it was not recorded")
    budget = load("max_vram_process_ratio: 2")
    base = measured(budget, "fp16", speeds=(on_gpu(budget, None),))
    told = verdict(budget, measured(budget, "nf4", speeds=(on_gpu(budget, GIB),)), base)
    assert (told.outcome, "not measured: the baseline fp16: NVML does not tell" in told.message) == (SKIPPED, True)


@pytest.mark.parametrize("limit", ["max_vram_reserved", "max_vram_process"])
def test_without_a_gpu_no_limit_on_its_memory_is_judged(load: Load, limit: str) -> None:
    budget = load(f"{limit}: 1 GiB")
    told = verdict(budget, measured(budget, "nf4", CPU))
    assert (told.outcome, told.for_want_of_gpu) == (SKIPPED, True)
    assert told.message == f"nf4: {limit} not measured: no GPU was found: device memory has no peak here"
