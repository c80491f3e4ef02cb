"""The whole way with a ready checkpoint that the engine decompresses: what is judged, and what is said of the rest."""

import json
from pathlib import Path

import pytest
from builders import outcomes
from ct_models import made

pytestmark = pytest.mark.model

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 1}
tasks: {wordmath: {file: builtin, questions: 20, max_new_tokens: 96}}
methods:
  fp32: {}
  w4a16:
    checkpoint: w4a16
    budget:
      max_wordmath_drop: 30
      max_disk: 0.7 MB
      max_weights: 5 MiB
      max_weights_ratio: 2
      min_tokens_per_s: 0.001
      min_quantized_fraction: 0.5
"""
WHY = (
    "not measured: transformers decompresses compressed-tensors at the first forward, so that memory and speed here "
    "are not the checkpoint's; `engine: vllm` runs it packed; `decompressed: allow` judges what runs here"
)


def test_quality_and_files_are_judged_and_memory_and_speed_only_where_that_is_allowed(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compressed_tensors")
    monkeypatch.setenv("COLUMNS", "200")
    folder = pytester.path
    made(folder / "w4a16", "W4A16")
    (folder / "b.yaml").write_text(BUDGET)
    run = ["--quant-cache", str(tmp_path / "cache"), "--quant-report", "r.json"]
    result = pytester.runpytest_subprocess("--quant-budget", "b.yaml", "-v", *run)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert {name.rpartition("::")[2]: outcome for name, outcome in outcomes(folder / "r.json").items()} == {
        "max_wordmath_drop": "within",
        "max_disk": "within",
        "max_weights": "failed",
        "max_weights_ratio": "failed",
        "min_tokens_per_s": "failed",
        "min_quantized_fraction": "failed",
    }
    result.stdout.re_match_lines_random(
        [
            r"method +checkpoint +.*weights .*verdict",
            r"w4a16 +compressed-tensors W4A16 g128 .* - .* 2 within, 4 FAILED",
            r"w4a16: compressed-tensors W4A16 g128, which leaves unquantized: lm_head",
            r"note: w4a16: transformers decompresses compressed-tensors at the first forward, so that memory.*",
        ]
    )
    report = json.loads((folder / "r.json").read_text())
    method = report["budgets"][0]["methods"][1]
    assert {limit["verdict"]["message"].partition(" ")[2].partition(" ")[2] for limit in method["limits"][2:]} == {WHY}
    assert method["measurement"]["packing"] == {
        "format": "compressed-tensors", "label": "compressed-tensors W4A16 g128", "bits": 4, "kept": ["lm_head"]
    }  # fmt: skip
    assert method["measurement"]["libraries"]["compressed_tensors"]

    # Judged again, by who knows.
    text = BUDGET.replace("checkpoint: w4a16", "checkpoint: w4a16\n    decompressed: allow")
    (folder / "b.yaml").write_text(text)
    again = pytester.runpytest_subprocess(
        "--quant-budget", "b.yaml", "--quant-from", "r.json", "--quant-report", "s.json"
    )
    assert again.ret == pytest.ExitCode.TESTS_FAILED
    not_within = [name for name, outcome in outcomes(folder / "s.json").items() if outcome != "within"]
    assert [name.rpartition("::")[2] for name in not_within] == ["min_quantized_fraction"]
