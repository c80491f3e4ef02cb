"""guidellm as the tool that sends requests: its command, its JSON in the same records, and what goes wrong."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from environments import environment

from pytest_quantbudget.core.load import Level, Load
from pytest_quantbudget.engine.openai import guidellm
from pytest_quantbudget.engine.openai.guidellm import GuidellmFailed
from pytest_quantbudget.engine.openai.http import Client

# What version 0.8.1 wrote of a llama-server: four of its requests, and the fields that are read.
JSON = Path(__file__).parents[1] / "data" / "guidellm.json"
LOAD = Load(24, 8, (2,), (), 4, tool="guidellm")
# Stands in for the tool: writes the report that is beside it, or what a test says.
MAIN = """import pathlib, sys
assert sys.argv[1] == "run"
target = next(word for word in sys.argv if word.startswith("kind=json,path=")).removeprefix("kind=json,path=")
{body}
"""

# A level in a process of its own.
MEASURING = """
import asyncio, sys
from pathlib import Path
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.engine.openai import guidellm
from pytest_quantbudget.engine.openai.http import Client
load = Load(24, 8, (2,), (), 4, tool="guidellm", python=sys.argv[1])
asyncio.run(guidellm.level(Client("http://127.0.0.1:8000/v1"), load, "concurrency", 2, Path("/m")))
"""
COPY = f"pathlib.Path(target).write_text(pathlib.Path({str(JSON)!r}).read_text())"


@pytest.fixture
def report() -> Any:
    return json.loads(JSON.read_text())


def test_its_requests_become_the_same_records(report: Any) -> None:
    level, tool = guidellm.read(report, LOAD, "concurrency", 2)
    assert tool == "guidellm 0.8.1"
    assert (level.name, len(level.whole), level.errors) == ("concurrency 2", 4, {})
    told = sorted(report["benchmarks"][0]["requests"]["successful"], key=lambda each: each["request_start_time"])
    for served, each in zip(level.served, told, strict=True):
        assert served.first_s == pytest.approx(each["time_to_first_token_ms"] / 1e3)
        assert served.tpot_s == pytest.approx(each["inter_token_latency_ms"] / 1e3, abs=1e-6)
        assert (served.tokens, served.cached) == (each["output_tokens"], each["cached_tokens"])
    assert level.throughput == pytest.approx(32 / level.seconds)


def test_what_failed_there_has_failed_here(report: Any) -> None:
    found = report["benchmarks"][0]["requests"]
    found["errored"] = [{**found["successful"].pop(), "time_to_first_token_ms": None, "output_tokens": None}]
    found["successful"][0]["output_tokens"] = 7
    found["successful"][1]["time_to_first_token_ms"] = 120_001
    level, _ = guidellm.read(report, LOAD, "concurrency", 2)
    assert dict(sorted(level.errors.items())) == {"errored": 1, "timeout": 1, "wrong length": 1}
    assert len(level.whole) == 1


def test_how_late_it_sent_a_request_is_told_of_a_rate_alone(report: Any) -> None:
    found = report["benchmarks"][0]["requests"]
    found["successful"][2]["request_dispatch_delay"] = 0.25
    assert guidellm.read(report, LOAD, "rate", 2)[0].behind_s == 0.25
    assert guidellm.read(report, LOAD, "concurrency", 2)[0].behind_s == 0.0


@pytest.mark.parametrize("gone", ["metadata", "benchmarks"])
def test_json_of_another_form_is_refused(report: Any, gone: str) -> None:
    del report[gone]
    with pytest.raises(KeyError):
        guidellm.read(report, LOAD, "concurrency", 2)


@pytest.mark.parametrize(
    ("way", "value", "profile"),
    [("concurrency", 32, "kind=concurrent,streams=32"), ("rate", 2.5, "kind=poisson,rate=2.5")],
)
def test_its_command_says_what_the_load_says(way: str, value: float, profile: str) -> None:
    client = Client("http://127.0.0.1:8000/v1")
    words = guidellm.words(client, LOAD, way, value, Path("/m"), Path("/t.json"))
    assert profile in words
    assert "kind=max_requests,count=4" in words
    assert "kind=synthetic_text,prompt_tokens=24,output_tokens=8" in words
    assert "kind=openai_http,target=http://127.0.0.1:8000,request_format=/v1/completions" in words


def prepared(folder: Path, body: str, requests: int = 4) -> Load:
    """A load that is sent by an interpreter in which guidellm is a module of a test."""
    python = environment(folder / "venv")
    (site,) = Path(python).parents[1].glob("lib/python*/site-packages")
    (site / "guidellm").mkdir()
    (site / "guidellm" / "__init__.py").write_text("")
    (site / "guidellm" / "__main__.py").write_text(MAIN.format(body=body))
    return Load(24, 8, (2,), (), requests, tool="guidellm", python=python)


def run(load: Load) -> tuple[Level, str]:
    """Its level."""
    return asyncio.run(guidellm.level(Client("http://127.0.0.1:8000/v1"), load, "concurrency", 2, Path("/m")))


def test_it_runs_in_its_own_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "nothing"))
    body = f"""import os
assert "PYTHONPATH" not in os.environ and sys.prefix != {sys.prefix!r}
assert os.environ["HF_HUB_OFFLINE"] == "1"
{COPY}"""
    level, tool = run(prepared(tmp_path, body))
    assert (tool, len(level.served)) == ("guidellm 0.8.1", 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('sys.exit("no such profile")', "guidellm ended with status 1: no such profile"),
        ("sys.exit(0)", "guidellm ended with status 0: it printed nothing"),
        ('pathlib.Path(target).write_text("{nonsense")', "guidellm's JSON has another form than that of version 0.8"),
        ('pathlib.Path(target).write_text("[]")', "guidellm's JSON has another form than that of version 0.8"),
    ],
)
def test_what_it_does_wrong_is_told(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(GuidellmFailed, match=words):
        run(prepared(tmp_path, body))


def test_another_number_of_requests_than_was_asked_for_is_told(tmp_path: Path) -> None:
    with pytest.raises(GuidellmFailed, match="guidellm tells of 4 requests at concurrency 2, and 5 were asked for"):
        run(prepared(tmp_path, COPY, requests=5))


def test_an_interpreter_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(GuidellmFailed, match=f"guidellm's interpreter {tmp_path}/python cannot be started"):
        run(replace(LOAD, python=f"{tmp_path}/python"))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_it_ends_with_the_process_that_measures(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    body = f"import os, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(60)"
    load = prepared(tmp_path, body)
    measuring = subprocess.Popen([sys.executable, "-c", MEASURING, str(load.python)])
    while not started.exists() or not started.read_text():
        assert measuring.poll() is None
        time.sleep(0.05)
    measuring.kill()
    measuring.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{started.read_text()}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
