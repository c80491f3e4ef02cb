"""Time to first token and decode throughput of a workload."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.llama_cpp.session import Session
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.timing import timed


def measure(session: Session, workload: Workload, gpus: Gpus, *, on_gpu: bool) -> Speed:
    """Run the workload `repeats` times after a warm-up of the same shape, greedy, with fixed lengths.

    All prompts are sequences of one batch, drawn evenly from the vocabulary by a fixed seed. Time to first token runs
    from the first call of the library until the first token of every sequence is known; decode time from there to the
    last token. Choosing the tokens is part of both. Warm-ups are as `timing.timed` has them.

    Peaks are the buffers of the library on GPUs, which do not grow while it runs; None on a CPU. Raises ValueError
    where the workload does not fit the context; MemoryError.
    """
    session.shape(workload.batch_size, workload.prompt_tokens + workload.new_tokens, "the workload")
    speed = timed(workload, lambda: _run(session, workload), gpus)
    held = sum(session.on_gpus.values()) if on_gpu else None
    if held is None:
        return speed
    return replace(speed, peak_allocated=held, peak_reserved=held, peaks=(held,) * workload.repeats)


def _run(session: Session, workload: Workload) -> tuple[float, float]:
    """One run: seconds to the first tokens, and from there to the last."""
    size, length = workload.batch_size, workload.prompt_tokens
    prompts = np.random.default_rng(0).integers(0, session.vocabulary, (size, length), dtype=np.int32)
    session.clear()
    start = time.perf_counter()
    logits = session.feed([(row, 0, prompts[row], None) for row in range(size)])
    newest = logits.argmax(-1)
    first = time.perf_counter()
    for step in range(workload.new_tokens - 1):
        logits = session.feed([(row, length + step, newest[row : row + 1], True) for row in range(size)])
        newest = logits.argmax(-1)
    return first - start, time.perf_counter() - first
