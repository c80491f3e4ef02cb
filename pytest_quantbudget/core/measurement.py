"""What came out of measuring: the records that cross the process and land in the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from pytest_quantbudget.core.answers import Origin, TaskResult
from pytest_quantbudget.core.engines import EngineFacts
from pytest_quantbudget.core.gpu_usage import DECODE, Clocks, Energy, Occupant, PhaseMemory, Roofline, shared
from pytest_quantbudget.core.layers import Receipt
from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import Subject, Task, Text, Workload

# How a workload's tokens after the first are made: operation by operation from Python, or by compiled steps.
EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Failure:
    """Why a phase has no figures.

    `kind` is `error`, or one of those that skip: `no-gpu` (no GPU, too little memory, or a
    driver that does not tell), `skip` (a missing package)
    and `not offered` (the engine cannot give the figure).
    """

    phase: str
    kind: str
    message: str
    detail: str = ""
    fatal: bool = True  # nothing after this phase was measured either


@dataclass(frozen=True)
class Speed:
    """Timings and peak memory of one workload; one entry a repeat. Times in seconds, sizes in bytes.

    `peaks` are the peaks of allocated memory of each repeat, and `peak_allocated` is that of all, the warm-up included;
    `reserved_peaks` and `peak_reserved` are those of what torch's allocator holds, and `process_peaks` what NVML
    ascribed to this process after each repeat, where it did. All are sums over the GPUs.
    `throttled` says in words what slowed the machine down meanwhile. `gpu_ttft_s` and `gpu_decode_s` are the same spans
    between CUDA events, and `warmup_s` how long each warm-up run took. `memory` is that of `prefill` and of `decode`.
    `occupants` are other processes on the GPUs between the runs; `busy_before` (percent) what others did there before.
    `decode` is how the tokens after the first were made, EAGER or COMPILED; `compile_s` is how long the runs took in
    which steps were compiled, which are neither warm-ups nor repeats; `other_tokens` says, in words, where compiled
    steps gave other tokens than eager ones; `opaque_layers` are classes of layers that torch could not trace, each of
    which is one operation of the compiled step. `energy` is None where nobody asked for it, as on a CPU.
    """

    workload: Workload
    ttft_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    peak_allocated: int | None
    peak_reserved: int | None
    origin: Origin | None = None
    peaks: tuple[int, ...] = ()
    throttled: tuple[str, ...] = ()
    gpu_ttft_s: tuple[float, ...] = ()
    gpu_decode_s: tuple[float, ...] = ()
    warmup_s: tuple[float, ...] = ()
    memory: tuple[PhaseMemory, ...] = ()
    occupants: tuple[Occupant, ...] = ()
    busy_before: int | None = None
    clocks: tuple[Clocks, ...] = ()
    roofline: Roofline | None = None
    reserved_peaks: tuple[int, ...] = ()
    process_peaks: tuple[int, ...] = ()
    decode: str = EAGER
    compile_s: float | None = None
    other_tokens: str = ""
    opaque_layers: tuple[str, ...] = ()
    energy: Energy | None = None

    def __post_init__(self) -> None:
        """Refuse, with ValueError, timings that have no median or no rate."""
        for name in ("ttft_s", "decode_s"):
            times = getattr(self, name)
            if not times or not all(0 < seconds < math.inf for seconds in times):
                raise ValueError(f"{name} needs at least one time, all finite and above 0")
        for name in ("peak_allocated", "peak_reserved", "peak_process"):
            peak = getattr(self, name)
            if peak is not None and peak <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.workload.batch_size < 1 or self.workload.new_tokens < 2:
            raise ValueError("no token was generated after the first")

    @property
    def tokens_per_s(self) -> tuple[float, ...]:
        """Decode throughput of each repeat over the whole batch, the first token of each sequence left out."""
        tokens = self.workload.batch_size * (self.workload.new_tokens - 1)
        return tuple(tokens / seconds for seconds in self.decode_s)

    @property
    def median_tokens_per_s(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.tokens_per_s)

    @property
    def median_ttft_s(self) -> float:
        """Median time to first token, seconds."""
        return statistics.median(self.ttft_s)

    @property
    def tpot_s(self) -> tuple[float, ...]:
        """Time per output token of each repeat, seconds, the first token left out."""
        return tuple(seconds / (self.workload.new_tokens - 1) for seconds in self.decode_s)

    @property
    def peak_process(self) -> int | None:
        """The most that NVML ascribed to this process, over all runs; None where it does not tell.

        A process gives nothing back while the workload runs, so decoding, which comes last, has the most.
        """
        return next((each.total.process for each in self.memory if each.phase == DECODE), None)

    @property
    def shared(self) -> str:
        """Who else used the GPUs, in words; empty where none were seen."""
        return shared(self.occupants, self.busy_before)


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text: `nll` sums the negative log-likelihoods (nats) of `tokens` scored tokens.

    `each_tokens` and `each_nll` are the parts of single windows. `source` is a hash of the text, and `tokenizer` of
    what made its tokens.
    """

    text: Text
    nll: float
    tokens: int
    origin: Origin | None = None
    each_tokens: tuple[int, ...] = ()
    each_nll: tuple[float, ...] = ()
    source: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Refuse, with ValueError, a sum over nothing, or one that is no number."""
        if self.tokens < 1 or not 0 < self.nll < math.inf:
            raise ValueError("a perplexity needs tokens and a finite sum above 0")

    @property
    def value(self) -> float:
        """The exponential of the mean."""
        return math.exp(min(self.nll / self.tokens, 700.0))


@dataclass(frozen=True)
class Device:
    """Where a measurement ran. `name` is the GPU's, or `cpu`, or another machine's host name; sizes in bytes.

    `threads` are those of this machine, 0 where it is another one.
    """

    name: str
    uuid: str | None
    total: int | None
    capability: str | None
    cuda: str | None
    threads: int


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one subject. None where a figure was not needed or its phase failed.

    The store keeps one of these for each phase, in which only that phase's fields are filled.

    `placement` says which parts of the model lie on which device. `offloaded` says in words which of them were left
    outside of all GPUs, though there are some; such a model's memory is not judged, nor is it stored. `made_with` are
    the options that a ready checkpoint says it was made with. `unread` names tensors in the files that the model does
    not use. `disk` are the bytes of the files that hold the weights. `took_s` is how long quantizing, loading and
    measuring took together, in this run, and `allowed_s` how long they might take: the longest timeout of the budgets
    that share it. `engine` is what the engine says of itself, and `untold` says by the names of figures why it cannot
    tell them. `packing` is what a ready checkpoint says it is, and `decompressed` says in words that the engine runs it
    otherwise: its memory and speed are not those of the checkpoint.
    """

    # The fields that hold results of parts.
    holders: ClassVar[tuple[str, ...]] = ("speeds", "tasks", "perplexities", "loads")

    subject: Subject
    revision: str | None = None  # commit of a hub model, content hash of a directory
    device: Device | None = None
    quantized: str | None = None  # name, in the cache, of the method's own quantization
    quantize_s: float | None = None
    kernels_s: float | None = None  # choosing kernels, and compiling them or finding them compiled
    load_time_s: float | None = None
    weights: int | None = None
    receipt: Receipt | None = None
    load_memory: PhaseMemory | None = None
    placement: dict[str, str] | None = None
    offloaded: str | None = None
    loaded: Origin | None = None  # of the figures above
    replies: dict[str, str] | None = None  # prompt to greedy continuation
    speeds: tuple[Speed, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    perplexities: tuple[Perplexity, ...] = ()
    failures: tuple[Failure, ...] = ()
    libraries: dict[str, str] | None = None
    notes: tuple[str, ...] = ()  # what went wrong and cost no figure
    checkpoint_revision: str | None = None  # as `revision`, of the checkpoint
    adapter_revision: str | None = None
    calibration: str | None = None  # content hash of the calibration text
    made_with: dict[str, Any] | None = None
    unread: tuple[str, ...] = ()
    disk: int | None = None
    took_s: float | None = None
    allowed_s: float | None = None
    engine: EngineFacts | None = None
    untold: dict[str, str] | None = None
    loads: tuple[LoadResult, ...] = ()
    packing: Packing | None = None
    decompressed: str | None = None
    quantized_at: str | None = None  # when `quantized` was made, which took `quantize_s` then

    def speed(self, workload: Workload) -> Speed | None:
        """The figures of a workload, if it was measured."""
        return next((s for s in self.speeds if s.workload == workload), None)

    def task(self, task: Task) -> TaskResult | None:
        """The answers to a task, if it was asked."""
        return next((t for t in self.tasks if t.task == task), None)

    def perplexity(self, text: Text) -> Perplexity | None:
        """The perplexity of a text, if it was measured."""
        return next((p for p in self.perplexities if p.text == text), None)

    def load(self, load: Load) -> LoadResult | None:
        """What came of a load, if it was measured."""
        return next((result for result in self.loads if result.load == load), None)

    def __post_init__(self) -> None:
        """Refuse, with ValueError, figures that nothing can be divided by."""
        for name in ("weights", "load_time_s"):
            figure = getattr(self, name)
            if figure is not None and not 0 < figure < math.inf:
                raise ValueError(f"{name} must be a finite number above 0")

    def origins(self) -> Iterator[Origin]:
        """When each of the figures was measured: those of loading, every workload, every task, every text."""
        for origin in (self.loaded, *(result.origin for name in self.holders for result in getattr(self, name))):
            if origin is not None:
                yield origin

    def failure(self, phase: str) -> Failure | None:
        """Why a phase has no figures: its own failure, else one that ended the measurement before it."""
        of_phase = [f for f in self.failures if f.phase == phase]
        return next(iter(of_phase or [f for f in self.failures if f.fatal]), None)


def merge(parts: Iterable[Measurement]) -> Measurement:
    """Parts of one subject's measurement as one; where a figure comes twice, the later one holds."""
    first, *others = parts
    for part in others:
        values: dict[str, Any] = {}
        for field in fields(Measurement):
            old, new = getattr(first, field.name), getattr(part, field.name)
            if field.name == "tasks":  # answers come first alone, and again with the comparison with the baseline
                values["tasks"] = (*[t for t in old if t.task not in [n.task for n in new]], *new)
            elif isinstance(new, tuple):
                values[field.name] = (*old, *new)
            elif isinstance(new, dict):
                values[field.name] = {**(old or {}), **new}
            elif new is not None:
                values[field.name] = new
        first = replace(first, **values)
    return first
