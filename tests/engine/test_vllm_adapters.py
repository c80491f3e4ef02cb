"""A method's adapter under vLLM: what the server is told, what is asked for, and what is counted."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import adapters
import pytest

from pytest_quantbudget.core.engines import Adapter
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import DUMMY, Subject
from pytest_quantbudget.engine.base import Scored, Sequences
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai.engine import OpenAI
from pytest_quantbudget.engine.openai.source import find
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.engine.vllm import engine
from pytest_quantbudget.models import engines


def subject(adapter: Adapter | None, **options: Any) -> Subject:
    model = str(BUILTIN_DIR)
    return Subject(model, None, "bf16", None, {}, None, engine="vllm", engine_options=options, adapter=adapter)


def test_a_methods_adapter_is_what_is_measured(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", r=20)
    of = subject(Adapter(str(own)), max_model_len=512)
    assert engine.asked(of) == str(own)
    found, plain = find(of), find(replace(of, adapter=None))
    assert found.adapter is not None
    assert plain.weights is not None
    assert plain.disk is not None
    size = (own / "adapter_model.safetensors").stat().st_size
    assert (found.weights, found.disk) == (plain.weights + size, plain.disk + size)
    assert found.counted.endswith("and of the adapter's")
    words = engine.command(of, found)
    assert {"--enable-lora", "--max-lora-rank=32", f"--served-model-name={BUILTIN_DIR}"} < set(words)
    assert json.loads(words[words.index("--lora-modules") + 1]) == {"name": str(own), "path": str(own)}
    larger = replace(of, engine_options={"max_lora_rank": 64})
    assert "--max-lora-rank=64" in engine.command(larger, find(larger))
    assert not any("lora" in word for word in engine.command(of, plain))
    assert not engines.makes_first(of)
    assert engines.missing(replace(of, python="/venv/bin/python"), ["vllm"]) is None


def test_on_a_cpu_prompts_are_scored_one_by_one_beside_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def score(self: OpenAI, sequences: Sequences) -> Iterator[list[Scored]]:
        asked.append(len(sequences))
        yield from ([Scored(0.0, True)] for _ in sequences)

    def answer(self: OpenAI, prompts: Any, ends: Any, hear: Any, batching: Batching, *more: Any) -> None:
        asked.append(batching.size)

    monkeypatch.setattr(OpenAI, "score", score)
    monkeypatch.setattr(OpenAI, "answer", answer)
    server = engine.VLLMServer.__new__(engine.VLLMServer)
    server.gpus = Gpus({})
    found = find(subject(Adapter(str(adapters.write(tmp_path / "own")))))
    for server.source, server.subject, sizes in (
        (found, subject(None), [1, 1, 1]),
        (replace(found, adapter=None), subject(None), [3]),
        (replace(found, adapter=None), subject(None, enable_lora=True), [1, 1, 1]),
    ):
        asked.clear()
        assert len(list(server.score([([1, 2], 1)] * 3))) == 3
        assert asked == sizes
        asked.clear()
        server.answer([], cast(Any, None), cast(Any, None), Batching(8))
        assert asked == [1 if len(sizes) == 3 else 8]


def test_merged_weights_are_served_as_the_model(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", use_dora=True)
    shutil.copytree(BUILTIN_DIR, tmp_path / "merged-1")
    of = subject(Adapter(str(own), merge=True))
    found = find(of, merged=str(tmp_path / "merged-1"))
    assert (found.folder, found.own, found.adapter) == (tmp_path / "merged-1", BUILTIN_DIR, None)
    assert found.weights == 2 * 574_528
    assert engine.asked(of) == str(BUILTIN_DIR)
    assert f"--model={tmp_path / 'merged-1'}" in engine.command(of, found)
    assert engines.makes_first(of)
    with pytest.raises(ValueError, match="vllm runs plain LoRA adapters, and this one has use_dora"):
        find(subject(Adapter(str(own))))


def test_a_base_model_of_another_name_is_told(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", base_model_name_or_path="org/other")
    assert find(subject(Adapter(str(own)))).notes == ()
    dummy = replace(subject(Adapter(str(own))), model="Qwen/Qwen3-8B", load_format=DUMMY)
    assert (
        find(dummy).notes[-1] == "the adapter own says that it was trained on org/other, and the model is Qwen/Qwen3-8B"
    )
    assert "--enable-lora" in engine.command(dummy, find(dummy))
