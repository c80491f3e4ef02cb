"""vLLM's own server on the built-in model: slow, and only where `QUANT_VLLM_PYTHON` names an interpreter with vLLM."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import adapters
import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR

PYTHON = os.environ.get("QUANT_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.skipif(not PYTHON, reason="QUANT_VLLM_PYTHON names no interpreter with vLLM"),
]

QUICK = "max_model_len: 512, enforce_eager: true"
BUDGET = """model: builtin
baseline: fp32
workload: {{prompt_tokens: 16, new_tokens: 8, repeats: 2}}
tasks: {{wordmath: {{file: builtin, questions: 20, max_new_tokens: 96, divergence: true}}}}
methods:
  fp32: {{}}
  own: {{kind: {}, engine: vllm, {}engine_options: {{{}}}, budget: {{{}}}}}
"""


@pytest.fixture
def room(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A room whose ini file allows the interpreter with vLLM; where that runs on a CPU, its cache is small."""
    pytester.makeini(f"[pytest]\nquant_interpreters = vllm = {PYTHON}\n")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    return pytester


def run(room: pytest.Pytester, budget: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    (room.path / "b.yaml").write_text(budget)
    words = ["-p", "no:cacheprovider", "--quant-budget", "b.yaml", "--quant-report", "r.json", "-rA"]
    result = room.runpytest_subprocess(*words)
    (found,) = json.loads((room.path / "r.json").read_text())["budgets"]
    return result, {method["name"]: method["measurement"] for method in found["methods"]}


def test_it_answers_as_transformers_does_and_leaves_nothing_behind(room: pytest.Pytester) -> None:
    limits = (
        "max_wordmath_flips: 1, max_kl: 0.0001, min_top1_agreement: 99, min_token_agreement: 99, min_tokens_per_s: 1, "
        "max_weights: 3 MiB, max_load_time: 1 h"
    )
    result, measured = run(room, BUDGET.format("fp32", "", f"{QUICK}, max_logprobs: 128", limits))
    result.assert_outcomes(passed=7)
    answers = [[answer["ids"] for answer in measured[name]["tasks"][0]["answers"]] for name in ("fp32", "own")]
    assert answers[0] == answers[1]
    own = measured["own"]
    divergence = own["tasks"][0]["divergence"]
    assert divergence["top"] in (128, 129)
    assert 0 < divergence["mean_rest"] < 0.01
    assert own["engine"]["kv_tokens"] > 512
    assert own["engine"]["capabilities"]["prompt log-probabilities"] == "yes"
    assert own["engine"]["details"]["dtype"] == "torch.float32"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(BUILTIN_DIR) not in "".join(line for line in left.splitlines() if "vllm.entrypoints" in line)


def test_an_option_that_vllm_does_not_know_is_told_with_the_nearest(room: pytest.Pytester) -> None:
    budget = BUDGET.format("fp32", "", "max_modl_len: 512", "max_weights: 3 MiB, min_tokens_per_s: 1")
    result, measured = run(room, budget)
    result.assert_outcomes(failed=2)
    (failure,) = measured["own"]["failures"]
    assert failure["message"] == (
        "ValueError: vLLM refuses it: it knows no option max_modl_len; did you mean 'max_model_len'?"
    )


def test_a_value_that_vllm_does_not_take_is_told_in_its_words(room: pytest.Pytester) -> None:
    result, measured = run(room, BUDGET.format("fp32", "", "max_model_len: 99999", "max_weights: 3 MiB"))
    result.assert_outcomes(failed=1)
    (failure,) = measured["own"]["failures"]
    assert "User-specified max_model_len (99999) is greater than the derived max_model_len" in failure["message"]


def test_a_checkpoint_that_vllm_does_not_take_is_told_in_its_words(room: pytest.Pytester) -> None:
    folder = room.path / "ordered"
    shutil.copytree(BUILTIN_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": True,
        "sym": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    result, measured = run(room, BUDGET.format("checkpoint", "checkpoint: ./ordered, ", QUICK, "max_weights: 3 MiB"))
    result.assert_outcomes(failed=1)
    (failure,) = measured["own"]["failures"]
    assert "GPTQ group activation ordering (desc_act=True) is no longer supported" in failure["message"]


def test_an_interpreter_without_vllm_is_a_skip_in_words(room: pytest.Pytester, tmp_path: Path) -> None:
    subprocess.run(["python3", "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    room.makeini(f"[pytest]\nquant_interpreters = vllm = {tmp_path / 'bare/bin/python'}\n")
    result, _ = run(room, BUDGET.format("fp32", "", QUICK, "max_weights: 3 MiB"))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("*own needs vllm in *bare/bin/python: *bare/bin/python -m pip install vllm*")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not in the test: pytester forgets what is imported there, and torch cannot be imported twice.
    return adapters.random(tmp_path_factory.mktemp("adapters") / "own", r=12)


def test_an_adapter_is_served_as_peft_runs_it(adapter: Path, room: pytest.Pytester) -> None:
    shutil.copytree(adapter, room.path / "own")
    limits = "max_wordmath_flips: 10, min_token_agreement: 95, max_weights: 3 MiB"
    budget = BUDGET.format("fp32", "adapter: own, ", QUICK, limits).replace("fp32: {}", "fp32: {adapter: own}")
    own_line = budget.splitlines()[-1]
    merged = own_line.replace("own:", "merged:").replace("adapter: own", "adapter: own, merge: true")
    result, measured = run(room, f"{budget}{merged}\n")
    result.assert_outcomes(passed=6)
    own, theirs = measured["own"], measured["fp32"]
    assert own["tasks"][0]["agreement"]["agreed"] == own["tasks"][0]["agreement"]["tokens"]
    assert own["weights"] == 2_298_112 + (room.path / "own" / "adapter_model.safetensors").stat().st_size
    assert own["adapter_revision"] == theirs["adapter_revision"]
    assert measured["merged"]["weights"] == 2_298_112
    assert measured["merged"]["quantized"].startswith("merged-")
