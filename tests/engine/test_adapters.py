"""LoRA adapters in transformers and llama.cpp, against PEFT called directly and against merged weights."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters
import pytest
import torch
from safetensors.torch import load_file

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP, VLLM, Adapter
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.layers import ADAPTER
from pytest_quantbudget.core.request import DUMMY, NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import Engine
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.models import lora, methods
from pytest_quantbudget.models.estimate.memory import estimate

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
]
with_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is missing")
IDS = [int(token) for token in torch.randint(20, 600, (40,), generator=torch.Generator().manual_seed(3))]
# 3 blocks: two matrices a layer of rank 4.
VALUES = 3 * 4 * ((128 + 128) * 2 + 256 + 128)
OPTIONS: dict[str, dict[str, Any]] = {
    "nf4": {"compute_dtype": "float32"},
    "gptq-int4": {"texts": 32},
    "awq-int4": {"texts": 16},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.random(tmp_path_factory.mktemp("adapters") / "own")


@pytest.fixture(scope="module")
def cache(shared_folder: Path) -> Path:
    """That of tests/models/test_methods.py, so that GPTQ and AWQ are made once."""
    return shared_folder / "checkpoints"


def subject(kind: str, adapter: Path | None, *, merge: bool = False, **more: Any) -> Subject:
    spec = methods.spec(kind)
    options = {field.name: field.default for field in spec.options} | OPTIONS.get(kind, {})
    calibration = str(BUILTIN_DIR / "calibration.jsonl") if spec.quantize and spec.calibrated else None
    given = {"model": str(BUILTIN_DIR), "checkpoint": None, "engine": spec.engines[0], **more}
    put = Adapter(str(adapter), merge) if adapter is not None else None
    return Subject(**given, revision=None, method=kind, options=options, calibration=calibration, adapter=put)


def made(of: Subject, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(engines.module(of.engine).quantize(of, NO_TRUST, None, cache, tmp_path))


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].float()
    return found


def by_peft(model: Any, adapter: Path, *, merge: bool = False) -> torch.Tensor:
    from peft import PeftModel

    put = PeftModel.from_pretrained(model, str(adapter))
    return logits(put.merge_and_unload() if merge else put)


def divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The mean KL divergence, in nats."""
    a, b = torch.log_softmax(ours.double(), -1), torch.log_softmax(theirs.double(), -1)
    return float((b.exp() * (b - a)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "int8", "nf4", "gptq-int4", "awq-int4"])
def test_beside_the_weights_it_computes_what_peft_does(
    kind: str, own: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, with_it = subject(kind, None), subject(kind, own)
    quantized = made(base, cache, tmp_path, monkeypatch) if methods.spec(kind).quantize else None
    assert quantized is None or made(with_it, cache, tmp_path, monkeypatch) == quantized
    without = loading.load(base, quantized)
    before = logits(without.model)
    alone = loading.load(base, quantized)
    loaded = loading.load(with_it, quantized)
    ours = logits(loaded.model)
    assert torch.equal(ours, by_peft(alone.model, own))
    assert divergence(ours, before) > 0.01
    # The same layers, and the adapter's own in float32.
    plain, told = without.description, loaded.description
    assert plain.weights is not None
    assert told.weights == plain.weights + 4 * VALUES
    assert plain.disk is not None
    assert told.disk == plain.disk + (own / lora.SAFE).stat().st_size
    added = [layers for layers in told.receipt.layers if layers.kind == ADAPTER]
    assert [(layers.bits, layers.parameters, layers.count) for layers in added] == [(32, VALUES, 3 * 3 * 2)]
    assert tuple(layers for layers in told.receipt.layers if layers.kind != ADAPTER) == plain.receipt.layers
    assert told.receipt.fraction == plain.receipt.fraction
    assert told.receipt.main_bits == plain.receipt.main_bits
    assert told.receipt.kernels == plain.receipt.kernels
    assert f"adapter {VALUES:,} in 32 bits" in told.receipt.kept
    assert estimate(with_it, Workload(16, 8, 1, 2)).weights == told.weights


@pytest.mark.parametrize("kind", ["fp32", "nf4"])
def test_merged_it_is_merged_first_and_quantized_then(
    kind: str, own: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = subject(kind, own, merge=True)
    quantized = made(merged, cache, tmp_path, monkeypatch)
    # In the type of the model's own weights.
    base: Any = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, str(own)).merge_and_unload().save_pretrained(tmp_path / "by hand")
    theirs, ours = (
        load_file(tmp_path / "by hand" / "model.safetensors"),
        load_file(Path(quantized, "model.safetensors")),
    )
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    loaded = loading.load(merged, quantized)
    by_hand = loading.load(subject(kind, None, model=str(tmp_path / "by hand")), None)
    assert torch.equal(logits(loaded.model), logits(by_hand.model))
    plain = loading.load(subject(kind, None), None)
    assert divergence(logits(loaded.model), logits(plain.model)) > 0.01
    assert loaded.description.receipt == plain.description.receipt
    assert loaded.description.weights == plain.description.weights
    assert loaded.description.disk == plain.description.disk
    assert loaded.tokenizer.get_vocab() == plain.tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_into_a_ready_checkpoint_it_is_merged_as_peft_does(kind: str, own: Path, tmp_path: Path) -> None:
    loading.load(subject(kind, None), None).model.save_pretrained(tmp_path / "packed")
    ready: dict[str, Any] = {"checkpoint": str(tmp_path / "packed")}
    bare = replace(subject(kind, None, **ready), options={})
    loaded = loading.load(replace(subject(kind, own, merge=True, **ready), options={}), None)
    ours = logits(loaded.model)
    assert torch.equal(ours, by_peft(loading.load(bare, None).model, own, merge=True))
    plain = loading.load(bare, None)
    assert divergence(ours, logits(plain.model)) > 0.01
    assert loaded.description.weights == plain.description.weights


def test_what_was_merged_is_kept_for_the_adapter_and_the_model_that_it_was_made_of(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(subject("fp32", own, merge=True), tmp_path / "cache", tmp_path, monkeypatch)
    assert made(subject("nf4", own, merge=True), tmp_path / "cache", tmp_path, monkeypatch) == first
    served = subject("bf16", own, merge=True, engine=VLLM)
    assert made(served, tmp_path / "cache", tmp_path, monkeypatch) == first
    other = adapters.random(tmp_path / "other", r=2)
    assert made(subject("fp32", other, merge=True), tmp_path / "cache", tmp_path, monkeypatch) != first
    weights = Path(first) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-2] + b"xx")
    assert made(subject("fp32", own, merge=True), tmp_path / "cache", tmp_path, monkeypatch) == first
    assert weights.read_bytes() == whole


