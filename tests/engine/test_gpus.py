"""What a GPU is used for and by whom: NVML is simulated below pynvml, torch.cuda function by function."""

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from simulated.driver import OLD_DRIVER, Driver

from pytest_quantbudget.core.gpu_usage import GpuMemory, Occupant, larger, shared, summed
from pytest_quantbudget.engine.machine import gpus as gpus_module
from pytest_quantbudget.engine.machine.gpus import Gpus, Looks, Sampler, own_pids
from pytest_quantbudget.engine.machine.nvml import all_gpus

GIB = 2**30
ME = os.getpid()
ONE = {"CUDA_VISIBLE_DEVICES": "GPU-1"}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc that knows this process under its own pid, and some others."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(f"Name:\tpython\nPid:\t{ME}\nNSpid:\t{ME}\n")
    for pid, name in {123: "python", 124: "vllm"}.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
    return tmp_path


def test_every_function_that_nvml_is_asked_for_by_name_exists() -> None:
    sources = [path.read_text() for path in Path(gpus_module.__file__).parent.glob("*.py")]
    names = set(re.findall(r'"(nvml\w+)"', "".join(sources)))
    assert len(names) > 10
    assert [name for name in names if not callable(getattr(pynvml, name, None))] == []


Processes = dict[int, int | None]


@pytest.mark.parametrize(
    ("nspid", "before", "after", "memory", "how"),
    [
        (f"{ME}", {123: GIB}, {123: GIB, ME: 7 * GIB}, 7 * GIB, f"pid {ME}"),
        (f"9999999 {ME}", {}, {9999999: 7 * GIB}, 7 * GIB, "pid 9999999"),
        (
            f"{ME}",
            {123: GIB},
            {123: GIB, 8888888: 7 * GIB},
            7 * GIB,
            "pid 8888888, the only one that appeared with this process",
        ),
        # The host's process of our number was there before us: it is not this one.
        (
            f"{ME}",
            {ME: GIB},
            {ME: GIB, 8888888: 7 * GIB},
            7 * GIB,
            "pid 8888888, the only one that appeared with this process",
        ),
        (f"{ME}", {}, {ME: None}, None, f"pid {ME}; NVML does not tell its memory"),
        (f"{ME}", {}, {}, None, "NVML names no process, as in many containers"),
        (f"{ME}", {123: GIB}, {123: GIB}, None, "NVML names 1 process, and which of them is this one cannot be told"),
        (
            f"{ME}",
            {},
            {7777777: GIB, 8888888: 7 * GIB},
            None,
            "NVML names 2 processes, and which of them is this one cannot be told",
        ),
    ],
    ids=[
        *["own pid", "pid of an outer namespace", "the host's pid", "the host's pid, ours taken", "memory not told"],
        *["no process", "others only", "two appeared"],
    ],
)
def test_this_process_is_found_among_those_that_nvml_names(
    monkeypatch: pytest.MonkeyPatch, proc: Path, nspid: str, before: Processes, after: Processes, memory: int, how: str
) -> None:
    (proc / "self/status").write_text(f"NSpid:\t{nspid.replace(' ', chr(9))}\n")
    driver = Driver(monkeypatch, "GPU-1")
    driver.cards["GPU-1"].processes = before
    gpus = Gpus(ONE, proc)
    driver.cards["GPU-1"].processes = after
    assert gpus.own_memory(0) == (memory, how)
    assert gpus.own_memory(1) == (None, "NVML does not name processes here")


