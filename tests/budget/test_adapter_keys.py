"""The adapter of a method: what may have one, what merges one, and the mistakes in it, by their lines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters
import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import Adapter
from pytest_quantbudget.core.files import EVERYWHERE, Roots
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.measure import interpreter
from pytest_quantbudget.models import engines


def subject(folder: Path, method: str, roots: Roots = EVERYWHERE) -> Subject:
    path = folder / "b.yaml"
    path.write_text(f"model: org/m\ncalibration: builtin\nmethods:\n  x:\n    {method}\n")
    (read,) = load_budget(path, roots).methods
    return read.subject


def mistakes(folder: Path, method: str, roots: Roots = EVERYWHERE) -> list[str]:
    with pytest.raises(BudgetError) as error:
        subject(folder, method, roots)
    assert {problem.line for problem in error.value.problems} <= {5, 6, 7, 8}
    return [problem.message for problem in error.value.problems]


@pytest.mark.parametrize(
    "method",
    [
        "kind: fp16",
        "kind: int8",
        "kind: nf4",
        "kind: gptq-int4",
        "kind: awq-int4",
        "kind: awq-int4\n    checkpoint: org/awq",
        "kind: gguf-q8_0",
        "kind: gguf-q8_0\n    checkpoint: org/gguf",
        "kind: bf16\n    engine: vllm",
        "kind: gptq-int4\n    engine: vllm\n    checkpoint: org/gptq",
        "engine: vllm\n    checkpoint: org/fp8",
    ],
)
def test_what_runs_an_adapter_takes_one(method: str, tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own")
    assert subject(tmp_path, f"adapter: own\n    {method}").adapter == Adapter(str(own))
    assert subject(tmp_path, f"adapter: org/lora\n    {method}").adapter == Adapter("org/lora")


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("kind: fp16", True),
        ("kind: nf4", True),
        ("kind: gptq-int4", True),
        ("kind: gguf-q8_0", True),
        ("kind: fp16\n    engine: vllm", True),
        ("kind: nf4\n    checkpoint: org/nf4", False),
        ("kind: int8\n    checkpoint: org/int8", False),
    ],
)
def test_it_is_merged_into_the_model_or_into_a_checkpoint_that_allows_it(
    method: str, first: bool, tmp_path: Path
) -> None:
    found = subject(tmp_path, f"adapter: org/lora\n    merge: true\n    {method}")
    assert found.adapter == Adapter("org/lora", merge=True)
    assert engines.merged_first(found) == first
    assert engines.needs_peft(found)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("kind: gptq-int4\n    checkpoint: org/gptq", "ready checkpoint of gptq-int4: without `merge` it runs beside"),
        ("kind: gptq-int4\n    checkpoint: org/gptq", "is merged into `model`, which is then quantized to gptq-int4"),
        ("kind: awq-int4\n    checkpoint: org/awq", "ready checkpoint of awq-int4"),
        ("kind: gguf-q8_0\n    checkpoint: org/gguf", "ready checkpoint of gguf-q8_0"),
        ("kind: checkpoint\n    engine: vllm\n    checkpoint: org/fp8", "ready checkpoint of checkpoint"),
    ],
)
def test_packed_weights_take_no_merging(method: str, words: str, tmp_path: Path) -> None:
    (said,) = mistakes(tmp_path, f"adapter: org/lora\n    merge: true\n    {method}")
    assert words in said


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("kind: fp16\n    merge: true", "merge: there is no `adapter` to merge"),
        ("kind: nf4\n    adapter: none/there/x", "is neither a directory nor a hub id"),
        ("kind: nf4\n    adapter: [own]", "adapter: "),
        ("kind: nf4\n    adapter: own\n    merge: perhaps", "merge: "),
        ("kind: nf4\n    adapter: plain", "plain holds no adapter: there is no adapter_config.json"),
        ("kind: nf4\n    adapter: dora\n    engine: transformers\n    merge: 1", "merge: "),
        ("kind: gguf-q8_0\n    adapter: dora", "llama.cpp runs plain LoRA adapters, and this one has use_dora"),
        ("kind: fp16\n    engine: vllm\n    adapter: dora", "vllm runs plain LoRA adapters"),
        (
            "engine: openai\n    adapter: own\n    server: {url: 'http://127.0.0.1:8000/v1'}",
            "the engine openai runs none beside served",
        ),
        (
            "kind: nf4\n    engine: openai\n    adapter: own\n    server: {url: 'http://127.0.0.1:8000/v1'}",
            "the engine openai runs none beside nf4; transformers can",
        ),
        (
            "engine: vllm\n    kind: fp16\n    adapter: own\n    engine_options: {enable_lora: true}",
            "engine_options: enable_lora is set by the plugin for the `adapter`",
        ),
    ],
)
def test_mistakes_are_told(method: str, words: str, tmp_path: Path) -> None:
    adapters.write(tmp_path / "own")
    adapters.write(tmp_path / "dora", use_dora=True)
    (tmp_path / "plain").mkdir()
    (said,) = mistakes(tmp_path, method)
    assert words in said


def test_an_adapter_is_held_to_the_roots_of_models(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    adapters.write(tmp_path / "outside")
    (room / "link").symlink_to(tmp_path / "outside")
    for name in ("../outside", "./link", str(tmp_path / "outside"), str(tmp_path / "not there")):
        (said,) = mistakes(room, f"kind: nf4\n    adapter: {name}", Roots((room,)))
        assert said.startswith("adapter: ")
        assert "outside the repository" in said


def test_peft_is_needed_where_it_runs_or_merges(tmp_path: Path) -> None:
    def lacks(method: str) -> str | None:
        found = replace(subject(tmp_path, f"adapter: org/lora\n    {method}"), python="/venv/bin/python")
        return engines.missing(found, {*interpreter._wanted().modules} - {"peft"})

    words = "x needs peft in /venv/bin/python: /venv/bin/python -m pip install peft"
    assert lacks("kind: nf4") == lacks("kind: gguf-q8_0\n    merge: true") == words
    assert lacks("kind: gguf-q8_0") is None
    assert "peft" in interpreter._wanted().modules


def test_a_fine_tune_of_another_model_inherits_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: org/m\nmethods: {nf4: {adapter: org/lora, merge: true}}\n")
    adapter: dict[str, Any] = {}
    for model in ("org/m", "org/other"):
        (tmp_path / "b.yaml").write_text(f"extends: base.yaml\nmodel: {model}\n")
        (method,) = load_budget(tmp_path / "b.yaml").methods
        adapter[model] = method.subject.adapter
    assert adapter == {"org/m": Adapter("org/lora", merge=True), "org/other": None}
