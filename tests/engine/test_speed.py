"""Memory and time of a workload on simulated GPUs, and how near decoding comes to what the memory allows."""

import functools
import itertools
import os
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from simulated.cuda import Cuda
from simulated.driver import Driver

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpu_usage import (
    Clocks,
    GpuMemory,
    Occupant,
)
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import (
    Subject,
    Workload,
)
from pytest_quantbudget.engine import timing as timing_
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf import memory, roofline
from pytest_quantbudget.engine.hf import speed as speed_
from pytest_quantbudget.engine.machine.gpus import (
    Gpus,
    Sampler,
)
from pytest_quantbudget.engine.machine.memory_phases import MemoryByPhase

WORKLOAD = Workload(prompt_tokens=8, new_tokens=4, batch_size=2, repeats=2)


@pytest.fixture(scope="module")
def model() -> Any:
    return loading.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None).model


@dataclass
class Measured:
    speed: Speed
    log: list[str]


def millijoules(log: list[str], start: float, times: int) -> int:
    """A counter that is renewed every 5 ms, and takes 1,000 J for each prefill and 10 J for each step of decoding."""
    taken = 1_000_000 * log.count("prefill") + 10_000 * log.count("decode")
    return 10**9 + times * taken + int((time.perf_counter() - start) / 0.005)