def test_without_a_binding_of_nvml_nothing_is_told_and_that_is_why(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = Gpus(ONE, proc)
    assert gpus.own_memory(0) == (None, "nvidia-ml-py is not installed")
    assert gpus.busy_before is None
    assert all_gpus() == []


def test_once_found_it_stays_found(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    driver = Driver(monkeypatch, "GPU-1")
    gpus, card = Gpus(ONE, proc), driver.cards["GPU-1"]
    card.processes = {8888888: GIB}
    gpus.own_memory(0)
    card.processes = {7777777: GIB, 8888888: 3 * GIB}
    assert gpus.own_memory(0)[0] == 3 * GIB


@pytest.mark.parametrize(
    ("driver", "environ"),
    [
        (None, ONE),
        (("GPU-2",), ONE),
        (("GPU-1",), {"CUDA_VISIBLE_DEVICES": "0"}),
        (("GPU-1",), {}),
        (("GPU-1",), {"CUDA_VISIBLE_DEVICES": "GPU-1,0"}),
    ],
    ids=["no driver", "unknown UUID", "an index", "unset", "not all UUIDs"],
)
def test_where_nvml_knows_nothing_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, proc: Path, driver: tuple[str] | None, environ: dict[str, str]
) -> None:
    if driver is not None:
        Driver(monkeypatch, *driver)
    gpus = Gpus(environ, proc)
    looks = Looks(gpus)
    looks.look()
    looks.sample()
    assert gpus.own_memory(0) == (None, "NVML does not name processes here")
    assert (looks.occupants, looks.clocks, gpus.busy_before, gpus.crowd()) == ((), (), None, "")
    with Sampler(gpus.cards) as sampler:
        assert not any(sampler.take())


def test_what_a_gpu_refuses_is_not_told_and_the_rest_is(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    driver = Driver(monkeypatch, "GPU-1")
    card = driver.cards["GPU-1"]
    refused = int(pynvml.NVML_ERROR_NOT_SUPPORTED)
    card.refuses = {"memory": refused, "busy": refused, "power": refused, "processes": refused}
    gpus = Gpus(ONE, proc)
    looks = Looks(gpus)
    looks.sample()
    (clocks,) = looks.clocks
    assert (clocks.sm_mhz, clocks.max_sm_mhz, clocks.temperature_c) == ((1400,), 1900, (61,))
    assert (clocks.power_w, clocks.power_limit_w) == ((), None)
    assert (gpus.known[0].before, gpus.known[0].used_before, gpus.busy_before) == (None, None, None)


def test_older_drivers_are_asked_by_older_functions(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    driver = Driver(monkeypatch, "GPU-1", without=OLD_DRIVER)
    driver.cards["GPU-1"].used = 5 * GIB
    gpus = Gpus(ONE, proc)
    driver.cards["GPU-1"].processes = {ME: 7 * GIB}
    assert gpus.own_memory(0) == (7 * GIB, f"pid {ME}")
    assert gpus.known[0].used_before == 5 * GIB


def test_others_on_the_gpus_are_named_with_the_most_they_took(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    driver = Driver(monkeypatch, "GPU-1", "GPU-2")
    one, two = driver.cards.values()
    one.processes = {123: 3 * GIB, 125: GIB}
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-1"}, proc)
    looks = Looks(gpus)
    assert [gpus.name(index) for index in range(3)] == ["GPU-2", "GPU-1", "cuda:2"]  # torch's order
    one.processes = {123: 2 * GIB, ME: 7 * GIB}  # 125 ended before anything was timed
    two.processes = {ME: 7 * GIB}
    looks.look()
    one.processes |= {123: 4 * GIB, 124: None}
    two.clients = {126: GIB}
    looks.look()
    one.processes = {}
    looks.look()
    occupants = sorted(looks.occupants, key=lambda each: each.pid)
    assert occupants == [
        Occupant("GPU-1", 123, "python", 4 * GIB, before=True),
        Occupant("GPU-1", 124, "vllm", None, before=False),
        Occupant("GPU-2", 126, None, GIB, before=False),
    ]
    assert shared(occupants[:2], 35) == (
        "the GPU was shared while it was timed: pid 123 python, 4.00 GiB; pid 124 vllm; "
        "the GPU was 35 % busy before this process began"
    )
    assert shared((), 4) == ""


def test_in_a_container_nobody_is_called_by_a_name_that_is_anothers(
    monkeypatch: pytest.MonkeyPatch, proc: Path
) -> None:
    driver = Driver(monkeypatch, "GPU-1")
    driver.cards["GPU-1"].processes = {123: 3 * GIB}  # the host's 123, which is not the container's
    gpus = Gpus(ONE, proc)
    driver.cards["GPU-1"].processes = {123: 3 * GIB, 8888888: 7 * GIB}
    assert gpus.crowd() == "; also on the GPU: pid 123, 3.00 GiB"


def test_while_it_is_not_known_which_process_is_this_one_only_older_ones_are_others(
    monkeypatch: pytest.MonkeyPatch, proc: Path
) -> None:
    driver = Driver(monkeypatch, "GPU-1")
    driver.cards["GPU-1"].processes = {123: GIB}
    gpus = Gpus(ONE, proc)
    driver.cards["GPU-1"].processes = {123: GIB, 7777777: GIB, 8888888: GIB}
    looks = Looks(gpus)
    looks.look()
    assert [each.pid for each in looks.occupants] == [123]


@pytest.mark.parametrize(
    ("busy", "found"), [([0], 0), ([90, 40, 0], 0), ([90, 80, 70, 60, 50], 50), ([4], 4)],
    ids=["idle", "a process that has just ended", "another's work", "a desktop"],
)  # fmt: skip
def test_work_of_others_shows_before_our_own_begins(
    monkeypatch: pytest.MonkeyPatch, proc: Path, busy: list[int], found: int
) -> None:
    monkeypatch.setattr(gpus_module, "PATIENCE_S", 0.25)
    Driver(monkeypatch, "GPU-1").cards["GPU-1"].busy = busy
    assert Gpus(ONE, proc).busy_before == found


def test_the_pids_of_nested_namespaces_come_outermost_first(proc: Path) -> None:
    (proc / "self/status").write_text(f"Name:\tx\nNSpid:\t4711\t12\t{ME}\n")
    assert own_pids(proc) == [4711, 12, ME]
    (proc / "self/status").unlink()
    assert own_pids(proc) == [ME]
    assert ME in own_pids(Path("/proc"))


def test_the_peak_of_a_device_is_sampled_between_two_looks(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    monkeypatch.setattr(gpus_module, "PERIOD_S", 0.001)
    card = Driver(monkeypatch, "GPU-1").cards["GPU-1"]
    gpus = Gpus(ONE, proc)
    with Sampler(gpus.cards) as sampler:
        card.used = 9 * GIB
        deadline = time.monotonic() + 10
        while sampler.peaks != [9 * GIB] and time.monotonic() < deadline:
            time.sleep(0.001)
        card.used = 8 * GIB
        assert sampler.take() == [9 * GIB]
        assert sampler.take() == [8 * GIB]
    assert not sampler.thread.is_alive()


def test_what_one_gpu_does_not_tell_has_no_sum_and_of_several_looks_the_largest_counts() -> None:
    one, two = GpuMemory(5, 6, 7, 8, 1, 3), GpuMemory(50, 60, None, 80, 10, None)
    assert summed([one, two]) == GpuMemory(55, 66, None, 88, 11, None)
    assert larger([one, replace(one, allocated=4, process=9, device=None)]) == replace(one, process=9)
