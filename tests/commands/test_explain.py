"""`explain`: in words, what a budget does; as narrow as the terminal, whatever names it holds."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.safetext import width
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.models import methods

Explain = Callable[..., tuple[int, str, str]]
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-1", 80 * 2**30, 79 * 2**30, "9.0", "13.0")
HUB = "huggingface_hub"
SHIPPED = Path(methods.__file__).parents[3] / "budgets"


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Calls `explain` in an empty folder, with an empty cache: its exit code, and what it says on both streams."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("COLUMNS", "100")
    there = importlib.util.find_spec
    # As where all packages are installed, but for the one that is asked something.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there(name) if name == HUB else object())

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["explain", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def flat(text: str) -> str:
    """The text without its line ends."""
    return " ".join(text.split())


SMALL = """
model: builtin
baseline: fp32
tasks: {wordmath: {file: builtin, questions: {start: 50, max: 200}, max_new_tokens: 96}}
methods:
  fp32: {budget: {max_weights: 3 MiB, min_tokens_per_s: auto}}
  nf4: {budget: {max_wordmath_drop: 3, max_vram: 1 GiB, min_tokens_per_s: {"NVIDIA*": 5}}}
  int8: {}
"""


def test_a_budget_is_told_part_by_part(explain: Explain) -> None:
    Path("b.yaml").write_text(SMALL)
    code, said, error = explain("b.yaml")
    assert (code, error) == (0, "")
    assert said.startswith("b.yaml: builtin, 3 methods, 5 limits, compared with fp32\n")
    for words in (
        "fp32 (baseline, transformers): the workload, a reply, at most 200 questions of wordmath",
        "int8: not at all; no limit asks for it",
        "| method     weights  on a GPU  from | fp32      2.19 MiB",
        "builtin is on this machine, 1.10 MiB",
        "To be downloaded of weights: nothing",
        "On this machine (no GPU was found):",
        "1 limit skips: no GPU was found: device memory has no peak here: nf4: max_vram",
        "1 limit skips: no value is for 'cpu': nf4: min_tokens_per_s",
        "1 limit skips: reads `auto`, which --quant-update fills in: fp32: min_tokens_per_s",
        "| fp32 0 of 3 parts",
        "assumed, for a CPU:",
        "--quant-update times fp32 5 more times, for the margin of what reads `auto`",
        "b.yaml:6 fp32 max_weights 3 MiB: is counted: the same in every run, so that any change is told",
        "b.yaml:7 nf4 min_tokens_per_s 5 for NVIDIA*: is a median of 5 repeats",
        "b.yaml:7 nf4 max_wordmath_drop 3: with at most 200 questions a method that loses 3.0 points fails",
        "b.yaml:7: nf4: max_wordmath_drop: with 200 questions, ",
    ):
        assert flat(words) in flat(said), said


def test_a_machine_with_a_gpu_has_other_limits(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(hardware, "all_gpus", lambda: [H100])
    pytest.importorskip(HUB)
    code, said, _ = explain(str(SHIPPED / "qwen3_8b.yaml"), "--allow-path", str(SHIPPED))
    assert code == 0
    for words in (
        "On this machine (NVIDIA H100 80GB HBM3 (80.0 GiB)):",
        "| fp16 15.3 GiB 15.9 GiB Qwen/Qwen3-8B",
        "To be downloaded: about 26.6 GiB: Qwen/Qwen3-8B (about 15.3 GiB), JunHowie/Qwen3-8B-GPTQ-Int4 (about 5.68 G",
        "the questions of gsm8k: openai/gsm8k, from the hub, a few MB",
        "every limit can be judged, as far as is known before anything is loaded",
        "assumed, for a GPU:",
    ):
        assert flat(words) in flat(said), said


def test_what_is_not_installed_is_told_with_the_command(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("b.yaml").write_text(SMALL)
    lacking = ("bitsandbytes", "torch", HUB)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacking else object())
    code, said, _ = explain("b.yaml", str(SHIPPED / "qwen3_8b.yaml"))
    assert code == 0
    for words in (
        "not installed: bitsandbytes, torch; pip install 'pytest-quantbudget[bitsandbytes,models]'",
        "3 limits skip: nf4 needs torch, bitsandbytes: pip install 'pytest-quantbudget[bitsandbytes,models]': nf4: ",
        "not known here, because it is not measured here: fp32, nf4",
        "To be downloaded where it is not in the hub's cache: about 26.6 GiB: Qwen/Qwen3-8B (about 15.3 GiB), ",
    ):
        assert flat(words) in flat(said), said


def test_without_one_nothing_of_a_large_model_is_timed(explain: Explain) -> None:
    code, said, _ = explain(str(SHIPPED / "qwen3_8b.yaml"))
    assert code == 0
    assert "4 limits skip: needs a GPU with 20.0 GiB of compute capability 8.0; no GPU was found: fp16: all" in flat(
        said
    )
    away = "not known here, because it is not measured here: fp16, int8, nf4, gptq-int4, awq-int4"
    assert away in flat(said)


def test_what_two_files_share_is_told_once(explain: Explain) -> None:
    Path("a.yaml").write_text(SMALL)
    Path("b.yaml").write_text(SMALL)
    code, said, _ = explain("a.yaml", "b.yaml")
    assert code == 0
    assert said.count("fp32 (baseline, transformers)") == 1
    assert "fp32: as above, in a.yaml" in said


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_nothing_is_wider_than_the_terminal(explain: Explain, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    Path("b.yaml").write_text(SMALL)
    _, said, _ = explain("b.yaml", str(SHIPPED / "qwen3_8b.yaml"))
    # What has no place to be cut at stays whole.
    wide = [line for line in said.splitlines() if width(line) > columns and max(map(len, line.split())) < columns // 2]
    assert wide == []


def test_hostile_names_steer_no_terminal(explain: Explain) -> None:
    folder = Path("m\x1b[2J\u202e")
    shutil.copytree(BUILTIN_DIR, folder)
    text = json.dumps(str(folder))
    Path("b\x1b.yaml").write_text(f"model: {text}\nmethods: {{fp32: {{budget: {{max_weights: 3 MiB}}}}}}\n")
    code, said, error = explain("b\x1b.yaml")
    assert (code, error) == (0, "")
    assert all(line.isprintable() for line in said.split("\n"))


def test_mistakes_are_told_at_the_end_with_their_lines(explain: Explain) -> None:
    Path("a.yaml").write_text("model: builtin\nmethods:\n  nf5: {}\n")
    Path("b.yaml").write_text(SMALL)
    code, said, error = explain("a.yaml", "b.yaml", "none.yaml")
    assert code == 4
    assert said.startswith("b.yaml: builtin")
    assert error.splitlines()[0].startswith("ERROR: a.yaml:3: there is no method 'nf5'; did you mean 'nf4'?")
    assert "ERROR: none.yaml: there is no such budget" in error


def test_what_is_not_known_is_said(explain: Explain) -> None:
    Path("odd").mkdir()
    Path("odd/config.json").write_text(json.dumps({"model_type": "odd", "architectures": ["OddForCausalLM"]}))
    text = """
