"""On a real GPU: its memory is measured and judged. Everywhere else these tests are skipped."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("with_card")]

BUDGET = """
model: builtin
baseline: fp32
workload: {{prompt_tokens: 16, new_tokens: 8, repeats: 2, compile: {compile}}}
tasks:
  wordmath: {{file: builtin, questions: 12, max_new_tokens: 96}}
methods:
  fp32:
    budget: {{max_vram: 1 GiB, max_vram_reserved: 2 GiB, min_wordmath: 50}}
  nf4:
    budget: {{max_vram: 1 GiB, max_vram_reserved: 2 GiB, max_wordmath_drop: 60}}
"""


@pytest.mark.parametrize("compile", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_memory_and_answers_are_those_of_the_card(pytester: pytest.Pytester, compile: str) -> None:
    path = pytester.path / "card.yaml"
    path.write_text(BUDGET.format(compile=compile))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quant-budget", path.name]
    options = ["--quant-no-cache", "--quant-require-gpu", "--quant-report", "report.json"]
    ended = subprocess.run([*command, *options], cwd=pytester.path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    report = json.loads((pytester.path / "report.json").read_text())
    for method in report["budgets"][0]["methods"]:
        measured = method["measurement"]
        assert measured["device"]["name"] != "cpu"
        assert [limit["verdict"]["outcome"] for limit in method["limits"]] == ["within"] * 3
        values = {limit["name"]: limit["verdict"]["measured"] for limit in method["limits"]}
        assert measured["weights"] < values["max_vram"] <= values["max_vram_reserved"]
