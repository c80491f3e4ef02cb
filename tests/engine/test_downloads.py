"""What is downloaded of a hub model: its weights only where something is going to load them."""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP, OPENAI, Server
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust
from pytest_quantbudget.models import hub


class Downloaded(Exception):
    """Raised in place of a download."""


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The patterns of the files that would have been downloaded."""
    asked: list[str] = []

    def download(name: str, revision: str | None, patterns: list[str]) -> Any:
        asked.extend(patterns)
        raise Downloaded

    monkeypatch.setattr(hub, "_downloaded", download)
    return asked


URL = Server(url="http://127.0.0.1:8000/v1")
STARTED = Server(command=("vllm", "serve", "{model}", "--port", "{port}"))


@pytest.mark.parametrize(
    ("engine", "checkpoint", "server", "weights"),
    [
        (LLAMA_CPP, "/x.gguf", None, False),
        (OPENAI, None, URL, False),
        (OPENAI, None, Server(command=("llama-server", "-m", "x.gguf", "--port", "{port}")), False),
        (OPENAI, "acme/other", STARTED, False),
        (OPENAI, None, STARTED, True),
    ],
    ids=["a ready file", "a server that runs", "a server of a file", "of a checkpoint", "of the model itself"],
)
def test_weights_that_nothing_loads_are_not_downloaded(
    engine: str, checkpoint: str | None, server: Server | None, weights: bool, wanted: list[str]
) -> None:
    kind = "gguf-q8_0" if engine == LLAMA_CPP else "served"
    subject = Subject("acme/x", None, kind, checkpoint, {}, None, engine=engine, server=server)
    with pytest.raises(Downloaded):
        engines.module(engine).load(subject, trust=Trust(pickles=True))
    assert {"*.json", "*.model", "*.jinja"} <= set(wanted)
    assert ({"*.safetensors", "*.bin"} <= set(wanted)) == weights
    assert ("*.safetensors" in wanted) == weights


def test_of_the_files_of_a_hub_model_that_of_the_type_alone_is_downloaded(wanted: list[str]) -> None:
    with pytest.raises(Downloaded):
        hub.fetch_gguf("acme/x-GGUF", None, "f16")
    there = ["x-F16.gguf", "x.f16.gguf", "F16.gguf", "F16/x-f16-00001-of-00002.gguf", "x-BF16.gguf", "x-F16_L.gguf"]
    # As huggingface_hub chooses.
    assert [file for file in there if any(fnmatchcase(file, pattern) for pattern in wanted)] == there[:4]


@pytest.mark.parametrize("engine", [LLAMA_CPP, OPENAI])
def test_a_directory_that_names_code_is_refused_before_its_tokenizer_is_read(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BUILTIN_DIR, folder)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    kind, server = ("gguf-q8_0", None) if engine == LLAMA_CPP else ("served", URL)
    subject = Subject(str(folder), None, kind, None, {}, None, engine=engine, server=server)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json.*auto_map"):
        engines.module(engine).load(subject, trust=NO_TRUST)