@pytest.fixture(scope="module")
def measured(model: Any) -> Measured:
    """The built-in model's workload on two simulated GPUs, the second of which another process uses."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        driver, cuda = Driver(monkeypatch, "GPU-1", "GPU-2"), Cuda(monkeypatch, count=2)
        monkeypatch.setattr(timing_, "STEADY", 1e9)  # the first run is the only warm-up
        one, two = driver.cards.values()
        one.used, two.used = 200, 900
        two.processes = {123: 700}
        gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})
        one.processes, two.processes = {os.getpid(): 1000}, {os.getpid(): 1100, 123: 700}
        one.used, two.used = 1300, 2100
        one.energy, two.energy = (functools.partial(millijoules, cuda.log, time.perf_counter(), n) for n in (1, 2))
        cuda.attach(model, prefill=700, decode=600)
        found = speed_.measure(model, WORKLOAD, gpus)
        cuda.hook.remove()
    return Measured(found, cuda.log)


def test_memory_is_told_for_prefill_and_decode_apart_by_gpu_and_summed(measured: Measured) -> None:
    prefill, decode = measured.speed.memory
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert prefill.gpus == {
        "GPU-1": GpuMemory(700, 800, process=1000, device=1300, device_before=200, overhead=200),
        "GPU-2": GpuMemory(699, 799, process=1100, device=2100, device_before=900, overhead=300),
    }
    assert prefill.total == GpuMemory(1399, 1599, 2100, 3400, 1100, 500)
    assert [row.allocated for row in decode.gpus.values()] == [600, 599]
    assert decode.process_from == f"pid {os.getpid()}"


def test_the_judged_peak_is_that_of_the_whole_run_over_all_gpus(measured: Measured) -> None:
    assert measured.speed.peak_allocated == 700 + 699
    assert measured.speed.peak_reserved == 800 + 799
    assert measured.speed.peaks == (1399, 1399)
    assert measured.speed.reserved_peaks == (1599, 1599)
    assert measured.speed.process_peaks == (2100, 2100)
    assert measured.speed.peak_process == 2100


@pytest.mark.parametrize("told", [True, False])
def test_what_a_process_takes_in_a_later_run_counts_where_nvml_tells_it(
    monkeypatch: pytest.MonkeyPatch, model: Any, told: bool
) -> None:
    card, _ = Driver(monkeypatch, "GPU-1").cards["GPU-1"], Cuda(monkeypatch)
    monkeypatch.setattr(timing_, "STEADY", 1e9)
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1"})
    growing = iter([1000, 1000, 1200, 1100])  # after prefill and decoding of the warm-up, then after each repeat

    def own_memory(index: int) -> tuple[int | None, str]:
        card.processes = {os.getpid(): next(growing) if told else None}
        return Gpus.own_memory(gpus, index)

    monkeypatch.setattr(gpus, "own_memory", own_memory)
    found = speed_.measure(model, WORKLOAD, gpus)
    assert found.process_peaks == ((1200, 1100) if told else ())
    assert found.peak_process == (1200 if told else None)
    assert found.memory[0].total.process == (1000 if told else None)
    assert ("NVML does not tell its memory" in found.memory[1].process_from) != told


def test_clocks_are_read_when_the_gpus_have_finished_and_peaks_while_nothing_is_timed(measured: Measured) -> None:
    assert measured.log.pop(0) == "empty"
    mark = ["event", "synchronize"]
    reset = ["reset"] * 2
    run = [*reset, *mark, "prefill", *mark, *reset, *mark, *["decode"] * 3, *mark, *reset]
    assert measured.log == run * 3


def test_time_between_cuda_events_stands_beside_the_clock(measured: Measured) -> None:
    found = measured.speed
    assert len(found.warmup_s) == 1
    for wall, gpu in zip((*found.ttft_s, *found.decode_s), (*found.gpu_ttft_s, *found.gpu_decode_s), strict=True):
        assert gpu == pytest.approx(wall, abs=0.01)
        assert gpu != wall


def test_energy_is_that_of_both_gpus_in_prefill_and_in_decoding(measured: Measured) -> None:
    speed = measured.speed
    assert speed.energy is not None
    assert speed.energy.why == ""
    assert 0.004 < speed.energy.renewed_s < 1
    for joules, taken in ((speed.energy.prefill_j, 3 * 1000), (speed.energy.decode_j, 3 * 3 * 10)):
        assert joules == pytest.approx([taken] * WORKLOAD.repeats, abs=5)


def test_clocks_and_others_are_noted_between_the_repeats(measured: Measured) -> None:
    twice = Clocks("GPU-1", (1400,) * 2, (2600,) * 2, (312.5,) * 2, (61,) * 2, 1900, 3100, 400.0)
    assert measured.speed.clocks == (twice, replace(twice, gpu="GPU-2"))
    (other,) = measured.speed.occupants
    assert replace(other, name=None) == Occupant("GPU-2", 123, None, 700, before=True)


def test_without_nvml_torch_is_all_that_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    phases = MemoryByPhase(Gpus({}), on_gpu=True)
    phases.note("load")
    (load,) = phases.phases()
    assert load.total == GpuMemory(500, 600)
    assert (list(load.gpus), load.process_from) == (["cuda:0"], "")


def test_where_nvml_does_not_name_this_process_the_growth_of_the_device_shows_the_overhead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card, _ = Driver(monkeypatch, "GPU-1").cards["GPU-1"], Cuda(monkeypatch)
    card.used = 300
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1"})
    card.used = 1500
    phases = MemoryByPhase(gpus, on_gpu=True)
    with Sampler(gpus.cards) as sampler:
        phases.note("load", sampler)
    (load,) = phases.phases()
    assert load.total == GpuMemory(500, 600, None, 1500, 300, overhead=1500 - 300 - 800)
    assert load.process_from == "NVML names no process, as in many containers"


@pytest.mark.parametrize(
    ("times", "warmups", "repeats"),
    [
        ([9, 1, 1.04, 2], 2, [1.04, 2]),  # once it is warm, runs are taken as they come
        ([1, 1.04, 1], 1, [1.04, 1]),
        ([1, 0.94, 0.9, 1], 2, [0.9, 1]),
        ([9, 7, 5, 3, 2], 3, [3, 2]),
        ([1, 2, 4, 8, 1], 3, [8, 1]),
    ],
    ids=["a slow first run", "warm already", "just not steady", "never steady", "slower and slower"],
)
def test_warm_up_ends_when_a_run_takes_as_long_as_the_one_before(
    monkeypatch: pytest.MonkeyPatch, model: Any, times: list[float], warmups: int, repeats: list[float]
) -> None:
    runs = iter(times)
    timing = lambda *_: speed_.Timing(0.1, next(runs) - 0.1, None, None)  # noqa: E731
    monkeypatch.setattr(speed_, "_run", timing)
    found = speed_.measure(model, WORKLOAD, Gpus({}))
    assert len(found.warmup_s) == warmups
    assert [0.1 + decode for decode in found.decode_s] == pytest.approx(repeats)
    assert next(runs, None) is None


def test_a_step_reads_all_weights_once_and_each_rows_cache_at_its_mean_length(model: Any) -> None:
    found = speed_.measure(model, WORKLOAD, Gpus({})).roofline
    assert found is not None
    config = model.config
    lengths = [WORKLOAD.prompt_tokens + step for step in range(1, WORKLOAD.new_tokens)]
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert found.cache_bytes == WORKLOAD.batch_size * row * sum(lengths) / len(lengths)
    assert found.weight_bytes == memory.weight_bytes(model)  # its embedding is its output layer, too
    step_s = found.tpot_s
    assert found.fraction == pytest.approx((found.weight_bytes + found.cache_bytes) / step_s / found.bandwidth)
    assert found.threads == torch.get_num_threads()


def test_an_embedding_of_its_own_is_not_read_through() -> None:
    parts = torch.nn.ModuleDict({"table": torch.nn.Embedding(100, 8), "output": torch.nn.Linear(8, 100, bias=False)})
    model: Any = parts
    model.config = SimpleNamespace()
    model.config.get_text_config = lambda: model.config
    model.get_input_embeddings, model.get_output_embeddings = lambda: parts["table"], lambda: parts["output"]
    assert roofline.step_weights(model, 7000) == 7000 - 100 * 8 * 4
    parts["output"].weight = parts["table"].weight
    assert roofline.step_weights(model, 7000) == 7000


def layer(tokens: int, heads: int = 2, size: int = 3) -> Any:
    """A layer's cache of one row, in 16 bits."""
    part = torch.zeros(1, heads, tokens, size, dtype=torch.float16)
    return SimpleNamespace(keys=part, values=part)


