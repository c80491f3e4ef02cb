"""Warm-ups and repeats of a workload, and what the GPUs did meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pytest_quantbudget.engine.machine.gpus import Gpus, Looks
from pytest_quantbudget.engine.machine.throttle import Watch

T = TypeVar("T")

STEADY = 0.05  # share by which a run may differ from the one before it, once the machine is warm
MOST_WARMUPS = 3


@dataclass(frozen=True)
class Timed(Generic[T]):
    """The runs of a workload; `seen` are the fields of a `Speed` that say what the GPUs did."""

    warmups: list[T]
    repeats: list[T]
    seen: dict[str, Any]


def repeated(run: Callable[[], T], seconds: Callable[[T], float], count: int, gpus: Gpus) -> Timed[T]:
    """Run a workload `count` times after warm-ups of the same shape.

    The first run is a warm-up, and so are the next ones, up to three in all, until one takes as long as the one before
    it, within 5 %: that is the first repeat.
    """
    looks, watch = Looks(gpus), Watch(gpus.cards)
    warmups, repeats = [run()], list[T]()
    while len(repeats) < count:
        timing = run()
        watch.look()
        looks.look()
        steady = abs(seconds(timing) / seconds(warmups[-1]) - 1) <= STEADY
        if repeats or steady or len(warmups) == MOST_WARMUPS:
            repeats.append(timing)
            looks.sample()
        else:
            warmups.append(timing)
    seen = {
        "throttled": watch.words(),
        "occupants": looks.occupants,
        "busy_before": gpus.busy_before,
        "clocks": looks.clocks,
    }
    return Timed(warmups, repeats, seen)
