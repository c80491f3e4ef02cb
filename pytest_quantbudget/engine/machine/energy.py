"""Energy that the GPUs take: NVML's counters, and how often these are renewed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

from pytest_quantbudget.engine.machine.nvml import Card

PATIENCE_S = 1.0  # in which a counter is renewed several times: most GPUs do so every 20 to 100 ms
RENEWALS = 4
STEP_S = 0.001


class Meter:
    """The energy of some GPUs together, in joules since any moment; `why` says in words why it is not known.

    `renewed_s` is the longest time between two renewals of a counter that was seen: what a GPU takes in a shorter time
    does not show. `nvmlDeviceGetTotalEnergyConsumption` counts millijoules since the driver was loaded, of the
    whole GPU, whoever uses it, from Volta on (NVML API reference); MIG slices have no counter of their own.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cards = cards
        self.renewed_s = 0.0
        self.why = ""
        if not cards:
            self.why = "NVML does not tell which GPUs these are: nvidia-ml-py and a CUDA_VISIBLE_DEVICES with UUIDs do"
        for card in cards:
            if _millijoules(card) is None:
                slices = "a MIG slice" if card.uuid.startswith("MIG-") else "this GPU"
                self.why = f"NVML counts no energy of {slices} ({card.uuid})"
        if not self.why:
            self.renewed_s = max(_renewal(card, clock, sleep) for card in cards)
        if math.isinf(self.renewed_s):
            self.why = f"a counter of energy stood still for {PATIENCE_S:g} s"

    def read(self) -> float | None:
        """Joules of all of them together; None where one does not tell."""
        counts = [] if self.why else [_millijoules(card) for card in self.cards]
        known = [count for count in counts if count is not None]
        return sum(known) / 1000 if known and len(known) == len(counts) else None


def _millijoules(card: Card) -> int | None:
    count = card.ask("nvmlDeviceGetTotalEnergyConsumption")
    return None if count is None else int(count)


def _renewal(card: Card, clock: Callable[[], float], sleep: Callable[[float], None]) -> float:
    """The longest time between two of a few renewals; infinite where fewer than two are seen."""
    until, count = clock() + PATIENCE_S, _millijoules(card)
    renewed: list[float] = []
    while len(renewed) <= RENEWALS and clock() < until:
        sleep(STEP_S)
        now = _millijoules(card)
        if now != count:
            renewed.append(clock())
            count = now
    return max((later - earlier for earlier, later in itertools.pairwise(renewed)), default=math.inf)
