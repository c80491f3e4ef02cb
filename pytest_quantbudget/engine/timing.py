"""Warm-ups and repeats of a workload, and what the GPUs did meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.machine.gpus import Gpus, Looks
from pytest_quantbudget.engine.machine.throttle import Watch

STEADY = 0.05  # share by which a run may differ from the one before it, once the machine is warm
MOST_WARMUPS = 3


def is_warm(seconds: float, before: float, warmups: int) -> bool:
    """Whether a run is as long as the one before it, or so many have been warm-ups that no more are."""
    return abs(seconds / before - 1) <= STEADY or warmups == MOST_WARMUPS


def timed(workload: Workload, run: Callable[[], tuple[float, float]], gpus: Gpus) -> Speed:
    """The timings of a workload; `run` gives seconds to the first token of every sequence, and from there to the last.

    The first run is a warm-up, and so are the next ones, up to three in all, until one takes as long as the one before
    it, within 5 %: that is the first repeat.
    """
    looks, watch = Looks(gpus), Watch(gpus.cards)
    warmups, repeats = [run()], list[tuple[float, float]]()
    while len(repeats) < workload.repeats:
        timing = run()
        watch.look()
        looks.look()
        if repeats or is_warm(sum(timing), sum(warmups[-1]), len(warmups)):
            repeats.append(timing)
            looks.sample()
        else:
            warmups.append(timing)
    return Speed(
        workload,
        tuple(first for first, _ in repeats),
        tuple(rest for _, rest in repeats),
        None,
        None,
        throttled=watch.words(),
        warmup_s=tuple(map(sum, warmups)),
        occupants=looks.occupants,
        busy_before=gpus.busy_before,
        clocks=looks.clocks,
    )