def test_an_adapter_of_another_model_is_told_before_peft_leaves_it_out(tmp_path: Path) -> None:
    layer = adapters.QUERY.replace("layers.0", "layers.5")
    more = adapters.write(
        tmp_path / "deep", {**adapters.OF_QUERY, f"{layer}.lora_A.weight": (2, 128), f"{layer}.lora_B.weight": (128, 2)}
    )
    with pytest.raises(ValueError, match=r"deep is an adapter of another model: of the 2 layers .* builtin lacks 1"):
        loading.load(subject("fp32", more), None)
    wide = adapters.write(
        tmp_path / "wide", {name: tuple(2 * n for n in shape) for name, shape in adapters.OF_QUERY.items()}
    )
    with pytest.raises(ValueError, match="takes 256 values, and that of builtin 128"):
        loading.load(subject("fp32", wide), None)
    # It names matrices of all three blocks, and holds those of the first.
    few = adapters.write(tmp_path / "few")
    with pytest.raises(ValueError, match="few is an adapter of another model than builtin: Found missing adapter keys"):
        loading.load(subject("nf4", few), None)


def test_pickled_matrices_run_where_the_command_line_allows_it(own: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig.from_pretrained(str(own)).save_pretrained(str(tmp_path))
    torch.save(load_file(own / lora.SAFE), tmp_path / lora.PICKLED)
    with pytest.raises(ValueError, match="--quant-allow-pickle"):
        loading.load(subject("fp32", tmp_path), None)
    loaded = loading.load(subject("fp32", tmp_path), None, Trust(pickles=True))
    assert torch.equal(logits(loaded.model), logits(loading.load(subject("fp32", own), None).model))


def test_dummy_weights_have_it_beside_them_and_not_merged(own: Path) -> None:
    plain, beside = (
        loading.load(replace(subject("nf4", given), load_format=DUMMY), None).description for given in (None, own)
    )
    assert plain.weights is not None
    assert beside.weights == plain.weights + 4 * VALUES
    merged = loading.load(replace(subject("nf4", own, merge=True), load_format=DUMMY), None).description
    assert merged.weights == plain.weights
    assert any("merged" in note for note in merged.notes)


def in_llama_cpp(of: Subject, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": False, "n_threads": 1}
    given = replace(of, engine=LLAMA_CPP, engine_options=exact, options={})
    quantized = made(given, cache, tmp_path, monkeypatch)
    engine: Engine = engines.module(LLAMA_CPP).load(given, quantized=quantized)
    return engine


def said(engine: Engine) -> torch.Tensor:
    """The logits after each token but the last."""
    return torch.cat([block for _, block in engine.logits([(IDS, 1)])])


@pytest.fixture
def closing() -> Iterator[list[Engine]]:
    opened: list[Engine] = []
    yield opened
    for engine in opened:
        engine.close()


@with_llama
@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "rank_pattern": {"down_proj": 2}, "lora_alpha": 3}])
def test_llama_cpp_computes_with_it_what_transformers_does(
    config: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Engine]
) -> None:
    own = adapters.random(tmp_path / "own", **config)
    theirs = logits(loading.load(subject("fp32", own), None).model)[:-1]
    without = in_llama_cpp(subject("gguf-f32", None), cache, tmp_path, monkeypatch)
    engine = in_llama_cpp(subject("gguf-f32", own), cache, tmp_path, monkeypatch)
    closing += [without, engine]
    assert divergence(said(engine), theirs) < 1e-9
    assert divergence(said(without), theirs) > 0.01
    # A new context has the adapter, too.
    assert isinstance(engine, engines.module(LLAMA_CPP).LlamaCpp)
    engine.session.shape(3, 64, "more")
    assert divergence(said(engine), theirs) < 1e-9
    plain, told = without.describe(), engine.describe()
    values = sum(tensor.numel() for tensor in load_file(own / lora.SAFE).values())
    assert plain.weights is not None
    assert told.weights == plain.weights + 4 * values
    added = [layers for layers in told.receipt.layers if layers.kind == ADAPTER]
    assert [(layers.name, layers.bits, layers.parameters) for layers in added] == [("f32", 32, values)]
    assert told.receipt.parameters == plain.receipt.parameters
    assert plain.disk is not None
    assert told.disk is not None
    assert told.disk > plain.disk + 4 * values


