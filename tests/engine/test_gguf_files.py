"""Ready GGUF files: those that are not whole, not the budget's model, or not as the budget says."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_models import answers, made, metadata, rewritten, subject
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pytest_quantbudget import engine as engines
from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.engine.base import Engine, Lacking
from pytest_quantbudget.models.methods import _llama_cpp, gguf

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"),
]


@pytest.fixture(scope="module")
def cache(shared_folder: Path) -> Path:
    return shared_folder / "gguf"


@pytest.fixture
def q8_0(cache: Path, tmp_path: Path) -> Path:
    """A copy of a good file."""
    return Path(shutil.copy(made("gguf-q8_0", cache) / gguf.FILE, tmp_path / "x.gguf"))


def load(checkpoint: Path, kind: str = "gguf", model: Path = BUILTIN_DIR, **options: Any) -> Engine:
    engine: Engine = engines.module(LLAMA_CPP).load(subject(kind, model, checkpoint, **options))
    return engine


def test_a_ready_file_is_what_it_is(q8_0: Path) -> None:
    for kind, place in (("gguf", q8_0), ("gguf-q8_0", q8_0), ("gguf", q8_0.parent)):
        engine = load(place, kind)
        told = engine.describe()
        assert told.receipt.main_bits == 8
        assert told.disk == q8_0.stat().st_size
        engine.close()


def test_a_file_of_another_type_than_the_kind_says_is_named_as_what_it_is(q8_0: Path) -> None:
    said = r"gguf-q4_0 stands for q4_0, and of the 21 matrices in x\.gguf there are 21 q8_0; gguf-q8_0 is what it is"
    with pytest.raises(ValueError, match=said):
        load(q8_0, "gguf-q4_0")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "gguf-q4_k_m",
            "gguf-q4_k_m stands for q4_k, and of the 21 matrices in model.gguf there are 17 q5_0, 2 q4_k, 1 q8_0, "
            "1 q6_k: 18 have rows of 128 values, which blocks of 256 do not divide; gguf-q4_0 and gguf-q5_0 fit",
        ),
        ("gguf-q6_k", "18 have rows of 128 values, which blocks of 256 do not divide; gguf-q8_0 fits"),
        ("gguf-q5_k_s", "18 have rows of 128 values, which blocks of 256 do not divide; gguf-q5_1 and gguf-q5_0 fit"),
        ("gguf-q2_k", "18 have rows of 128 values, which blocks of 256 do not divide; gguf-q4_0 fits$"),
        ("gguf-iq4_xs", "18 have rows of 128 values, which blocks of 256 do not divide; gguf-q4_0 and gguf-q5_0 fit"),
    ],
)
def test_a_kind_whose_blocks_do_not_divide_the_rows_fails_and_names_what_fits(
    kind: str, said: str, cache: Path
) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        engines.module(LLAMA_CPP).load(subject(kind), quantized=str(made(kind, cache)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def other_version(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4] + (99).to_bytes(4, "little") + data[8:])


def many_tensors(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8] + (2**40).to_bytes(8, "little") + data[16:])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b""), r"x\.gguf is no GGUF file: it holds 0 bytes"),
        (lambda path: path.write_bytes(b"PK\3\4" * 9), r"x\.gguf is no GGUF file: it begins with b'PK.*', not with"),
        (lambda path: path.write_text("version https://git-lfs"), r"x\.gguf is no GGUF file: it begins with b'vers'"),
        (cut, r"x\.gguf: tensor '.*' data is not within the file bounds, model is corrupted or incomplete"),
        (cut_in_header, r"x\.gguf: string length 26 exceeds remaining file size 4 bytes"),
        (other_version, r"x\.gguf: this GGUF file is version 99 but this software only supports up to version 3"),
        (many_tensors, r"x\.gguf: "),
        (lambda path: path.write_bytes(b"GGUF" + bytes(200)), r"x\.gguf: "),
        (lambda path: path.write_bytes(b"GGUF\3\0\0\0" + bytes(200)), r"x\.gguf: "),
    ],
    ids=["empty", "a zip", "a pointer", "cut", "cut in its header", "version", "tensors", "zeros", "nothing in it"],
)
def test_a_file_that_is_not_whole_is_told_in_words(spoil: Callable[[Path], object], said: str, q8_0: Path) -> None:
    spoil(q8_0)
    with pytest.raises(ValueError, match=said):
        load(q8_0)


def test_another_model_is_told_by_what_differs(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    other = tmp_path / "other"
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=700, **heads, **shape)).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN_DIR / name, other)
    path = made("gguf-f16", tmp_path / "cache", other) / gguf.FILE
    said = (
        r"model\.gguf is another model than builtin: architecture qwen2 instead of qwen3, vocabulary 700 instead of 640"
        r", hidden_size 64 instead of 128, num_hidden_layers 2 instead of 3"
    )
    with pytest.raises(ValueError, match=said):
        load(path)


def test_a_file_that_splits_texts_otherwise_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "numbers"
    shutil.copytree(BUILTIN_DIR, folder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    words.train_from_iterator([f"{number} apples, {number * 7919} pears" for number in range(2000)], trainer)
    words.save(str(folder / "tokenizer.json"))
    source = made("gguf-f16", tmp_path / "cache", folder) / gguf.FILE
    load(rewritten(source, tmp_path / "same.gguf"), model=folder).close()
    said = (
        r"other\.gguf names the pre-tokenizer 'qwen2', with which llama\.cpp splits a text otherwise than the model's "
        r"tokenizer does; 'gpt-2' does as it"
    )
    with pytest.raises(ValueError, match=said):
        load(rewritten(source, tmp_path / "other.gguf", {"tokenizer.ggml.pre": "qwen2"}), model=folder)


def test_a_file_with_other_tokens_is_refused(cache: Path, tmp_path: Path) -> None:
    source = made("gguf-f16", cache) / gguf.FILE
    tokens = metadata(source)["tokenizer.ggml.tokens"]
    tokens[100], tokens[101] = tokens[101], tokens[100]
    said = r"other\.gguf has another vocabulary than the model: 2 tokens differ, such as 100, which is '.+' instead of"
    with pytest.raises(ValueError, match=said):
        load(rewritten(source, tmp_path / "other.gguf", {"tokenizer.ggml.tokens": tokens}))


def test_tokens_beyond_the_models_vocabulary_are_no_matter(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(BUILTIN_DIR, folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.add_special_tokens([f"<more{number}>" for number in range(40)])
    assert words.get_vocab_size() > 640
    words.save(str(folder / "tokenizer.json"))
    path = made("gguf-f16", tmp_path / "cache", folder) / gguf.FILE
    engine = load(path, model=folder)
    assert engine.describe().notes == ()
    engine.close()


@pytest.fixture
def split(cache: Path, tmp_path: Path) -> list[Path]:
    """The built-in model's file in parts, as llama.cpp's own splitter writes them."""
    folder = tmp_path / "split"
    folder.mkdir()
    rewritten(made("gguf-q8_0", cache) / gguf.FILE, folder / "m.gguf", split=15)
    return sorted(folder.iterdir())


def test_a_model_in_parts_is_loaded_whole(split: list[Path], cache: Path) -> None:
    assert [path.name for path in split] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for place in (split[0], split[0].parent):
        engine = load(place, "gguf-q8_0")
        told = engine.describe()
        assert told.receipt.parameters == 574_528
        assert told.disk == sum(path.stat().st_size for path in split)
        engine.close()


def test_a_part_that_is_not_the_first_or_is_missing_is_told(split: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"m-00002-of-00003\.gguf is part 2 of 3: name the first, m-00001-of-00003"):
        load(split[1])
    split[2].unlink()
    with pytest.raises(ValueError, match=r"m-00001-of-00003\.gguf is one of 3 parts, and m-00003-of.* is not there"):
        load(split[0])


def test_a_directory_holds_one_model(q8_0: Path) -> None:
    shutil.copy(q8_0, q8_0.with_name("y.gguf"))
    with pytest.raises(ValueError, match=r"holds x\.gguf, y\.gguf: name one of them"):
        load(q8_0.parent)
    q8_0.with_name("y.gguf").unlink()
    q8_0.unlink()
    with pytest.raises(ValueError, match="holds no GGUF file"):
        load(q8_0.parent)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"type_v": "q8_0", "flash_attn": False},
            "llama.cpp makes no context: quantized V cache requires flash_attn to be enabled",
        ),
        ({"n_gpu_layers": 7}, "n_gpu_layers is set, and this llama-cpp-python was built without support for GPUs"),
    ],
)
def test_options_that_the_library_refuses_are_told_in_its_words(options: dict[str, Any], said: str, q8_0: Path) -> None:
    with pytest.raises((ValueError, Lacking), match=said):
        load(q8_0, **options)


@pytest.mark.parametrize(
    "options", [{"type_k": "q8_0", "type_v": "q4_0"}, {"n_batch": 8}, {"n_ubatch": 8}, {"use_mmap": False}], ids=str
)
def test_options_are_taken(options: dict[str, Any], q8_0: Path) -> None:
    engine = load(q8_0, n_threads=1, **options)
    facts = engine.describe().facts
    assert facts is not None
    assert facts.details["options"].items() >= options.items()
    assert sum(not answer.cut_off for answer in answers(engine)) > 90
    kv = 512 * 3 * 128
    sizes = {"type_k": 34 / 32, "type_v": 18 / 32} if "type_k" in options else {"type_k": 2, "type_v": 2}
    assert facts.buffers["kv"] == pytest.approx(kv * sum(sizes.values()), rel=0.02)
    engine.close()


def test_a_file_that_memory_does_not_hold_is_a_skip(q8_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_quantbudget.engine.hf import memory

    monkeypatch.setattr(memory, "free_ram", lambda: 1000)
    with pytest.raises(Lacking, match=r"too little free memory: the file takes 616 KiB, and 0\.977 KiB"):
        load(q8_0)
    # Where layers lie on a GPU, this machine's memory need not hold them.
    monkeypatch.setattr(_llama_cpp.library(), "llama_supports_gpu_offload", lambda: True)
    load(q8_0).close()
    with pytest.raises(Lacking, match="too little free memory"):
        load(q8_0, n_gpu_layers=0)


def test_a_chat_template_of_its_own_is_noted_or_a_failure(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    shutil.copytree(BUILTIN_DIR, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    source = made("gguf-f16", tmp_path / "cache", folder) / gguf.FILE
    other = rewritten(source, tmp_path / "other.gguf", {"tokenizer.chat_template": "{{ 'x' * 9000 }}"})
    plain = made("gguf-f16", cache) / gguf.FILE
    for path, notes in (
        (source, ()),
        (other, ("other.gguf has another chat template",)),
        (plain, ("model.gguf has no chat template, and the model has one",)),
    ):
        engine = load(path, model=folder)
        assert engine.describe().notes == notes
        engine.close()
    own = subject("gguf", folder, other)
    with pytest.raises(ValueError, match=r"other\.gguf has another chat template"):
        engines.module(LLAMA_CPP).load(replace(own, same_as_source=("tokenizer", "chat_template")))
    with pytest.raises(ValueError, match="same_as_source: tensors of a GGUF file cannot be compared with the model's"):
        engines.module(LLAMA_CPP).load(replace(own, same_as_source=("tensors",)))


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, in_time: None) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(OSError, match=r"not a regular file|pipe"):
        load(tmp_path)


def test_of_a_hub_model_the_file_is_the_one_that_the_kind_names(
    q8_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    snapshot = tmp_path / "hub" / "models--acme--x-GGUF" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("x-Q8_0.gguf", "x-Q4_K_M.gguf", "x-IQ8_0.gguf", "x-BF16.gguf"):
        shutil.copy(q8_0, snapshot / name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    own = replace(subject("gguf-q8_0"), checkpoint="acme/x-GGUF")
    engine = engines.module(LLAMA_CPP).load(own, pins=(None, commit))
    assert engine.describe().facts.details["file"] == "x-Q8_0.gguf"
    engine.close()
    with pytest.raises(ValueError, match="one has to hold F16 in its name, and there are none"):
        engines.module(LLAMA_CPP).load(replace(own, kind="gguf-f16"))
    with pytest.raises(ValueError, match="which file of acme/x-GGUF is meant, a kind such as gguf-q4_k_m says"):
        engines.module(LLAMA_CPP).load(replace(own, kind="gguf"))
    shutil.copy(q8_0, snapshot / "y-q8_0.gguf")
    with pytest.raises(ValueError, match=r"there are several: x-Q8_0\.gguf, y-q8_0\.gguf"):
        engines.module(LLAMA_CPP).load(own)
