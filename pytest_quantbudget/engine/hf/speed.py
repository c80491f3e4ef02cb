"""Time to first token, decode throughput and memory of a workload, on the path that transformers' users run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.gpu_usage import DECODE, PREFILL, Energy, GpuMemory
from pytest_quantbudget.core.measurement import COMPILED, Speed
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine import out_of_memory
from pytest_quantbudget.engine.base import check_positions
from pytest_quantbudget.engine.hf import memory
from pytest_quantbudget.engine.hf.compiled import Compiled, NotCompiled, difference
from pytest_quantbudget.engine.hf.generation import greedy
from pytest_quantbudget.engine.hf.roofline import cache_bytes, roofline, step_weights
from pytest_quantbudget.engine.machine.energy import Meter
from pytest_quantbudget.engine.machine.gpus import Gpus, Looks, Sampler
from pytest_quantbudget.engine.machine.memory_phases import MemoryByPhase
from pytest_quantbudget.engine.machine.throttle import Watch
from pytest_quantbudget.engine.timing import is_warm
from pytest_quantbudget.models import config

if TYPE_CHECKING:
    import torch

MOST_COMPILING = 3


@dataclass(frozen=True)
class Timing:
    """One run, seconds by the clock and by CUDA events (None on a CPU); its peaks of memory, summed over the GPUs.

    `process` is what NVML says of this process after the run, where it does; `tokens` are prompt and new
    tokens, token ids of shape (batch, tokens).
    `joules` are NVML's counts before the run, after the first token and after the last, where they were asked for.
    `read` is how many bytes of the key-value cache a step reads on average, where that was asked for and is known.
    """

    ttft_s: float
    decode_s: float
    gpu_ttft_s: float | None
    gpu_decode_s: float | None
    allocated: int = 0
    reserved: int = 0
    read: int | None = None
    process: int | None = None
    tokens: Any = None
    joules: tuple[float | None, ...] = ()

    @property
    def seconds(self) -> float:
        """From the call to the last token."""
        return self.ttft_s + self.decode_s


def measure(model: Any, workload: Workload, gpus: Gpus | None = None, weights: int | None = None) -> Speed:
    """Run the workload `repeats` times after a warm-up of the same shape, greedy, with fixed lengths.

    Time to first token runs from the call of `generate` to the moment when the first token of every sequence is
    known (prefill); decode time from there to the last token. The clock is read when the devices have finished, and
    CUDA events stand beside it.

    The first run is a warm-up, and so are the next ones, up to three in all, until one takes as long as the one before
    it, within 5 %: that is the first repeat.

    Peaks are those of torch's allocator in each run (`max_memory_allocated`, `max_memory_reserved`), summed over the
    GPUs that the model is spread over; None on a CPU. Those of the warm-up count for the peak over all runs. NVML is
    asked in the first warm-up and between the runs only: nothing but the workload runs while it is timed.

    `weights` are the bytes of all weights as loaded, where they were counted before the first pass: with that,
    bitsandbytes moves scales out of sight, and gptqmodel adds what its layers need.

    With `compile`, the workload is run eagerly once before, and its tokens are compared; then by compiled steps until a
    run compiles nothing, three times at most. None of these runs is a warm-up or a repeat.

    Raises ValueError where the model has fewer positions than the workload needs, and `compiled.NotCompiled`.
    """
    check_positions(positions(model), workload.prompt_tokens + workload.new_tokens, "the workload")
    ids = random_prompts(model, workload)
    on_gpu = is_cuda(ids)
    if on_gpu:
        import torch

        torch.cuda.empty_cache()
    gpus = gpus or Gpus()
    read = step_weights(model, weights or memory.weight_bytes(model))
    if not workload.compile:
        return _timed(model, ids, workload, gpus, read, None)
    eager = _run(model, ids, workload, MemoryByPhase(gpus, on_gpu=on_gpu)).tokens
    out_of_memory.release()
    with Compiled(model, workload, on_gpu=on_gpu) as steps:
        seconds, tokens = _compile(model, ids, workload, gpus, steps)
        other = difference(model, eager, tokens, workload.prompt_tokens)
        found = _timed(model, ids, workload, gpus, read, steps)
        if steps.compiles():
            raise NotCompiled("steps were compiled anew while they were timed")
        opaque = tuple(steps.opaque)
    return replace(found, decode=COMPILED, compile_s=seconds, other_tokens=other, opaque_layers=opaque)


def _compile(
    model: Any, ids: torch.Tensor, workload: Workload, gpus: Gpus, steps: Compiled
) -> tuple[float, torch.Tensor]:
    """Run until nothing is compiled any more: the seconds of the runs in which something was, and the last tokens."""
    seconds, left = 0.0, MOST_COMPILING
    while left:
        try:
            timing = _run(model, ids, workload, MemoryByPhase(gpus, on_gpu=is_cuda(ids)), None, steps)
        except Exception as error:
            if steps.make_opaque(error):
                continue
            raise steps.explain(error) from error
        left -= 1
        if not steps.compiles():
            return seconds, timing.tokens
        seconds += timing.seconds
    raise NotCompiled(f"each of {MOST_COMPILING} runs of the same shape compiled steps anew")


def _timed(model: Any, ids: torch.Tensor, workload: Workload, gpus: Gpus, read: int, steps: Compiled | None) -> Speed:
    """Warm-ups and repeats, as `measure` has them; `read` bytes of weights are read at each step."""
    on_gpu = is_cuda(ids)
    phases, looks, watch = MemoryByPhase(gpus, on_gpu=on_gpu), Looks(gpus), Watch(gpus.cards)
    # Before the warm-up: the GPU rests while it is found out how often its counter is renewed.
    meter = Meter(gpus.cards) if on_gpu else None
    with Sampler(gpus.cards if on_gpu else []) as sampler:
        first = _run(model, ids, workload, phases, sampler, steps)
    warmups: list[Timing] = [first]
    repeats: list[Timing] = []
    while len(repeats) < workload.repeats:
        timing = _run(model, ids, workload, phases, None, steps, meter)
        timing = replace(timing, process=phases.look(DECODE))
        watch.look()
        looks.look()
        if repeats or is_warm(timing.seconds, warmups[-1].seconds, len(warmups)):
            repeats.append(timing)
            looks.sample()
        else:
            warmups.append(timing)
    runs = [*warmups, *repeats]
    step = statistics.median(timing.decode_s for timing in repeats) / (workload.new_tokens - 1)
    return Speed(
        workload,
        tuple(timing.ttft_s for timing in repeats),
        tuple(timing.decode_s for timing in repeats),
        max(timing.allocated for timing in runs) if on_gpu else None,
        max(timing.reserved for timing in runs) if on_gpu else None,
        peaks=tuple(timing.allocated for timing in repeats) if on_gpu else (),
        throttled=watch.words(),
        warmup_s=tuple(timing.seconds for timing in warmups),
        gpu_ttft_s=tuple(t.gpu_ttft_s for t in repeats if t.gpu_ttft_s is not None),
        gpu_decode_s=tuple(t.gpu_decode_s for t in repeats if t.gpu_decode_s is not None),
        memory=phases.phases(),
        occupants=looks.occupants,
        busy_before=gpus.busy_before,
        clocks=looks.clocks,
        roofline=roofline(model, read, first.read, step, on_gpu=on_gpu),
        reserved_peaks=tuple(timing.reserved for timing in repeats) if on_gpu else (),
        process_peaks=tuple(timing.process for timing in repeats if timing.process is not None),
        energy=_energy(repeats, meter) if meter is not None else None,
    )


def _energy(repeats: Sequence[Timing], meter: Meter) -> Energy:
    """What the GPUs took in each repeat, between the counts of a meter."""
    counts = [[count for count in timing.joules if count is not None] for timing in repeats]
    if meter.why or any(len(each) < 3 for each in counts):
        return Energy(why=meter.why or "NVML did not tell the energy after each run")
    prefill, decode = ([each[at + 1] - each[at] for each in counts] for at in (0, 1))
    if min(*prefill, *decode) < 0:
        return Energy(why="a counter of energy was set back meanwhile")
    return Energy(tuple(prefill), tuple(decode), meter.renewed_s)


def is_cuda(ids: torch.Tensor) -> bool:
    """Whether these tokens, and so what is computed on them, are on a GPU."""
    return ids.device.type == "cuda"


def positions(model: Any) -> int | None:
    """The longest sequence that the model was trained with, in tokens; None where its configuration does not say."""
    return config.positions(model.config.get_text_config())


def random_prompts(model: Any, workload: Workload) -> torch.Tensor:
    """Token ids of shape (batch_size, prompt_tokens), drawn evenly from the vocabulary by a fixed seed."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_tokens)
    return torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=generator).to(model.device)


