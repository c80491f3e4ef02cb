"""The engine itself, which imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.base import Scored, Sequences
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.engine.machine.gpus import Gpus


class Autocast(Transformers):
    """`answer`, `score` and `time` are what engines are asked for; all of them run under autocast."""

    name = "acme-autocast"

    @classmethod
    def of(
        cls,
        subject: Subject,
        gpus: Gpus | None = None,
        quantized: str | None = None,
        trust: Any = None,
        pins: Any = None,
        prepared: Any = None,
    ) -> Autocast:
        """Load the subject as transformers does."""
        return cls(loading.load(subject, quantized, trust, pins, gpus, prepared), gpus)

    def answer(self, *given: Any, **more: Any) -> None:
        """Greedy answers to prompts of token ids."""
        with torch.autocast(self.model.device.type, torch.bfloat16):
            super().answer(*given, **more)

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """Log-probabilities of given tokens."""
        with torch.autocast(self.model.device.type, torch.bfloat16):
            yield from super().score(sequences)

    def time(self, workload: Workload) -> Speed:
        """A workload of fixed lengths."""
        with torch.autocast(self.model.device.type, torch.bfloat16):
            return super().time(workload)
