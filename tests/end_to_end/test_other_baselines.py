"""Baselines that another engine runs: paired as ever, and what an engine does not give is skipped in words."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from llama_servers import command, needs_server, write_builtin

from pytest_quantbudget.report import document

pytestmark = [
    pytest.mark.model,
    needs_server,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]

BUDGET = """
model: builtin
baseline: {baseline}
workload: {{prompt_tokens: 16, new_tokens: 8, repeats: 2}}
tasks:
  wordmath: {{file: builtin, questions: 40, max_new_tokens: 96, divergence: true}}
methods:
  {baseline}: {{{method}}}
  fp32:
    budget: {{max_wordmath_drop: 20, min_token_agreement: 90, max_kl: 0.1, max_weights_ratio: 5}}
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not in the test: pytester forgets what is imported there, and torch cannot be imported twice.
    return write_builtin(tmp_path_factory.mktemp("gguf") / "served.gguf")


def test_a_gguf_file_and_a_server_are_baselines(gguf: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / gguf.name).write_bytes(gguf.read_bytes())
    words = ["{python}" if word == sys.executable else word for word in command(Path(gguf.name))]
    started = f"engine: openai, server: {{command: {json.dumps(words)}}}"
    (pytester.path / "file.yaml").write_text(BUDGET.format(baseline="q8", method="kind: gguf-q8_0"))
    (pytester.path / "server.yaml").write_text(BUDGET.format(baseline="prod", method=started))
    options = ("--quant-allow-commands", "--quant-report", "r.json", "--quant-cache", str(pytester.path / "cache"))
    result = pytester.runpytest_subprocess("--quant-budget", ".", *options)
    result.assert_outcomes(passed=6, skipped=2)
    found = document.read(pytester.path / "r.json")
    verdicts = {
        f"{budget.baseline} {limit.name}": limit.verdict
        for budget in found.budgets
        for method in budget.methods
        for limit in method.limits
    }
    # At full precision nothing depends on who runs the model.
    assert verdicts["prod max_wordmath_drop"].measured == 0
    assert "0 newly wrong, 0 newly right of 40" in verdicts["prod max_wordmath_drop"].message
    assert verdicts["q8 min_token_agreement"].measured is not None
    assert verdicts["q8 max_kl"].measured is not None
    skipped = {name: verdict.message for name, verdict in verdicts.items() if verdict.outcome == "skipped"}
    assert list(skipped) == ["prod min_token_agreement", "prod max_kl"]
    told = "the baseline prod: the server does not give the log-probabilities of a prompt's tokens"
    assert told in skipped["prod min_token_agreement"]
    assert "no logits of prod: openai does not give full logits" in skipped["prod max_kl"]
