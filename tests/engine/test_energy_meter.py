"""Counters of energy: NVML is simulated below pynvml, and so is the time."""

from collections.abc import Callable

import pytest

pytest.importorskip("pynvml")

from simulated.driver import Driver

from pytest_quantbudget.engine.machine.energy import PATIENCE_S, Meter
from pytest_quantbudget.engine.machine.nvml import visible_cards


class Time:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 5.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def counter(self, watts: float, renewed_s: float) -> Callable[[], int]:
        """Millijoules at so many watts, renewed every so often."""
        return lambda: int(self.now / renewed_s) * round(1000 * watts * renewed_s)


def meter(driver: Driver, time: Time, *uuids: str) -> Meter:
    cards = visible_cards({"CUDA_VISIBLE_DEVICES": ",".join(uuids or driver.cards)})
    return Meter(cards, time.clock, time.sleep)


def test_energies_of_all_gpus_are_summed_and_the_slowest_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, time = Driver(monkeypatch, "GPU-1", "GPU-2"), Time()
    driver.cards["GPU-1"].energy = time.counter(100, 0.02)
    driver.cards["GPU-2"].energy = time.counter(300, 0.1)
    found = meter(driver, time)
    assert found.why == ""
    assert found.renewed_s == pytest.approx(0.1, abs=0.003)
    before = found.read()
    time.sleep(2.0)
    after = found.read()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(800, abs=300 * 0.1 + 100 * 0.02)


@pytest.mark.parametrize(("uuid", "words"), [("GPU-1", "this GPU (GPU-1)"), ("MIG-1", "a MIG slice (MIG-1)")])
def test_a_gpu_that_counts_no_energy_is_told(monkeypatch: pytest.MonkeyPatch, uuid: str, words: str) -> None:
    driver, time = Driver(monkeypatch, "GPU-0", uuid), Time()
    driver.cards["GPU-0"].energy = time.counter(100, 0.02)
    found = meter(driver, time)
    assert found.why == f"NVML counts no energy of {words}"
    assert found.read() is None
    assert time.now == 5.0


def test_a_driver_without_the_function_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, "GPU-1", without=("nvmlDeviceGetTotalEnergyConsumption",))
    assert "NVML counts no energy" in meter(driver, Time()).why


def test_gpus_that_nvml_does_not_see_have_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Meter([])
    assert "nvidia-ml-py and a CUDA_VISIBLE_DEVICES with UUIDs" in found.why
    assert found.read() is None


@pytest.mark.parametrize("renewed_s", [1e9, 0.7])
def test_a_counter_that_stands_still_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch, renewed_s: float
) -> None:
    driver, time = Driver(monkeypatch, "GPU-1"), Time()
    driver.cards["GPU-1"].energy = time.counter(1, renewed_s)
    found = meter(driver, time)
    assert found.why == "a counter of energy stood still for 1 s"
    assert time.now == pytest.approx(5.0 + PATIENCE_S, abs=0.01)


def test_a_counter_that_fails_later_tells_nothing_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, time = Driver(monkeypatch, "GPU-1", "GPU-2"), Time()
    for card in driver.cards.values():
        card.energy = time.counter(100, 0.02)
    found = meter(driver, time)
    driver.cards["GPU-2"].energy = None
    assert found.read() is None
