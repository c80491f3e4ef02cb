"""Every kind of GGUF file: made of a small model whose rows all block sizes divide, loaded, and asked."""

import importlib.util
from pathlib import Path

import pytest
import tiny_models
from gguf_models import made, subject

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.engine.base import Engine
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.methods import gguf

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]
MADE = [name for name in gguf.SPECS if name != "gguf"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    return tiny_models.save(tmp_path_factory.mktemp("wide") / "model", "qwen3", **wide, head_dim=64)


@pytest.fixture(scope="module")
def exact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return logprobs("gguf-f32", model, tmp_path_factory.mktemp("exact"))


def logprobs(kind: str, model: Path, cache: Path) -> list[float]:
    """What a model makes of some tokens; nats."""
    own = subject(kind, model, type_k="f32", type_v="f32", n_threads=1)
    engine: Engine = engines.module(LLAMA_CPP).load(own, quantized=str(made(kind, cache, model)))
    (told,) = engine.score([(list(range(20, 60)), 1)])
    engine.close()
    return [token.logprob for token in told]


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_is_made_loaded_and_close_to_the_weights_that_it_was_made_of(
    kind: str, model: Path, exact: list[float], tmp_path: Path
) -> None:
    bits = int(methods.spec(kind).bits)
    error = max(abs(a - b) for a, b in zip(logprobs(kind, model, tmp_path), exact, strict=True))
    # The fewer bits, the farther; and what is quantized is not the same.
    assert error < {32: 1e-6, 16: 0.01, 8: 0.03, 6: 0.1, 5: 0.25, 4: 0.4, 3: 0.6, 2: 1.0}[bits]
    assert bits == 32 or error > 0
