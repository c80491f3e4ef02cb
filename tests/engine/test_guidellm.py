"""guidellm as the tool that sends requests: its command, its JSON in the same records, and what goes wrong."""

import asyncio
import json
import sys
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
    level, _ = guidellm.read(report, LOAD, "concurrency", 2)
    assert level.errors == {"wrong length": 1, "errored": 1} or level.errors == {"errored": 1, "wrong length": 1}
    assert len(level.whole) == 2


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


def run(folder: Path, body: str) -> tuple[Level, str]:
    """A level by an interpreter in which guidellm is a module of a test."""
    python = environment(folder / "venv")
    (site,) = Path(python).parents[1].glob("lib/python*/site-packages")
    (site / "guidellm").mkdir()
    (site / "guidellm" / "__init__.py").write_text("")
    (site / "guidellm" / "__main__.py").write_text(MAIN.format(body=body))
    load = Load(24, 8, (2,), (), 4, tool="guidellm", python=python)
    return asyncio.run(guidellm.level(Client("http://127.0.0.1:8000/v1"), load, "concurrency", 2, folder))


def test_it_runs_in_its_own_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "nothing"))
    body = f"""import os
assert "PYTHONPATH" not in os.environ and sys.prefix != {sys.prefix!r}
pathlib.Path(target).write_text(pathlib.Path({str(JSON)!r}).read_text())"""
    level, tool = run(tmp_path, body)
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
        run(tmp_path, body)
