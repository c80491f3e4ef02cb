"""How long measuring takes, reckoned from a model's size and from rates that are assumed: from fast to slow.

The rates span what is common: in eager decoding an H200 took 0.8 to 2.3 ms a layer and token of Qwen3-8B, and two CPU
cores 0.9 to 3.4 ms of the built-in model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import DivergenceOf, Part, Reply, Subject, Task, Text, Workload
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.architecture import Architecture

START_S = (2.0, 12.0)  # of a process, with the libraries that it imports
READ = (3e9, 2e8)  # bytes a second from a disk
LAYER_S = ((2e-4, 5e-3), (3e-4, 3e-3))  # of a token in a layer, besides reading its weights: on a CPU, on a GPU
BANDWIDTH = ((6e10, 5e9), (3e12, 2e11))  # bytes a second
FLOPS = ((1e12, 1e10), (4e14, 5e12))  # a second
AT_ONCE = (256, 32)  # answers in a batch
ANSWER = (0.2, 0.8)  # of the tokens that an answer may have
EXAMPLE_TOKENS = (60, 250)  # of a question, or of a worked example
PARAMETER_S = ((1e-7, 5e-6), (1e-8, 3e-7))  # of quantizing one on texts
WARM_UPS = 2


@dataclass(frozen=True)
class Span:
    """From so many seconds to so many."""

    low: float
    high: float

    def __add__(self, other: Span) -> Span:
        """One after the other."""
        return Span(self.low + other.low, self.high + other.high)

    @property
    def words(self) -> str:
        """`20 s to 3 min`."""
        low, high = _rounded(self.low), _rounded(self.high)
        return low if low == high else f"{low} to {high}"


NOTHING = Span(0.0, 0.0)


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Reckoned:
    """What is reckoned from sizes: the model's shape, and the bytes of its weights as loaded.

    `totals` says how many questions of a task are asked at most.
    """

    shape: Architecture
    parameters: int
    weights: int
    on_gpu: bool
    calibrated: bool
    totals: Mapping[str, int]

    @classmethod
    def of(cls, subject: Subject, workload: Workload, totals: Mapping[str, int], *, on_gpu: bool) -> Reckoned | None:
        """What is known of a subject; None where its architecture is not."""
        try:
            shape = memory.shape_of(subject)
        except ValueError:
            return None
        parameters = sum(shape.parameters.values())
        spec = methods.spec(subject.kind)
        try:
            weights = memory.estimate(subject, workload).weights
        except ValueError:
            weights = int(parameters * (spec.bits or 16) / 8)
        return cls(shape, parameters, weights, on_gpu, spec.calibrated, totals)

    def load(self) -> Span:
        """Reading the files, which hold 16 bits a value."""
        return Span(*(2 * self.parameters / rate for rate in READ))

    def quantize(self) -> Span:
        """Making a quantized form of the model, on texts or without."""
        if self.calibrated:
            low, high = (self.parameters * each for each in PARAMETER_S[self.on_gpu])
            return Span(START_S[0] + low, 2 * START_S[1] + high)
        return Span(*(START_S[i] + 6 * self.parameters / READ[i] for i in (0, 1)))

    def part(self, part: Part) -> Span | None:
        """One part of a request; None for what cannot be reckoned."""
        if isinstance(part, Workload):
            prefill = self._read(part.batch_size * part.prompt_tokens)
            step = self._step()
            runs = part.repeats + WARM_UPS
            return Span(*(runs * (a + part.new_tokens * b) for a, b in zip(prefill, step, strict=True)))
        if isinstance(part, Reply):
            return Span(*(16 * each for each in self._step()))
        if isinstance(part, Task | DivergenceOf):
            return self._answers(part.task if isinstance(part, DivergenceOf) else part)
        if isinstance(part, Text):
            size = Path(part.file).stat().st_size if Path(part.file).is_file() else 0
            windows = max(1.0, size / 4 / part.stride)
            return Span(*(windows * each for each in self._read(part.window)))
        return None if isinstance(part, Load) else NOTHING

    def _answers(self, task: Task) -> Span | None:
        asked = self.totals.get(task.name)
        if task.harness is not None or asked is None:
            return None
        spans = []
        for i, (step, share, example) in enumerate(zip(self._step(), ANSWER, EXAMPLE_TOKENS, strict=True)):
            batches = math.ceil(asked / (task.batch_size or AT_ONCE[i]))
            prompt = self._read(((task.shots or 0) + 1) * example)[i]
            tokens = share * task.max_new_tokens
            compute = tokens * 2 * self.parameters / FLOPS[self.on_gpu][i]
            spans.append(batches * tokens * step + asked * (prompt + compute))
        return Span(*spans)

    def _step(self) -> tuple[float, float]:
        """Seconds of one token of few sequences."""
        low, high = (
            self.shape.layers * layer + self.weights / rate
            for layer, rate in zip(LAYER_S[self.on_gpu], BANDWIDTH[self.on_gpu], strict=True)
        )
        return low, high

    def _read(self, tokens: int) -> tuple[float, float]:
        """Seconds of reading so many tokens at once."""
        low, high = (2 * self.parameters * tokens / rate for rate in FLOPS[self.on_gpu])
        return low, high


def assumed(*, on_gpu: bool) -> str:
    """The rates that times are reckoned with, in words."""
    low, high = (f"{1e3 * each:g}" for each in LAYER_S[on_gpu])
    slow, fast = (f"{rate / 1e9:,.0f}" for rate in reversed(BANDWIDTH[on_gpu]))
    work = " to ".join(f"{rate / 1e12:g}" for rate in reversed(FLOPS[on_gpu]))
    return (
        f"assumed, for {'a GPU' if on_gpu else 'a CPU'}: {low} to {high} ms a layer and token, {slow} to {fast} GB/s "
        f"of memory, {work} TFLOP/s, {START_S[0]:g} to {START_S[1]:g} s to start a process, {AT_ONCE[1]} to "
        f"{AT_ONCE[0]} answers at once, of {100 * ANSWER[0]:g} to {100 * ANSWER[1]:g} % of max_new_tokens"
    )
