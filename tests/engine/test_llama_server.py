"""The options of the script that starts llama-server: fields of xllamacpp's parameters, by name."""

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantbudget.engine.openai.llama_server import apply, settings


@pytest.fixture
def parameters() -> Any:
    inner = SimpleNamespace(n_threads=4)
    return SimpleNamespace(n_ctx=0, warmup=True, alias="", rope=1.0, cpuparams=inner, hostnames=["127.0.0.1"])


def test_options_are_pairs() -> None:
    assert settings(["--model", "x.gguf", "--n_ctx", "8192"]) == {"model": "x.gguf", "n_ctx": "8192"}
    for words, message in ((["model", "x"], "'model' is not an option"), (["--model"], "--model has no value")):
        with pytest.raises(ValueError, match=message):
            settings(words)


def test_values_have_the_type_of_the_field(parameters: Any) -> None:
    given = {"n_ctx": "8192", "warmup": "false", "alias": "q", "rope": "0.5", "cpuparams.n_threads": "2"}
    for name, text in given.items():
        apply(parameters, name, text)
    assert (parameters.n_ctx, parameters.warmup, parameters.alias, parameters.rope) == (8192, False, "q", 0.5)
    assert parameters.cpuparams.n_threads == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n_ctxx", "1", "xllamacpp's CommonParams has no 'n_ctxx'"),
        ("cpu.n_threads", "1", "xllamacpp's CommonParams has no 'cpu.n_threads'"),
        ("n_ctx", "many", "--n_ctx takes a number, not 'many'"),
        ("warmup", "1", "--warmup takes true or false, not '1'"),
        ("hostnames", "x", "--hostnames takes a list, which no command line can give"),
    ],
)
def test_what_no_field_takes_is_told(parameters: Any, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(parameters, name, text)
