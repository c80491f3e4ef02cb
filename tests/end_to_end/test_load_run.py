"""A budget with limits under load, from the command line to the report, on a real llama-server."""

import json
from pathlib import Path
from typing import Any

import pytest
from llama_servers import command, needs_server, write_builtin

from pytest_quantbudget.core.codec import from_builtins
from pytest_quantbudget.report.document import Report

pytestmark = [pytest.mark.model, needs_server]
LOAD = "{prompt_tokens: 24, new_tokens: 8, concurrency: [1, 3], requests: 60}"
# Limits that any machine keeps: what is shown is that they are judged, not how fast this one is.
LIMITS = "{max_ttft_p95: 1 h, max_tpot_p90: 1 h, max_itl_p50: 1 h, max_e2e_p50: 1 us, min_throughput: 0.001"
BUDGET = """
model: builtin
load: {load}
methods:
  fp32: {{budget: {{max_ttft_p95: 1 h}}}}
  prod:
    engine: openai
    server: {{command: {command}}}
    budget: {limits}
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_builtin(tmp_path_factory.mktemp("gguf") / "builtin-f32.gguf")


def run(pytester: pytest.Pytester, text: str, *more: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    """A run, and the verdict on each limit as `METHOD LIMIT`."""
    pytester.makeini("[pytest]\nquant_allow_commands = true\n")
    (pytester.path / "b.yaml").write_text(text)
    told = () if "--quant-from" in more else ("--quant-cache", "cache", "--quant-report", "r.json")
    result = pytester.runpytest_subprocess("--quant-budget", "b.yaml", "-p", "no:cacheprovider", *told, *more)
    (budget,) = json.loads((pytester.path / "r.json").read_text())["budgets"]
    limits = ((method["name"], limit) for method in budget["methods"] for limit in method["limits"])
    return result, {f"{name} {limit['name']}": limit["verdict"] for name, limit in limits}


def test_a_server_under_load_is_judged_and_its_report_again(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, gguf: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = BUDGET.format(load=LOAD, command=json.dumps(command(gguf)), limits=f"{LIMITS}, min_goodput: 0.9}}")
    result, found = run(pytester, text)
    outcomes = {name: verdict["outcome"] for name, verdict in found.items()}
    assert outcomes == {
        "fp32 max_ttft_p95": "skipped",
        "prod max_ttft_p95": "within",
        "prod max_tpot_p90": "within",
        "prod max_itl_p50": "within",
        "prod max_e2e_p50": "over",
        "prod min_throughput": "within",
        "prod min_goodput": "over",
    }
    assert "transformers has no queue of requests" in found["fp32 max_ttft_p95"]["message"]
    assert "0 of 60 requests within" in found["prod min_goodput"]["message"]
    heads = ("ttft p95", "tpot p90", "itl p50", "e2e p50", "throughput", "goodput")
    result.stdout.fnmatch_lines([f"method *{'*'.join(heads)}*"])
    report = from_builtins(Report, json.loads((pytester.path / "r.json").read_text()))
    (method,) = (each for each in report.budgets[0].methods if each.name == "prod")
    assert method.measurement is not None
    (loaded,) = method.measurement.loads
    assert [len(level.whole) for level in loaded.levels] == [60, 60]
    # Other percentiles of the same requests need no new measurement; other requests do.
    again = text.replace("max_ttft_p95: 1 h, max_tpot_p90", "max_ttft_p42: 1 us, max_tpot_p90")
    result, _ = run(pytester, again, "--quant-from", "r.json")
    result.stdout.fnmatch_lines(["*::max_ttft_p42 - measured * (percentile 42 of 60 requests at concurrency *"])
    result, _ = run(pytester, again.replace("requests: 60", "requests: 61"), "--quant-from", "r.json")
    result.stdout.fnmatch_lines(["*requests under load: requests is 61 here and 60 in r.json*"])
