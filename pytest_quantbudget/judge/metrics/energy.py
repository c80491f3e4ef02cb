"""Energy a token: what the GPUs take while tokens are decoded, and while a prompt is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import ENERGY, number
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.units import energy_unit, format_energy, format_time
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.base import Case, Column, Figure, column
from pytest_quantbudget.judge.metrics.speed import Timed

if TYPE_CHECKING:
    from pytest_quantbudget.core.gpu_usage import Energy
    from pytest_quantbudget.core.measurement import Measurement, Speed

RENEWALS = 10  # of the counter, that a span has to last: each end may be off by one of them


class _Energy(Timed):
    """Joules a token over a span of each repeat; the GPUs' whole power counts, whoever draws it."""

    what: ClassVar[str]
    longer: ClassVar[str]  # the workload's key that makes the span longer

    def joules(self, energy: Energy) -> Sequence[float]:
        """The energy of the span in each repeat, of all GPUs."""
        raise NotImplementedError

    def spans(self, speed: Speed) -> Sequence[float]:
        """How long the span took in each repeat, seconds."""
        raise NotImplementedError

    def tokens(self, speed: Speed) -> int:
        """The tokens of the span, over the whole batch."""
        raise NotImplementedError

    def repeats(self, speed: Speed) -> Sequence[float]:
        """Joules a token of each repeat."""
        return [joules / self.tokens(speed) for joules in self.joules(speed.energy)] if speed.energy else []

    def median(self, speed: Speed) -> float:
        """Their median."""
        from statistics import median

        return median(self.repeats(speed))

    def timings(self, speed: Speed) -> Sequence[float]:
        """The energies themselves."""
        return self.repeats(speed)

    def of_run(self, basis: Basis, record: Measurement) -> float | None:
        """The median of a run; None where its energy was not told, or not well enough."""
        speed = record.speed(basis.workload)
        told = speed is not None and speed.energy is not None and not self._short(speed) and self.repeats(speed)
        return self.median(speed) if speed is not None and told and self.median(speed) > 0 else None

    def absolute(self, case: Case) -> Figure:
        """The median of the repeats, with bounds as much wider as the counters are coarse. Raises Unmeasured."""
        phase = case.basis.workload.phase
        case.check_told("energy", phase)
        speed = case.need(case.record.speed(case.basis.workload), phase)
        if case.record.device is not None and case.record.device.name == "cpu":
            raise case.unmeasured(phase, "there is no GPU, whose counter of energy would tell it", "no-gpu")
        if speed.energy is None:
            raise case.unmeasured(phase, "energy was not recorded: --quant-refresh measures it anew", "not offered")
        if speed.energy.why:
            raise case.unmeasured(phase, speed.energy.why, "no-gpu")
        if why := self._short(speed):
            raise case.unmeasured(phase, why, "not offered")
        if min(self.repeats(speed)) <= 0:
            raise case.unmeasured(phase, f"a counter of energy did not move while {self.what} was timed", "not offered")
        found, off = super().absolute(case), self._off(speed)
        assert found.bounds is not None
        wider = Interval(found.bounds.low * (1 - off), found.bounds.high * (1 + off))
        told = f"{found.remark}; " if found.remark else ""
        told += f"counters renewed every {format_time(speed.energy.renewed_s)}, up to {100 * off:.1f} % of it"
        return replace(found, bounds=wider, remark=told)

    def bounded(self, case: Case, ratio: Figure, own: Figure, other: Figure) -> Figure:
        """Rank-sum bounds of the factor, with what the counters of both sides leave open."""
        found = super().bounded(case, ratio, own, other)
        speeds = [record.speed(case.basis.workload) for record in (case.record, case.measured[case.baseline])]
        ours, theirs = (self._off(speed) for speed in speeds if speed is not None)
        assert found.bounds is not None
        low, high = found.bounds.low * (1 - ours) / (1 + theirs), found.bounds.high * (1 + ours) / (1 - theirs)
        return replace(found, bounds=Interval(low, high))

    def _off(self, speed: Speed) -> float:
        """By which share a span's energy may be off, because counters are read between two renewals."""
        return speed.energy.renewed_s / min(self.spans(speed)) if speed.energy else math.inf

    def _short(self, speed: Speed) -> str:
        """That a span is too short for the counters, in words; nothing where it is not."""
        if speed.energy is None or self._off(speed) <= 1 / RENEWALS:
            return ""
        shortest, needed = min(self.spans(speed)), RENEWALS * speed.energy.renewed_s
        value = math.ceil(getattr(speed.workload, self.longer) * needed / shortest)
        return (
            f"{self.what} took {format_time(shortest)}, too short for counters of energy that are renewed every "
            f"{format_time(speed.energy.renewed_s)}: {format_time(needed)} would do, as with about "
            f"`{self.longer}: {value}` or a larger batch"
        )

    def unit(self, *values: float) -> str:
        """That of the larger."""
        return energy_unit(*values)

    def columns(self, basis: Basis) -> Sequence[Column]:
        """The energy, where it is limited."""
        kind = self.limits[0].name
        return (column(self, self.noise_name, kind, format_energy, optional=True, limited=True, stays=4),)


class DecodeEnergy(_Energy):
    """Joules a decoded token, the first of each sequence left out; all GPUs together."""

    name = "energy"
    noise_name = "J/token"
    what, longer = "decoding", "new_tokens"
    limits = (
        LimitKind(
            "max_energy_per_token",
            "max",
            "energy",
            "",
            "",
            ENERGY,
            "Energy of the GPUs a decoded token, by NVML's counts.",
        ),
        LimitKind(
            "max_energy_per_token_ratio",
            "max",
            "energy",
            "ratio",
            "",
            number(0),
            "Energy of the GPUs a decoded token over the baseline's.",
        ),
    )

    def joules(self, energy: Energy) -> Sequence[float]:
        """Of decoding."""
        return energy.decode_j

    def spans(self, speed: Speed) -> Sequence[float]:
        """The decode times."""
        return speed.decode_s

    def tokens(self, speed: Speed) -> int:
        """All but the first."""
        return speed.workload.batch_size * (speed.workload.new_tokens - 1)


class PrefillEnergy(_Energy):
    """Joules a token of the prompts, which the prefill reads; all GPUs together."""

    name = "prefill_energy"
    noise_name = "J/prompt token"
    what, longer = "the prefill", "prompt_tokens"
    limits = (
        LimitKind(
            "max_prefill_energy_per_token",
            "max",
            "prefill_energy",
            "",
            "",
            ENERGY,
            "Energy of the GPUs a token of the prompts, in the prefill, by NVML's counters.",
        ),
        LimitKind(
            "max_prefill_energy_per_token_ratio",
            "max",
            "prefill_energy",
            "ratio",
            "",
            number(0),
            "Energy of the GPUs a token of the prompts over the baseline's.",
        ),
    )

    def joules(self, energy: Energy) -> Sequence[float]:
        """Of the prefill."""
        return energy.prefill_j

    def spans(self, speed: Speed) -> Sequence[float]:
        """The times to the first token."""
        return speed.ttft_s

    def tokens(self, speed: Speed) -> int:
        """Those of all prompts."""
        return speed.workload.batch_size * speed.workload.prompt_tokens
