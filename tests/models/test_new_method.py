"""A method is one file and one line of the mapping: shown on a copy of the package that has one method more."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import with_method

from pytest_quantbudget.core.files import BUILTIN_DIR

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
methods:
  fp32: {}
  int8-torchao: {budget: {min_quantized_fraction: 0.5, max_weights_ratio: 0.5}}
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, the method added, and a budget."""
    folder = tmp_path_factory.mktemp("room")
    with_method(folder, "int8-torchao", "int8_torchao_method.py")
    (folder / "b.yaml").write_text(BUDGET)
    return folder


def run(room: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(room), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=room, env=environ, capture_output=True, text=True, check=False)


def test_it_is_read_and_described(room: Path) -> None:
    assert run(room, "pytest_quantbudget", "check", "b.yaml").stdout == "b.yaml: 2 methods, 2 limits\n"
    schema = json.loads(run(room, "pytest_quantbudget", "schema", "budget").stdout)
    assert "int8-torchao" in schema["properties"]["methods"]["properties"]


def test_without_a_storage_format_there_is_no_estimate(room: Path) -> None:
    result = run(room, "pytest", "--quant-estimate", "--quant-budget", "b.yaml")
    said = "b.yaml:7: int8-torchao: no estimate: how int8-torchao stores weights is not known to the estimate"
    assert said in result.stderr


def test_bytes_and_quantized_share_are_counted_and_its_library_is_known(room: Path) -> None:
    pytest.importorskip("torchao")
    result = run(room, "pytest", "--quant-budget", "b.yaml", "--quant-report", "r.json", "--quant-cache", "kept", "-q")
    assert result.returncode == 0, result.stdout
    report = json.loads((room / "r.json").read_text())
    dense, quantized = (method["measurement"] for method in report["budgets"][0]["methods"])
    config = json.loads((BUILTIN_DIR / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    shapes = [(query, hidden), (key, hidden), (key, hidden), (hidden, query), (inner, hidden), (inner, hidden)]
    shapes.append((hidden, inner))
    values = layers * sum(rows * inputs for rows, inputs in shapes)
    outputs = layers * sum(rows for rows, _ in shapes)

    parameters = sum(group["parameters"] for group in quantized["receipt"]["layers"])
    assert parameters == sum(group["parameters"] for group in dense["receipt"]["layers"])
    in_int8 = sum(group["parameters"] for group in quantized["receipt"]["layers"] if group["bits"] == 8)
    assert in_int8 == values
    verdicts = {limit["name"]: limit["verdict"] for limit in report["budgets"][0]["methods"][1]["limits"]}
    assert verdicts["min_quantized_fraction"]["measured"] == values / parameters
    # A byte instead of each float32, and for each output a float32 scale and an int8 zero point.
    assert quantized["weights"] == dense["weights"] - 4 * values + values + (4 + 1) * outputs
    assert verdicts["max_weights_ratio"]["measured"] == quantized["weights"] / dense["weights"]

    version = importlib.metadata.version("torchao")
    assert quantized["libraries"]["torchao"] == report["machine"]["libraries"]["torchao"] == version
    entries = [path.read_text() for path in (room / "kept" / "results").rglob("load-*.entry")]
    keys = [json.loads(entry.partition("\n")[2])["key"]["subject"] for entry in entries]
    assert {key["method"]: key["libraries"].get("torchao") for key in keys} == {"fp32": None, "int8-torchao": version}
