"""Limits on energy a token: of decoding and of the prefill, as exact as NVML's counters are."""

from dataclasses import replace
from typing import Any

import pytest
from judged import CPU, Load, measured, verdict

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.gpu_usage import Energy, Occupant
from pytest_quantbudget.core.measurement import Device, Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.verdict import OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.judge import intervals, margin

# 2 sequences of 512 + 101 tokens: 200 decoded and 1,024 read; decoding takes 1 to 4 s, the prefill 40 to 80 ms.
TOLD = Energy((20.48, 20.48, 20.48, 20.48, 20.48), (100.0, 110.0, 120.0, 130.0, 140.0), 0.02)


def record(budget: Budget, name: str, energy: Energy | None = TOLD, **more: Any) -> Measurement:
    plain = measured(budget, name)
    return replace(plain, speeds=(replace(plain.speeds[0], energy=energy, **more),))


@pytest.mark.parametrize(
    ("limit", "outcome", "decision"),
    [("1 J", WITHIN, WITHIN), ("400 mJ", OVER, OVER), ("0.65 J", WITHIN, UNDECIDED), ("0.0001 Wh", OVER, OVER)],
)
def test_decoding_is_judged_by_joules_a_token(load: Load, limit: str, outcome: str, decision: str) -> None:
    budget = load(f"max_energy_per_token: {limit}")
    found = verdict(budget, record(budget, "nf4"))
    assert (found.outcome, found.decision) == (outcome, decision), found.message
    # 120 J in the median, over 200 tokens; counters that are 20 ms old in a span of 1 s leave 2 % open.
    assert found.measured == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.5 * 0.98, 0.7 * 1.02))
    assert "counters renewed every 20.0 ms, up to 2.0 % of it" in found.message


def test_a_ratio_has_the_bounds_of_both_sides_and_their_counters(load: Load) -> None:
    budget = load("max_energy_per_token_ratio: 0.8")
    base = record(budget, "fp16", replace(TOLD, decode_j=(200.0, 220.0, 240.0, 260.0, 280.0), renewed_s=0.05))
    found = verdict(budget, record(budget, "nf4"), base)
    assert found.measured == pytest.approx(0.5)
    exact = intervals.ratio_interval(TOLD.decode_j, (200.0, 220.0, 240.0, 260.0, 280.0), 0.95)
    assert (found.low, found.high) == pytest.approx((exact.low * 0.98 / 1.05, exact.high * 1.02 / 0.95))
    assert found.outcome == WITHIN
    assert "(0.6 J against fp16's 1.20 J; nf4: counters renewed every 20.0 ms, up to 2.0 % of it; fp16" in found.message


def test_a_short_prefill_is_told_as_too_short_and_what_would_do(load: Load) -> None:
    budget = load("max_prefill_energy_per_token: 1 J")
    found = verdict(budget, record(budget, "nf4"))
    assert found.outcome == SKIPPED
    assert "the prefill took 40.0 ms, too short for counters of energy that are renewed every 20.0 ms" in found.message
    assert "200 ms would do, as with about `prompt_tokens: 2560` or a larger batch" in found.message
    long = record(budget, "nf4", ttft_s=(0.2, 0.21, 0.22, 0.21, 0.2))
    assert verdict(budget, long).measured == pytest.approx(0.02)


def test_a_span_that_is_long_enough_by_a_hair_is_judged(load: Load) -> None:
    budget = load("max_energy_per_token: 1 J")
    for renewed_s, outcome in ((0.1, WITHIN), (0.1001, SKIPPED)):
        found = verdict(budget, record(budget, "nf4", replace(TOLD, renewed_s=renewed_s)))
        assert found.outcome == outcome


@pytest.mark.parametrize(
    ("energy", "more", "why"),
    [
        (None, {}, "energy was not recorded: --quant-refresh measures it anew"),
        (Energy(why="NVML counts no energy of a MIG slice (MIG-1)"), {}, "NVML counts no energy of a MIG slice"),
        (None, {"device": CPU}, "there is no GPU, whose counter of energy would tell it"),
        (None, {"untold": {"energy": "a server does not tell"}}, "a server does not tell"),
        (replace(TOLD, decode_j=(0.0, 1.0, 1.0, 1.0, 1.0)), {}, "a counter of energy did not move while decoding"),
    ],
)
def test_what_is_not_known_is_skipped_in_words(
    load: Load, energy: Energy | None, more: dict[str, Any], why: str
) -> None:
    budget = load("max_energy_per_token: 1 J")
    found = verdict(budget, replace(record(budget, "nf4", energy), **more))
    assert found.outcome == SKIPPED
    assert why in found.message


def test_whoever_else_draws_power_is_told(load: Load) -> None:
    budget = load("max_energy_per_token: 1 J")
    other = Occupant("GPU-1", 123, "python", 2**30, before=True)
    found = verdict(budget, record(budget, "nf4", occupants=(other,)))
    assert "the GPU was shared while it was timed: pid 123 python, 1.00 GiB" in found.message


def test_energies_of_unlike_gpus_are_not_compared(load: Load) -> None:
    budget = load("max_energy_per_token_ratio: 0.8")
    other = replace(record(budget, "fp16"), device=Device("NVIDIA L4", "GPU-2", 24 * 2**30, "8.9", "13.0", 2))
    assert "measured on NVIDIA H100" in verdict(budget, record(budget, "nf4"), other).message


def test_a_bare_number_is_refused(load: Load) -> None:
    with pytest.raises(BudgetError, match="5 has no unit, and J and mJ differ by 1,000; write for example 500 mJ"):
        load("max_energy_per_token: 5")
    with pytest.raises(BudgetError, match="has an unknown unit 'MJ'"):
        load("max_energy_per_token: 5 MJ")


def test_auto_takes_the_noise_of_repeat_runs(load: Load) -> None:
    budget = load("max_energy_per_token: auto")
    records = {"nf4": record(budget, "nf4"), "fp16": record(budget, "fp16")}
    limit = budget.method("nf4").limits[0]
    found = margin.calibrated(budget, "nf4", limit, "", records, runs={"energy": (0.59, 0.60, 0.61, 0.60, 0.60)})
    assert found.text.endswith(" mJ")
    assert 0.6 < found.value < 0.7


def test_an_energy_without_its_resolution_is_no_record() -> None:
    for values in ({"renewed_s": 0.0}, {"decode_j": (-1.0,)}, {"prefill_j": ()}, {"decode_j": (float("nan"),)}):
        with pytest.raises(ValueError, match="an energy "):
            replace(TOLD, **values)
