"""auto-gptq and autoawq themselves, where `QUANT_AUTO_GPTQ_PYTHON` and `QUANT_AUTOAWQ_PYTHON` name an interpreter."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.engine.archived import engine
from pytest_quantbudget.engine.openai.process import Running, free_port

pytestmark = [pytest.mark.slow, pytest.mark.model]
DATA = Path(__file__).parents[1] / "data" / "archived"
PYTHONS = {
    "auto-gptq": os.environ.get("QUANT_AUTO_GPTQ_PYTHON", ""),
    "auto-gptq-act-order": os.environ.get("QUANT_AUTO_GPTQ_PYTHON", ""),
    "autoawq": os.environ.get("QUANT_AUTOAWQ_PYTHON", ""),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "auto-gptq": {"torch_dtype": "float32"},
    "auto-gptq-act-order": {"torch_dtype": "float32"},
    # Its weights are float16, and so are its products; fused layers want its CUDA kernels.
    "autoawq": {"fuse_layers": False},
}


def serving(python: str, library: str, folder: Path, **options: Any) -> tuple[Running, str]:
    """A server of the library, and where its API begins."""
    port = free_port()
    words = [python, str(engine.SCRIPT), library, "--model", str(folder), "--port", str(port)]
    return Running([*words, "--options", json.dumps(options)], None, os.environ), f"http://127.0.0.1:{port}"


@pytest.fixture(params=PYTHONS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The name of a checkpoint, and the URL of the library that serves it."""
    name: str = request.param
    if not PYTHONS[name]:
        pytest.skip(f"no environment variable names an interpreter with {name}")
    running, url = serving(PYTHONS[name], name.removesuffix("-act-order"), DATA / name, **OPTIONS[name])
    while running.ended is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            break
        except OSError:
            time.sleep(0.2)
    yield name, url
    running.end()


def test_the_served_logits_are_those_that_are_stored(served: tuple[str, str]) -> None:
    from safetensors.torch import load_file

    name, url = served
    held = load_file(DATA / "logits.safetensors")
    tokens: list[int] = held["tokens"][0].tolist()
    body = {"prompt": tokens, "max_tokens": 1, "prompt_logprobs": -1}
    with urllib.request.urlopen(f"{url}/v1/completions", json.dumps(body).encode(), timeout=60) as answer:
        (choice,) = json.loads(answer.read())["choices"]
    theirs = held[name][0].log_softmax(-1).exp()
    kl = 0.0
    for at, row in enumerate(choice["prompt_logprobs"][1:]):
        ours = [row[str(token)]["logprob"] for token in range(64)]
        kl += sum(float(p) * (float(p.log()) - q) for p, q in zip(theirs[at], ours, strict=True)) / (len(tokens) - 1)
    assert kl < (3e-5 if name == "autoawq" else 1e-6)
    assert choice["token_ids"] == [int(held[name][0, -1].argmax())]


def test_what_is_packed_is_told(served: tuple[str, str]) -> None:
    name, url = served
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
        (entry,) = json.loads(answer.read())["data"]
    packed = [layers for layers in engine.receipt(entry["layers"]).layers if layers.quantized]
    # Four matrices of 64 times 64 in the attention of each of two blocks, and three of 64 times 128.
    assert [(layers.bits, layers.count, layers.parameters) for layers in packed] == [
        (4, 14, 2 * (4 * 64**2 + 3 * 8192))
    ]
    assert packed[0].name in ("QuantLinear", "WQLinear_GEMM")
    assert entry["meta"]["library"].startswith(name.removesuffix("-act-order"))


@pytest.mark.skipif(not PYTHONS["auto-gptq"], reason="QUANT_AUTO_GPTQ_PYTHON names no interpreter with auto-gptq")
def test_a_tied_output_layer_that_is_not_stored_is_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = DATA / "auto-gptq"
    for file in source.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
        else:
            held = {key: value for key, value in load_file(file).items() if key != "lm_head.weight"}
            save_file(held, tmp_path / file.name, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    running, _ = serving(PYTHONS["auto-gptq"], "auto-gptq", tmp_path)
    while running.ended is None:
        time.sleep(0.2)
    refused = engine.refusal(running.output())
    running.end()
    assert refused is not None
    assert refused["kind"] == "logits"
    assert (
        "the output layer is tied to the embeddings, and auto-gptq needs one of its own in the files"
        in refused["words"]
    )