@with_llama
def test_llama_cpp_runs_it_beside_a_ready_file_and_merged_into_its_own(
    own: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Engine]
) -> None:
    file = Path(made(replace(subject("gguf-q8_0", None), options={}), cache, tmp_path, monkeypatch), "model.gguf")
    ready = in_llama_cpp(subject("gguf-q8_0", own, checkpoint=str(file)), cache, tmp_path, monkeypatch)
    beside = in_llama_cpp(subject("gguf-q8_0", own), cache, tmp_path, monkeypatch)
    merged = in_llama_cpp(subject("gguf-q8_0", own, merge=True), cache, tmp_path, monkeypatch)
    closing += [ready, beside, merged]
    assert torch.equal(said(ready), said(beside))
    theirs = logits(loading.load(subject("fp32", own), None).model)[:-1]
    assert divergence(said(beside), theirs) < 0.01
    assert 0 < divergence(said(merged), theirs) < 0.01
    assert merged.describe().receipt.main_bits == 8
    assert not [layers for layers in merged.describe().receipt.layers if layers.kind == ADAPTER]


@with_llama
def test_llama_cpp_turns_the_rows_of_a_llama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: list[Engine]
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, vocab_size=640, tie_word_embeddings=True)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    folder = tmp_path / "llama"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILTIN_DIR).save_pretrained(folder)
    own = adapters.random(tmp_path / "own", folder)
    theirs = logits(loading.load(subject("fp32", own, model=str(folder)), None).model)[:-1]
    engine = in_llama_cpp(subject("gguf-f32", own, model=str(folder)), tmp_path / "cache", tmp_path, monkeypatch)
    closing.append(engine)
    assert divergence(said(engine), theirs) < 1e-7


@with_llama
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.embed_tokens.lora_embedding_A": (2, 640)}, "which llama.cpp's adapters cannot; `merge: true` can"),
        ({"model.layers.9.mlp.up_proj.lora_A.weight": (2, 128)}, "lacks 1"),
    ],
)
def test_what_llama_cpp_cannot_is_told(
    tensors: dict[str, tuple[int, ...]], words: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = adapters.write(tmp_path / "own", tensors)
    of = replace(subject("gguf-f32", own), options={})
    with pytest.raises(ValueError, match=words):
        made(of, cache, tmp_path, monkeypatch)


def test_a_layer_kept_whole_is_the_adapters_too(tmp_path: Path) -> None:
    own = adapters.random(tmp_path / "own", modules_to_save=["up_proj"])
    with pytest.raises(ValueError, match=r"own cannot be put on builtin: .* names a layer that is packed here"):
        loading.load(subject("nf4", own), None)
    plain, told = (loading.load(subject("bf16", given), None).description for given in (None, own))
    added = {layers.bits: layers.parameters for layers in told.receipt.layers if layers.kind == ADAPTER}
    assert added == {32: VALUES, 16: 3 * 128 * 256}
    assert told.receipt.parameters == plain.receipt.parameters
