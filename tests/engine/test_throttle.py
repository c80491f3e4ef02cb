"""A machine that slows down while something is timed: what kernel and driver say of it, and who gets to know."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.measurement import Device, Measurement, Speed
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.machine.nvml import visible_cards
from pytest_quantbudget.engine.machine.throttle import Watch
from pytest_quantbudget.judge.metrics.speed import doubts as speed_doubts
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure.bench import Bench, Gathered
from pytest_quantbudget.measure.store import Store

CORE = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
PACKAGE = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
STAT = "usage_usec 5\nnr_periods {}\nnr_throttled {}\nthrottled_usec 9\n"


def put(root: Path, **files: str) -> None:
    """Write files under a directory that stands for `/`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def put_stat(root: Path, group: str, periods: int, throttled: int) -> None:
    put(root, **{f"sys/fs/cgroup/{group}/cpu.stat": STAT.format(periods, throttled)})


def test_cores_that_got_too_hot_are_counted_once_however_many_share_the_count(tmp_path: Path) -> None:
    put(tmp_path, **{CORE.format(0): "5\n", CORE.format(1): "5\n", CORE.format(2): "?", PACKAGE: "1\n"})
    watch = Watch([], tmp_path)
    watch.look()
    assert watch.words() == ()
    put(tmp_path, **{CORE.format(0): "8\n", CORE.format(1): "8\n", PACKAGE: "2\n"})
    assert watch.words() == ("CPU thermal throttling (3 times)",)


@pytest.mark.parametrize(
    ("told", "group"),
    [
        ("0::/user/job\n", "user/job"),
        ("0::/user/job\n", "user"),  # the limit is on a group around it
        ("0::/\n", ""),
        ("4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n", "cpu,cpuacct/docker/1"),
        (
            "3:cpu,cpuacct:/docker/1\n",
            "cpu,cpuacct",
        ),  # the path is the host's, and the container sees its own as the top
    ],
    ids=["v2", "v2, around", "v2, container", "v1", "v1, container"],
)
def test_a_control_groups_cpu_limit_is_told_as_a_share_of_its_periods(tmp_path: Path, told: str, group: str) -> None:
    put(tmp_path, **{"proc/self/cgroup": told})
    put_stat(tmp_path, group, 1000, 900)
    watch = Watch([], tmp_path)
    put_stat(tmp_path, group, 1100, 901)
    assert watch.words() == (), "one period in a hundred"
    put_stat(tmp_path, group, 1100, 912)
    assert watch.words() == ("the CPU limit of its control group (in 12 % of its periods)",)


@pytest.mark.parametrize("told", ["", "garbage", "::::\n0::/../..\n", "3:cpu:/\n"])
def test_what_cannot_be_read_slows_nothing_down(tmp_path: Path, told: str) -> None:
    put(tmp_path, **{"proc/self/cgroup": told, "sys/fs/cgroup/cpu/cpu.stat": "nr_periods x\n\nnr_throttled\n"})
    watch = Watch([], tmp_path)
    watch.look()
    assert watch.words() == ()


class Nvml:
    """The functions of pynvml that are asked, for one GPU; `hot` counts nanoseconds, None where that is not known."""

    NVML_PERF_POLICY_THERMAL = 1

    class NVMLError(Exception):
        pass

    NVMLLibraryMismatchError = NVMLError

    def __init__(self, reasons: list[int], hot: list[int] | None) -> None:
        self.reasons, self.hot = reasons, hot
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:  # noqa: N802
        if not self.reasons:
            raise self.NVMLError("not supported")
        return self.reasons.pop(0)

    def nvmlDeviceGetViolationStatus(self, gpu: str, policy: int) -> Any:  # noqa: N802
        if not self.hot or policy != self.NVML_PERF_POLICY_THERMAL:
            raise self.NVMLError("not supported")
        return SimpleNamespace(violationTime=self.hot.pop(0))