def test_a_window_is_read_whole_and_what_is_no_keys_and_values_is_not_guessed() -> None:
    workload = Workload(prompt_tokens=6, new_tokens=4, batch_size=1, repeats=1)  # 7, 8 and 9 tokens are read
    full, window = layer(9), layer(5)
    assert roofline.cache_bytes(SimpleNamespace(layers=[full]), workload) == 2 * 2 * 3 * 2 * 8
    assert roofline.cache_bytes(SimpleNamespace(layers=[full, window]), workload) == 2 * 2 * 3 * 2 * (8 + 5)
    assert roofline.cache_bytes(SimpleNamespace(layers=[full, SimpleNamespace(states=1)]), workload) is None
    assert roofline.cache_bytes(None, workload) is None


def test_there_is_no_roofline_where_it_is_not_known_what_a_step_reads(
    monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    assert roofline.roofline(model, 1, None, 0.01, on_gpu=False) is None
    monkeypatch.setattr(model.config, "num_experts", 8, raising=False)
    assert roofline.roofline(model, 1, 100, 0.01, on_gpu=False) is None
    monkeypatch.undo()
    monkeypatch.setattr(memory, "free_ram", lambda: 2**26)
    assert roofline.roofline(model, 1, 100, 0.01, on_gpu=False) is None


def test_a_copy_counts_what_is_read_and_what_is_written_and_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "CPU_BYTES", 2**20)
    monkeypatch.setattr(roofline, "LEAST_BYTES", 2**20)
    times = itertools.chain([0.5, 0.25], itertools.repeat(1.0))
    monkeypatch.setattr(roofline, "_seconds", lambda source, target: next(times))
    assert roofline.copy_bandwidth(torch.device("cpu")) == 2 * 2**20 / 0.25


def test_a_copy_on_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    on_gpu: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), copy_=lambda source: cuda.log.append("copy"))
    monkeypatch.setattr(time, "perf_counter", iter([1.0, 1.25]).__next__)  # when the two events are recorded
    assert roofline._seconds(on_gpu, on_gpu) == 0.25
    assert cuda.log == ["event", "copy", "event", "wait"]
