"""The whole way with adapters: one budget, its report, judged again, and what is told in words."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import adapters
import pytest

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
]
BUDGET = """
model: builtin
baseline: base
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks: {wordmath: {file: builtin, questions: 10, max_new_tokens: 48, max_truncated: 100}}
methods:
  base: {kind: fp32, budget: {min_wordmath: 10}}
  beside: {kind: nf4, adapter: own, budget: {max_weights: 1 MiB, min_quantized_fraction: 0.85, min_wordmath: 10}}
  merged: {kind: fp32, adapter: own, merge: true, budget: {max_weights_ratio: 1.0, min_tokens_per_s: 0.1}}
  other: {kind: fp32, adapter: other, budget: {max_weights: 1 GiB}}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.random(tmp_path_factory.mktemp("adapters") / "own")


def run(room: pytest.Pytester, *more: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    words = ["-p", "no:cacheprovider", "--quant-budget", "b.yaml", "--quant-cache", "kept", "--quant-report", "r.json"]
    result = room.runpytest_subprocess(*words, *more)
    (found,) = json.loads((room.path / "r.json").read_text())["budgets"]
    return result, {method["name"]: method["measurement"] for method in found["methods"]}


def test_a_budget_with_adapters(pytester: pytest.Pytester, own: Path) -> None:
    own.rename(pytester.path / "own")
    adapters.write(pytester.path / "other", {"model.layers.7.mlp.up_proj.lora_A.weight": (2, 128)})
    (pytester.path / "b.yaml").write_text(BUDGET)
    result, measured = run(pytester)
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["*other is an adapter of another model: of the 1 layers * builtin lacks 1 (*"])
    assert measured["beside"]["adapter_revision"].startswith("sha256:")
    assert measured["beside"]["subject"]["adapter"]["merge"] is False
    kinds = {layers["kind"] for layers in measured["beside"]["receipt"]["layers"]}
    assert "adapter" in kinds
    assert measured["merged"]["quantized"].startswith("merged-")
    assert measured["merged"]["receipt"] == measured["base"]["receipt"]
    stored = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "--quant-budget", "b.yaml", "--quant-from", "r.json"
    )
    stored.assert_outcomes(passed=6, failed=1)
    adapters.write(pytester.path / "own")
    held = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--quant-budget", "b.yaml", "--quant-from", "r.json")
    held.assert_outcomes(passed=1, failed=6)
    held.stdout.fnmatch_lines(["*adapter *own holds something else here than in r.json*"])


def test_without_peft_it_is_a_skip_with_the_command(small: Path, pytester: pytest.Pytester) -> None:
    adapters.write(pytester.path / "own")
    pytester.makeconftest(
        """
        import importlib.util

        plain = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == "peft" else plain(name, *more)
        """
    )
    (pytester.path / "b.yaml").write_text(
        "model: builtin\nmethods: {fp32: {adapter: own, merge: true, budget: {max_weights: 3 MiB}}}\n"
    )
    result, _ = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*fp32 needs peft: pip install 'pytest-quantbudget[[]peft]'*"])
