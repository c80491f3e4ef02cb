"""GGUF files made of models: names, shapes, values, tokenizers, and what is refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import made, subject
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject
from pytest_quantbudget.engine.base import Engine
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.methods import _gguf_file, _gguf_tokenizer, _gguf_types, _llama_cpp, gguf

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


@pytest.fixture(scope="module")
def cache(shared_folder: Path) -> Path:
    return shared_folder / "gguf"


def tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def test_every_kind_that_llama_cpp_makes_without_more_is_made(cache: Path) -> None:
    sizes = {kind: (made(kind, cache) / gguf.FILE).stat().st_size for kind in _gguf_types.DOMINANT}
    assert sizes["gguf-f32"] > sizes["gguf-f16"] == sizes["gguf-bf16"] > sizes["gguf-q8_0"] > sizes["gguf-q4_0"]
    assert all(_llama_cpp.ftype(kind.removeprefix(_gguf_types.PREFIX)) >= 0 for kind in sizes)


def test_the_values_are_those_of_the_model(cache: Path) -> None:
    theirs = load_file(BUILTIN_DIR / "model.safetensors")
    ours = tensors(made("gguf-f32", cache) / gguf.FILE)
    assert len(ours) == len(theirs)
    embedding = torch.from_numpy(ours["token_embd.weight"].data.copy())
    assert torch.equal(embedding, theirs["model.embed_tokens.weight"].float())
    down = torch.from_numpy(ours["blk.2.ffn_down.weight"].data.copy())
    assert torch.equal(down, theirs["model.layers.2.mlp.down_proj.weight"].float())


def test_a_file_is_made_once_and_made_again_where_it_has_changed(tmp_path: Path) -> None:
    path = made("gguf-q8_0", tmp_path) / gguf.FILE
    written = path.stat().st_mtime_ns
    assert (made("gguf-q8_0", tmp_path) / gguf.FILE).stat().st_mtime_ns == written
    assert [each.name for each in path.parent.iterdir()] == [gguf.FILE]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert (made("gguf-q8_0", tmp_path) / gguf.FILE).read_bytes() == whole


def family(folder: Path, model: Any) -> Path:
    """A model with random weights and the built-in model's tokenizer."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN_DIR / name, folder)
    return folder


SHAPE: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "bos_token_id": None,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def llama(**more: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **more}))


def qwen2(**more: Any) -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **more}))


