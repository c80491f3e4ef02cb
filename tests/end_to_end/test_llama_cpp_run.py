"""The whole way with two engines: a baseline in transformers, and GGUF files of the same model in llama.cpp."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf_models import made, rewritten

from pytest_quantbudget.models.methods import gguf

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 5, prompt: "Question: Adam has 3 apples and buys 4.\\nAnswer:"}
tasks:
  wordmath: {file: builtin, questions: 100, max_new_tokens: 96, divergence: true}
perplexity: {file: text.txt, window: 64, stride: 32}
methods:
  fp32:
    budget: {max_weights: 3 MiB, min_wordmath: 50}
  q8:
    kind: gguf-q8_0
    engine: llama.cpp
    engine_options: {n_threads: 1}
    budget:
      max_weights: 0.6 MiB
      max_disk: 0.7 MB
      max_load_time: 60 s
      min_tokens_per_s: 0.1
      max_ttft: 60 s
      max_wordmath_drop: 12
      max_wordmath_flips: 12
      min_top1_agreement: 99
      max_kl: 0.001
      max_ppl_ratio: 1.01
      min_quantized_fraction: 0.99
      kernel: q8_0*
      max_vram: 1 GiB
  gguf-q4_0:
    budget: {max_weights_ratio: 0.17, kernel: q4_0*}
  gguf-q4_k_m:
    budget: {max_weights: 1 MiB}
  broken:
    kind: gguf
    checkpoint: broken.gguf
    budget: {max_weights: 1 MiB}
"""


# For all tests of the module: what is imported while there is a pytester is forgotten with it.
@pytest.fixture(scope="module")
def broken(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that llama.cpp does not refuse: an assertion of its own fails, which ends the process."""
    source = made("gguf-f16", shared_folder / "gguf") / gguf.FILE
    return rewritten(source, tmp_path_factory.mktemp("broken") / "x.gguf", {"qwen3.rope.dimension_count": 5})


def test_a_budget_of_two_engines_is_judged_line_by_line(pytester: pytest.Pytester, broken: Path) -> None:
    room = pytester.path
    (room / "b.yaml").write_text(BUDGET)
    (room / "text.txt").write_text(
        "Question: Adam has 3 apples and buys 4. How many has he?\nAnswer: 3+4=7\n#### 7\n" * 9
    )
    shutil.copy(broken, room / "broken.gguf")
    arguments = ["--quant-budget", "b.yaml", "--quant-cache", "cache", "--quant-report", "r.json", "-v"]
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=16, failed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*b.yaml::q8::max_vram SKIPPED*",
            "not measured: ValueError: gguf-q4_k_m stands for q4_k, and of the 21 * gguf-q4_0 and gguf-q5_0 fit",
            "not measured: the measuring process was killed by SIGABRT during phase 'load'",
            "*GGML_ASSERT(n_embd_head == n_rot) failed*",
            "fp32 * 2.19 MiB *",
            "q8 * 599 KiB *",
            "gguf-q4_0 * 359 KiB *",
            "q8: 21 q8_0* (*, 8 bits); 99.8 % quantized; kept: norm 1,088 in 32 bits",
        ]
    )
    methods = json.loads((room / "r.json").read_text())["budgets"][0]["methods"]
    by_name: dict[str, Any] = {each["name"]: each["measurement"] for each in methods}
    facts = by_name["q8"]["engine"]
    assert (facts["name"], facts["kv_tokens"]) == ("llama.cpp", 512)
    assert set(facts["buffers"]) == {"model", "kv", "compute"}
    assert facts["details"]["options"]["n_threads"] == 1
    assert by_name["q8"]["libraries"]["llama_cpp"] == facts["version"]
    (task,) = by_name["q8"]["tasks"]
    assert [a["ids"] for a in task["answers"]] == [a["ids"] for a in by_name["fp32"]["tasks"][0]["answers"]]

    # What was measured is kept: nothing is loaded again, and only what failed is tried.
    again = pytester.runpytest_subprocess(*arguments, "-k", "not broken and not q4_k_m")
    again.assert_outcomes(passed=16, skipped=1, deselected=2)
    methods = json.loads((room / "r.json").read_text())["budgets"][0]["methods"]
    assert all(each["measurement"]["loaded"]["reused"] for each in methods if each["name"] in ("q8", "gguf-q4_0"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gguf-q4_k: {}", "did you mean 'gguf-q4_k_s'?"),
        ("gguf: {}", "the kind gguf is whatever its `checkpoint` says, and there is none"),
        ("gguf-q8_0: {checkpoint: x.gguf}", "checkpoint: there is no file 'x.gguf'"),
        ("gguf-q8_0: {engine: vllm}", "vllm does not run gguf-q8_0, which is for llama.cpp"),
        ("gguf-q8_0: {engine_options: {threads: 2}}", "did you mean 'n_threads'?"),
        ("gguf-q8_0: {engine_options: {n_threads: 0}}", "must be a whole number from 1 to 512, not 0"),
        ("gguf-q8_0: {engine_options: {type_k: q9}}", "'q9' is not one of f32, f16, bf16, q8_0"),
        ("gguf-f16: {budget: {min_quantized_fraction: 0.5}}", "gguf-f16 stores every value in 16 bits or more"),
    ],
)
def test_mistakes_in_a_budget_are_told_with_their_line(line: str, said: str, pytester: pytest.Pytester) -> None:
    (pytester.path / "b.yaml").write_text(f"model: builtin\nmethods:\n  {line}\n")
    result = pytester.runpytest_subprocess("--quant-budget", "b.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: b.yaml:3: " in result.stderr.str()
    assert said in result.stderr.str()
