"""What a subject is read from, and whether that is here: directories, files, and the hub's cache."""

import json
from pathlib import Path

import pytest

from pytest_quantbudget.core.engines import LLAMA_CPP, Adapter
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import DUMMY, Subject, Workload
from pytest_quantbudget.models.sources import HERE, THERE, Source, set_is_here, sources

WORKLOAD = Workload(512, 128, 1, 5)
COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, name: str, kind: str = "models", **files: object) -> Path:
    """A model or a data set in the hub's cache, with these files."""
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        (snapshot / file.replace("__", ".")).write_text(json.dumps(content))
    return snapshot


def read(model: str, **more: object) -> list[Source]:
    subject = {"revision": None, "method": "nf4", "checkpoint": None, "options": {}, "calibration": None, **more}
    return list(sources(Subject(model, **subject), WORKLOAD))  # type: ignore[arg-type]


def test_directories_and_files_are_here_with_their_sizes(tmp_path: Path) -> None:
    weights = (BUILTIN_DIR / "model.safetensors").stat().st_size
    model = str(BUILTIN_DIR)
    assert read(model) == [Source(model, "model", HERE, weights)]
    file = tmp_path / "q4.gguf"
    file.write_bytes(b"12345")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_model.safetensors").write_bytes(b"123")
    found = read(model, checkpoint=str(file), engine=LLAMA_CPP, adapter=Adapter(str(lora)))
    assert found == [Source(str(file), "checkpoint", HERE, 5), Source(str(lora), "adapter", HERE, 3)]
    assert read(model, load_format=DUMMY) == []


def test_a_hub_model_is_here_where_its_weights_are_in_the_cache(cache: Path) -> None:
    snapshot = cached(cache, "acme/m", config__json={"model_type": "qwen3"})
    assert read("acme/m") == [Source("acme/m", "model", THERE, None, about=True)]
    index = {"metadata": {"total_size": 12345}, "weight_map": {}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read("acme/m") == [Source("acme/m", "model", THERE, 12345)]
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "model.safetensors").write_bytes((BUILTIN_DIR / "model.safetensors").read_bytes())
    assert [(each.where, each.size) for each in read("acme/m")] == [(HERE, 1_152_752)]


def test_sizes_of_what_is_not_here_follow_from_configurations(cache: Path) -> None:
    (model,) = read("Qwen/Qwen3-8B")
    assert (model.where, model.size, model.about) == (THERE, 2 * 8_190_735_360, True)
    (ready,) = read("Qwen/Qwen3-8B", method="awq-int4", checkpoint="Qwen/Qwen3-8B-AWQ")
    assert (ready.name, ready.where, ready.about) == ("Qwen/Qwen3-8B-AWQ", THERE, True)
    assert ready.size is not None
    assert 5 * 2**30 < ready.size < 7 * 2**30


def test_a_data_set_is_looked_for_in_the_cache(cache: Path) -> None:
    assert set_is_here("openai/gsm8k") is False
    cached(cache, "openai/gsm8k", "datasets")
    assert set_is_here("openai/gsm8k") is True