class _Clock:
    """Moments of a run: by the host's clock once the devices are synchronized, and by CUDA events."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        weights = model.parameters() if is_cuda(ids) else ()
        self.devices = {weight.device for weight in weights if weight.device.type not in ("cpu", "meta")}
        self.device = ids.device
        self.on_gpu = is_cuda(ids)
        self.marks: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Note this moment."""
        if self.on_gpu:
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.events.append(event)
            for device in {self.device, *self.devices}:
                torch.cuda.synchronize(device)
        self.marks.append(time.perf_counter())

    def seconds(self, start: int) -> tuple[float, float | None]:
        """From one moment to the next: by the clock, and between the events."""
        wall = self.marks[start + 1] - self.marks[start]
        if not self.events:
            return wall, None
        return wall, float(self.events[start].elapsed_time(self.events[start + 1])) / 1000  # milliseconds


def _run(
    model: Any,
    ids: torch.Tensor,
    workload: Workload,
    phases: MemoryByPhase,
    sampler: Sampler | None = None,
    steps: Compiled | None = None,
    meter: Meter | None = None,
) -> Timing:
    """Time one run, by compiled `steps` if there are any; with a `meter` energy is read where no clock runs.

    With a sampler NVML is also asked about its memory, and its cache is looked at. When the first token is known, the
    GPU waits and neither span runs: peaks are read and set back there.
    """
    import torch
    from transformers import StoppingCriteriaList

    clock, last = _Clock(model, ids), ids.shape[1] + workload.new_tokens
    lengths: dict[str, Any] = {"min_new_tokens": workload.new_tokens, "return_dict_in_generate": True}
    cache: dict[str, Any] = {}
    if steps is not None:
        lengths["compile_config"], cache["past_key_values"] = steps.config, steps.empty_cache()
    prefill: list[GpuMemory] = []
    joules: list[float | None] = []

    def count() -> None:
        if meter is not None:
            joules.append(meter.read())

    def mark(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if len(clock.marks) == 1:
            clock.mark()
            prefill.extend(phases.note(PREFILL, sampler))
            count()
            clock.mark()
        elif tokens.shape[1] == last:
            clock.mark()
            count()
        return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)

    phases.begin()
    count()
    clock.mark()
    with torch.inference_mode():
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy(model, workload.new_tokens, **lengths),
            stopping_criteria=StoppingCriteriaList([mark]),
            **cache,
        )
    decode = phases.note(DECODE, sampler)
    (ttft, gpu_ttft), (decoding, gpu_decoding) = clock.seconds(0), clock.seconds(2)
    pairs = list(zip(prefill, decode, strict=True))
    return Timing(
        ttft,
        decoding,
        gpu_ttft,
        gpu_decoding,
        sum(max(a.allocated, b.allocated) for a, b in pairs),
        sum(max(a.reserved, b.reserved) for a, b in pairs),
        cache_bytes(getattr(said, "past_key_values", None), workload) if sampler is not None else None,
        tokens=said.sequences,
        joules=tuple(joules),
    )