model: ./odd
baseline: bf16
tasks: {arc: {harness: arc_easy}}
load: {requests: 50}
methods:
  bf16: {}
  served: {engine: openai, server: {url: "http://127.0.0.1:1/v1"}, budget: {max_ttft_p95: 1 s}}
  lora: {kind: bf16, adapter: acme/lora, merge: true, budget: {max_arc_drop: 3}}
  gguf-q4_0: {budget: {max_disk: 1 GiB}}
  dummy: {checkpoint: acme/w4a16, budget: {min_tokens_per_s: 5}}
"""
    Path("b.yaml").write_text(text)
    code, said, error = explain("b.yaml")
    assert (code, error) == (0, "")
    for words in (
        "served (openai): a reply, 50 requests at each of 1 levels of load",
        "lora: its adapter is merged into the weights first, once, and kept",
        "gguf-q4_0: the model is quantized first, once, and kept",
        "acme/lora (size not known), acme/w4a16 (size not known)",
        "served | not known",
        "how many questions the task has is known once it is loaded",
        "| bf16 not known not known odd",
        "In all: not known here",
    ):
        assert flat(words.replace("|", "")) in flat(said.replace("|", "")), said


def test_a_limit_on_changes_is_told_with_the_runs_that_it_looks_at(explain: Explain) -> None:
    Path("b.yaml").write_text("model: builtin\nmethods:\n  fp32: {budget: {max_change: {weights: +5 %}}}\n")
    code, said, error = explain("b.yaml")
    assert (code, error) == (0, "")
    for words in (
        "b.yaml: builtin, 1 methods, 1 limits",
        "1 limit skips: is judged by a run with --quant-history PLACE: fp32: all",
        "b.yaml:3 fp32 max_change_weights +5 %: is told against the median of the last 5 comparable runs, with",
    ):
        assert flat(words) in flat(said), said


def test_dummy_weights_and_a_text_are_told(explain: Explain) -> None:
    Path("t.txt").write_text("a text " * 500)
    Path("b.yaml").write_text(
        "model: builtin\nload_format: dummy\nperplexity: {file: t.txt}\nbaseline: fp32\n"
        "methods:\n  fp32: {budget: {max_weights: 3 MiB}}\n  bf16: {budget: {max_ppl_ratio: 1.1, max_weights: 3 MiB}}\n"
    )
    code, said, _ = explain("b.yaml")
    assert code == 0
    assert "1 limit skips: dummy weights say nothing about quality: bf16: max_ppl_ratio" in flat(said)
    assert "random weights" in said


def test_nothing_heavy_is_imported(explain: Explain) -> None:
    heavy = ("torch", "transformers", "numpy")
    before = {name for name in heavy if name in sys.modules}
    Path("b.yaml").write_text(SMALL)
    assert explain("b.yaml")[0] == 0
    assert {name for name in heavy if name in sys.modules} == before


@pytest.mark.model
def test_what_earlier_runs_have_kept_is_not_measured_again(
    measured_small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(measured_small.parent)
    assert main(["explain", "small.yaml"]) == 0
    said = flat(capsys.readouterr().out)
    assert "| fp32 2 of 2 parts 1 s kept" in said
    assert "| bf16 2 of 2 parts 1 s kept" in said
    assert "In all: a few seconds, nothing is measured" in said
    # Other questions are asked anew, for as long as those took.
    text = measured_small.read_text()
    measured_small.write_text(text.replace("questions: 12", "questions: 13"))
    assert main(["explain", "small.yaml"]) == 0
    said = flat(capsys.readouterr().out)
    assert "| fp32 1 of 2 parts" in said