@pytest.mark.parametrize(
    "build",
    [
        lambda: llama(tie_word_embeddings=False),
        lambda: llama(tie_word_embeddings=True, attention_bias=True),
        lambda: llama(head_dim=32),
        lambda: llama(rope_parameters=LLAMA_3),
        lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}),
        lambda: llama(rope_parameters=YARN),
        lambda: qwen2(tie_word_embeddings=True),
    ],
    ids=["llama", "tied, with biases", "wide heads", "llama 3 positions", "linear positions", "yarn", "qwen2"],
)
def test_each_family_computes_as_in_transformers(build: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():  # biases too, which begin as zeros
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    folder = family(tmp_path / "model", model)
    path = made("gguf-f32", tmp_path / "cache", folder)
    ids = torch.randint(0, 640, (200,)).tolist()
    own = subject("gguf-f32", folder, type_k="f32", type_v="f32", flash_attn=False, n_threads=1)
    ours: Engine = engines.module(LLAMA_CPP).load(own, quantized=str(path))
    theirs: Engine = engines.module(TRANSFORMERS).load(Subject(str(folder), None, "fp32", None, {}, None))
    (a,), (b,) = (list(engine.score([(ids, 1)])) for engine in (ours, theirs))
    ours.close()
    assert [token.logprob for token in a] == pytest.approx([token.logprob for token in b], abs=2e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel; GGUF files are made here of LlamaForCausalLM"),
        ({"architectures": None}, "is a no architecture; GGUF files"),
        ({"hidden_act": "gelu"}, "has the activation gelu, and llama.cpp's architecture has silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "scales its positions by 'dynamic', which is not written here",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 3},
            "attends in a sliding window, which llama.cpp's qwen3 does not",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_in_words(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(BUILTIN_DIR, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ValueError, match=said):
        made("gguf-f16", tmp_path / "cache", folder)
    assert not list((tmp_path / "cache" / "quantized").glob("*.making"))


def test_a_tensor_that_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(BUILTIN_DIR, folder)
    more = {**load_file(BUILTIN_DIR / "model.safetensors"), "model.extra.weight": torch.zeros(2, 2)}
    save_file(more, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"odd: llama.cpp's qwen3 has no tensor like model\.extra\.weight"):
        made("gguf-f16", tmp_path / "cache", folder)


def test_values_that_a_type_does_not_hold_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(BUILTIN_DIR, folder)
    found = load_file(BUILTIN_DIR / "model.safetensors")
    found["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(found, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_up\.weight has values beyond 65504, which f16 does not hold"):
        made("gguf-f16", tmp_path / "cache", folder)
    assert made("gguf-bf16", tmp_path / "cache", folder).is_dir()


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(BUILTIN_DIR, folder)
    path = folder / "config.json"
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **packed}))
    with pytest.raises(ValueError, match=r"the model in packed is already quantized \(gptq\)"):
        made("gguf-q8_0", tmp_path / "cache", folder)


def test_the_pre_tokenizer_is_the_one_that_splits_as_the_model_does(cache: Path) -> None:
    path = made("gguf-f16", cache) / gguf.FILE
    tokenizer = _gguf_tokenizer.load(BUILTIN_DIR, NO_TRUST)
    fits = _gguf_tokenizer.fitting(path, tokenizer)
    assert fits is not None
    with _llama_cpp.Vocabulary(path) as vocabulary:
        for text in (_gguf_tokenizer.PROBE, "12 apples, 345 pears.\n\nShe's 7"):
            assert vocabulary.tokens(text) == _gguf_tokenizer.plain(tokenizer, text)


def test_a_tokenizer_that_no_pre_tokenizer_fits_is_kept_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(BUILTIN_DIR, folder)
    description = json.loads((BUILTIN_DIR / "tokenizer.json").read_text())
    words = Tokenizer.from_str(json.dumps(description))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.save(str(folder / "tokenizer.json"))
    path = made("gguf-f16", tmp_path / "cache", folder)
    engine = engines.module(LLAMA_CPP).load(subject("gguf-f16", folder), quantized=str(path))
    (note,) = engine.describe().notes
    engine.close()
    assert note.startswith("llama.cpp has no pre-tokenizer that splits texts as the model's tokenizer does")


def test_a_tokenizer_of_sentencepiece_splits_in_llama_cpp_as_in_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "spm"
    shutil.copytree(BUILTIN_DIR, folder)
    words = ["\u2581a", "\u2581ap", "pp", "le", "\u2581app", "\u2581apple", "\u2581the", "th", "he", "\u2581t"]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {text: number for number, text in enumerate(["<unk>", "<s>", "</s>", *bytes_, *letters, *words])}
    merges = [("\u2581", "a"), ("\u2581a", "p"), ("p", "p"), ("l", "e"), ("\u2581ap", "p"), ("\u2581app", "le"),
              ("t", "h"), ("h", "e"), ("\u2581", "t"), ("\u2581t", "he")]  # fmt: skip
    bpe = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    bpe.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    fast.save_pretrained(folder)
    path = made("gguf-f16", tmp_path / "cache", folder) / gguf.FILE
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not _gguf_tokenizer.is_byte_level(tokenizer)
    with _llama_cpp.Vocabulary(path) as found:
        text = "the apple the zebra \u00e9"
        assert found.tokens(text) == _gguf_tokenizer.plain(tokenizer, text)


def test_the_frequencies_of_llama_3_are_transformers_own() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**SHAPE, rope_parameters=LLAMA_3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (10_000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16))
    ours = plain / _gguf_file._llama3_frequencies(LLAMA_3, 16)
    assert ours.tolist() == pytest.approx(scaled.tolist(), rel=1e-6)


def test_the_kinds_are_the_methods() -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    assert set(gguf.SPECS) == set(_gguf_types.KINDS) == {name for name in methods.MODULES if name.startswith("gguf")}
    for kind, type_ in _gguf_types.DOMINANT.items():
        spec = methods.spec(kind)
        block = _gguf_types.BLOCKS[type_]
        assert spec.engines == (LLAMA_CPP,)
        assert not spec.calibrated
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_.upper()]]
        assert values == block
        assert spec.bits <= 8 * size / values <= spec.bits + 1  # with scales
