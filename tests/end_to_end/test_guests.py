"""Beside other plugins, which forbid sockets, fork each test, or end a test whose time is over."""

import json
from pathlib import Path

import pytest
from builders import COUNTING, IDS, outcomes

NO_SOCKETS = """
import socket
import warnings
import pytest

class NoSocket(socket.socket):
    def __new__(cls, *_, **__):
        warnings.warn("a test tried to use a socket")
        raise RuntimeError("a test tried to use a socket")

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    before, socket.socket = socket.socket, NoSocket
    try:
        return (yield)
    finally:
        socket.socket = before
"""
# As of pytest-forked, which does not run with pytest 9.2: of what a test changes, only its reports are kept.
FORKED = """
import json
import os
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item):
    hook = item.config.hook
    reading, writing = os.pipe()
    if not os.fork():
        reports = runtestprotocol(item, log=False)
        data = [hook.pytest_report_to_serializable(config=item.config, report=report) for report in reports]
        os.write(writing, json.dumps(data).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told = json.loads(file.read())
    for data in told:
        hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=item.config, data=data))
    os.wait()
    return True
"""
# As of pytest-timeout with its method `signal`, once the method bf16 has been loaded.
LATE = """
import signal
import pytest
from pytest_quantbudget.measure import process

original = process.run

def late(number, frame):
    pytest.fail("Timeout (>5.0s) from a plugin.")

def run(context, target, arguments, hear, *, name, **more):
    def heard(message):
        hear(message)
        if message.get("phase") == "task wordmath" and name.endswith("bf16"):
            signal.raise_signal(signal.SIGALRM)
    return original(context, target, arguments, heard, name=name, **more)

def pytest_sessionstart():
    signal.signal(signal.SIGALRM, late)

process.run = run
"""


def test_where_sockets_are_forbidden_processes_start_without(pytester: pytest.Pytester, small: Path) -> None:
    pytester.makeconftest(NO_SOCKETS)
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "-k", "fp32 and weights", "-W", "error")
    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.no_fnmatch_line("*a test tried to use a socket*")


def test_what_forked_tests_measure_is_measured_once_and_stands_in_the_report(
    pytester: pytest.Pytester, small: Path, simulated_engine: str
) -> None:
    pytester.makeconftest(simulated_engine + COUNTING + FORKED)
    args = ("--quant-budget", small.name, "--quant-no-cache", "--quant-report", "r.json")
    result = pytester.runpytest_subprocess(*args)
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["fp32 * 2.19 MiB  1.00x *2 within", "bf16 * 1.10 MiB  0.50x *3 within"])
    assert outcomes(Path("r.json")) == dict.fromkeys(IDS, "within")
    assert sorted(Path("started.txt").read_text().split()) == ["bf16", "fp32"]


def test_a_plugin_that_ends_a_test_costs_what_was_not_measured_by_then(
    pytester: pytest.Pytester, small: Path, simulated_engine: str
) -> None:
    small.write_text(
        small.read_text()
        .replace("{max_weights_ratio: 0.51, max_wordmath_drop: 60,", "{max_wordmath_drop: 60, max_weights_ratio: 0.51,")
        .replace("methods:", "methods:\n  fp16: {budget: {min_wordmath: 50}}")
    )
    pytester.makeconftest(simulated_engine + LATE)
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "--quant-report", "r.json")
    result.assert_outcomes(passed=4, failed=2)
    why = "Timeout (>5.0s) from a plugin."
    result.stdout.fnmatch_lines(
        [
            f"not judged: {why}",
            "small.yaml:13: this line",
            f"not measured: measuring was interrupted (Failed: {why})",
        ]
    )
    methods = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    told = {limit["id"]: limit["verdict"]["message"] for method in methods for limit in method["limits"]}
    assert told["small.yaml::bf16::max_wordmath_drop"] == f"bf16: max_wordmath_drop not judged: {why}"
    assert outcomes(Path("r.json"))["small.yaml::bf16::max_weights_ratio"] == "within"