@pytest.mark.parametrize(
    ("visible", "reasons", "hot", "words"),
    [
        # Idle, at its power limit, while clocks change.
        ("GPU-1", [0x1, 0x4, 0x8], [5, 5], ()),
        ("GPU-1", [0x0, 0x48, 0x44], [5, 5], ("GPU hardware thermal slowdown",)),
        ("GPU-1", [0x20, 0x80, 0x0], None, ("GPU software thermal slowdown", "GPU power brake")),
        ("GPU-1", [0x0] * 3, [10**9, 25 * 10**8], ("GPU below its clocks for heat (1.5 s)",)),
        ("GPU-1", [], None, ()),
        ("GPU-2", [0x40] * 3, [0, 10**9], ()),
        ("0", [0x40] * 3, [0, 10**9], ()),  # a number may be another GPU's under NVML
    ],
    ids=["at work", "hot", "not counted", "between looks", "old driver", "gone", "by number"],
)
def test_a_gpu_is_asked_at_each_look_and_for_its_counter(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str,
    reasons: list[int],
    hot: list[int] | None,
    words: tuple[str, ...],
) -> None:
    nvml = Nvml(reasons, hot)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watch = Watch(visible_cards({"CUDA_VISIBLE_DEVICES": visible}), tmp_path)
    for _ in range(3):
        watch.look()
    assert watch.words() == words
    assert nvml.opened == visible.startswith("GPU")


STEADY = (1.0, 1.01, 0.99, 1.0, 1.02)
RISING = (1.0, 1.02, 1.05, 1.1, 1.14)
FALLING = (1.3, 1.2, 1.1, 1.0, 0.9)
WORKLOAD = Workload(16, 8, 1, 5)


@pytest.mark.parametrize(
    ("ttft", "decode", "doubts"),
    [
        (STEADY, STEADY, ()),
        (STEADY, RISING, ("decode time rose by 11 % over the 5 repeats: is the machine slowing down?",)),
        (
            RISING,
            RISING,
            (
                "time to first token rose by 11 % and decode time rose by 11 % over the 5 repeats: "
                "is the machine slowing down?",
            ),
        ),
        (FALLING, STEADY, ("time to first token fell by 24 % over the 5 repeats: is the machine still warming up?",)),
    ],
    ids=["steady", "decode", "both", "falling"],
)
def test_repeats_that_drift_are_doubted_once(
    ttft: tuple[float, ...], decode: tuple[float, ...], doubts: tuple[str, ...]
) -> None:
    speed = Speed(WORKLOAD, ttft, decode, None, None)
    assert speed_doubts(speed) == doubts
    hot = replace(speed, throttled=("GPU power brake", "CPU thermal throttling (3 times)"))
    words = "throttled while it was timed: GPU power brake, CPU thermal throttling (3 times)"
    assert speed_doubts(hot) == (*doubts, words)


def test_doubts_are_notes_of_the_measurement_and_stand_in_the_messages_of_speed_limits(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(
        "model: builtin\nbaseline: fp32\nworkload: {prompt_tokens: 16, new_tokens: 8}\nmethods:\n  fp32: {}\n"
        "  nf4: {budget: {min_speedup: 2, max_ttft: 500 ms, max_weights: 1 MiB}}\n"
    )
    budget = load_budget(path)
    slow = Speed(budget.workload, STEADY, RISING, None, None, throttled=("GPU power brake",))
    rose = "decode time rose by 11 % over the 5 repeats: is the machine slowing down?"
    braked = "throttled while it was timed: GPU power brake"

    bench = Bench(tmp_path, tmp_path, tmp_path, Store(str(tmp_path)))
    method = budget.method("nf4")
    told = Measurement(
        method.subject, device=Device("cpu", None, None, None, None, 2), weights=2**21, speeds=(slow,), notes=("a",)
    )
    whole = bench._whole(Gathered(method.subject, [told]))
    assert whole.notes == ("a", f"nf4: {rose}", f"nf4: {braked}")
    assert codec.from_builtins(Measurement, codec.to_builtins(whole)) == whole

    base = replace(
        told, subject=budget.method("fp32").subject, speeds=(Speed(budget.workload, STEADY, STEADY, None, None),)
    )
    speedup, ttft, weights = (judge(budget, method, limit, {"nf4": told, "fp32": base}) for limit in method.limits)
    assert f"; nf4: {rose}; {braked})" in speedup.message
    assert f"; {rose}; {braked})" in ttft.message
    assert "rose" not in weights.message
