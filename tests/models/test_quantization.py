"""The table of formats: what a checkpoint says it is, what its modules keep, and which engines run it packed."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from documentation import ROOT
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS, VLLM
from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import NO_TRUST, Request, Subject
from pytest_quantbudget.engine.hf import formats
from pytest_quantbudget.engine.llama_cpp import receipt
from pytest_quantbudget.measure import keys
from pytest_quantbudget.models import checkpoint, engines, methods, quantization

INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel", "group_size": None}
INPUT8 = {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True}
FP8 = {"type": "float", "num_bits": 8, "strategy": "channel"}
FP8_INPUT = {**FP8, "strategy": "token", "dynamic": True}
INT3 = {"_data": "int3", "_type": "torch.dtype"}
HQQ = {"nbits": 4, "group_size": 64}
FP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}


def tensors(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What compressed-tensors writes of groups of layers."""
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": ["lm_head"], **more}


def ao(name: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": data}}}


SAID: list[tuple[dict[str, Any], str, float]] = [
    (tensors({"weights": INT4}), "compressed-tensors W4A16 g128", 4),
    (tensors({"weights": INT8, "input_activations": INPUT8}), "compressed-tensors W8A8", 8),
    (tensors({"weights": FP8, "input_activations": FP8_INPUT}), "compressed-tensors FP8 dynamic", 8),
    (tensors({"weights": FP8, "input_activations": {**FP8, "dynamic": False}}), "compressed-tensors FP8", 8),
    (tensors({"weights": {**FP8, "strategy": "block"}}), "compressed-tensors FP8A16 block", 8),
    (tensors({"weights": FP4}), "compressed-tensors NVFP4A16", 4),
    (tensors({"weights": FP4, "input_activations": FP4}), "compressed-tensors NVFP4", 4),
    (tensors({"weights": FP4, "format": "mxfp4-pack-quantized"}), "compressed-tensors MXFP4A16", 4),
    (tensors({"weights": INT4}, {"weights": INT8}), "compressed-tensors W4A16 g128 + W8A16", 0),
    (tensors({"weights": INT4}, kv_cache_scheme=FP8), "compressed-tensors W4A16 g128 and its KV cache", 4),
    (tensors(), "compressed-tensors of no weights", 0),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 block 128x128", 8),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", 8),
    ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8, experts in fp4", 0),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "ModelOpt NVFP4 g16", 4),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "ModelOpt FP8", 8),
    ({"quant_method": "mxfp4"}, "mxfp4", 4),
    ({"quant_method": "auto-round", "bits": 4, "group_size": 128}, "autoround int4 g128", 4),
    ({"quant_method": "intel/auto-round", "bits": 2, "group_size": 64}, "autoround int2 g64", 2),
    ({"quant_method": "auto-round", "bits": 4, "extra_config": {"lm_head": {}}}, "autoround int4, uneven", 0),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bnb nf4", 4),
    ({"load_in_4bit": True}, "bnb fp4", 4),
    ({"load_in_8bit": True}, "bnb int8", 8),
    ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq int4 g32", 4),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq int8", 8),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "awq int4 g128", 4),
    (ao("Int8WeightOnlyConfig"), "torchao int8wo", 8),
    (ao("Int4WeightOnlyConfig", group_size=128), "torchao int4wo g128", 4),
    (ao("IntxWeightOnlyConfig", weight_dtype={"_data": "int4", "_type": "torch.dtype"}), "torchao int4wo", 4),
    (ao("Float8DynamicActivationFloat8WeightConfig"), "torchao float8da-float8w", 8),
    ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao int8_weight_only", 8),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": HQQ}}, "hqq 4-bit g64", 4),
    ({"quant_method": "gguf"}, "gguf", 0),
    ({"quant_method": "quanto", "num_bits": 8}, "quanto 8-bit", 8),
    ({"quant_method": "quark"}, "quark", 0),
    ({"bits": 4}, "? 4-bit", 4),
]  # fmt: skip


@pytest.mark.parametrize(("config", "label", "bits"), SAID, ids=[label for _, label, _ in SAID])
def test_a_checkpoint_says_what_it_is(config: dict[str, Any], label: str, bits: float) -> None:
    told = quantization.read(config)
    assert (told.label, told.bits) == (label, bits)


def test_every_format_of_the_table_is_read_above() -> None:
    assert {quantization.form_of(config).name for config, *_ in SAID if quantization.form_of(config)} == {  # type: ignore[union-attr]
        *quantization.FORMS
    } - {"nvfp4"}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (tensors({"weights": INT4}), ("lm_head",)),
        ({"quant_method": "fp8", "ignored_layers": ["lm_head", 3]}, ("lm_head",)),
        ({"quant_method": "modelopt", "exclude_modules": ["lm_head", "*.gate"]}, ("lm_head", "*.gate")),
        ({"load_in_8bit": True, "llm_int8_skip_modules": None}, ()),
        ({"quant_method": "new", "modules_to_not_convert": ["a"]}, ("a",)),
    ],
)
def test_what_it_leaves_in_16_bits_is_told(config: dict[str, Any], kept: tuple[str, ...]) -> None:
    assert quantization.read(config).kept == kept


def test_weights_that_are_not_packed_are_of_their_own_type() -> None:
    assert quantization.read({}, "bfloat16") == Packing("dense", "dense bfloat16", 16)
    assert quantization.read({}, "float32").bits == 32
    assert quantization.read({}).label == "dense"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
KEYS = sorted({key for config, *_ in SAID for key in (*config, *config.get("config_groups", {}).get("group_0", {}))})


@given(st.sampled_from(SAID), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), JSON)
def test_whatever_it_holds_there_is_a_label_in_one_line(
    said: tuple[dict[str, Any], str, float], changed: dict[str, Any], odd: Any
) -> None:
    group = {
        "group_0": {"weights": {**INT4, "num_bits": odd, "strategy": odd}, "format": odd, "input_activations": odd}
    }
    for config in ({**said[0], **changed}, {**said[0], "config_groups": group}, {**said[0], "quant_type": odd}):
        told = quantization.read(config)
        assert told.label.isprintable()
        assert len(told.label) < 300
        assert 0 <= told.bits <= 1 << 20
        methods.spec("checkpoint").resolve(config, None)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ao("quantize_"), "quantize_"),
        (ao("Int8WeightOnlyConfig", granularity=[{"a": {"_type": "exec", "_data": {}}}]), "exec"),
        (ao("Int8WeightOnlyConfig", granularity={"_type": ["PerRow"]}), "['PerRow']"),
        (ao("Int8DynamicActivationInt8WeightConfig", granularity={"_type": "PerRow", "_data": {}}), None),
        ({"quant_method": "gptq", "quant_type": {"_type": "exec"}}, None),
    ],
)
def test_a_name_that_a_library_would_look_up_and_call_is_seen(config: dict[str, Any], name: str | None) -> None:
    assert quantization.strange(config) == name


def test_a_gguf_file_is_of_its_kinds_type_or_of_most_of_its_matrices() -> None:
    held = [
        receipt.Tensor("blk.0.ffn_up.weight", "q4_k", 256, 512),
        receipt.Tensor("token_embd.weight", "f32", 8, 9999),
    ]
    assert receipt.packing(held, "gguf-q4_k_m") == Packing("gguf", "gguf q4_k_m", 4)
    held.append(receipt.Tensor("blk.0.attn_q.weight", "q5_0", 32, 1024))
    assert receipt.packing(held, "gguf") == Packing("gguf", "gguf mostly q5_0", 5)
    assert receipt.packing([], "gguf").bits == 0


def test_engines_that_run_it_packed_are_known() -> None:
    assert quantization.packed_in({"quant_method": "gptq"}) == [TRANSFORMERS, VLLM]
    assert quantization.packed_in(tensors()) == [VLLM]
    assert quantization.packed_in({"quant_method": "gguf"}) == [LLAMA_CPP]
    assert quantization.packed_in({"quant_method": "new"}) == []


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    told = (ROOT / "docs" / "engines.md").read_text()
    for row in quantization.rows():
        assert f"| {' | '.join(row)} |\n" in told


# As transformers holds it


def receipt_of(bits: int, parameters: int = 1000) -> Receipt:
    return Receipt((Layers("linear", "QLinear", "library.layers", "library", bits, 21, parameters),))


@pytest.mark.parametrize(
    ("config", "found", "decompressed", "untold", "note"),
    [
        ({"quant_method": "fp8"}, receipt_of(8), "", "", ""),
        ({"quant_method": "fp8"}, receipt_of(16), "transformers runs fp8 packed on a GPU of compute", "", ""),
        ({"quant_method": "fp8"}, receipt_of(8, 500), "", "fp8 lies in memory is not known here: 500 values", ""),
        ({"quant_method": "fp8"}, receipt_of(16, 500), "", "fp8 lies in memory is not known here: 500 values", ""),
        (
            {"quant_method": "auto-round", "bits": 4},
            receipt_of(16),
            "transformers holds all of autoround int4 in more than 8 bits (linear 1,000 in 16 bits), so that memory",
            "",
            "",
        ),
        ({"quant_method": "auto-round", "bits": 2}, receipt_of(4), "", "", "autoround int2 has 2 bits a value, and"),
        ({"quant_method": "hqq"}, receipt_of(4), "", "hqq ?-bit lies in memory is not known here: a part of it", ""),
        ({"quant_method": "quanto"}, receipt_of(8), "", "quanto lies in memory is not known here: a part of it is", ""),
        (
            tensors({"weights": INT4}),
            receipt_of(32, 500),
            "transformers decompresses",
            "lies in memory is not known",
            "",
        ),
    ],
)
def test_what_was_loaded_says_whether_it_is_packed(
    config: dict[str, Any], found: Receipt, decompressed: str, untold: str, note: str
) -> None:
    held = formats.held(config, quantization.read(config), found, 1000)
    assert bool(held.decompressed) == bool(decompressed)
    assert decompressed in (held.decompressed or "")
    assert bool(held.untold) == bool(untold)
    assert untold in held.untold
    assert [note in told for told in held.notes] == [True] * bool(note or decompressed)


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    return tmp_path


def test_modelopts_own_file_says_what_it_is(folder: Path) -> None:
    held = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(held))
    assert quantization.read(checkpoint.quantization(folder)).label == "ModelOpt NVFP4"
    (folder / "hf_quant_config.json").write_text('{"quantization": 3}')
    assert quantization.read(checkpoint.quantization(folder)).label == "ModelOpt ?"
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    assert quantization.read(checkpoint.quantization(folder)).label == "fp8"


def test_a_language_part_says_it_for_the_whole(folder: Path) -> None:
    part = {"quantization_config": {"quant_method": "mxfp4"}, "torch_dtype": "torch.float16"}
    (folder / "config.json").write_text(json.dumps({"text_config": part}))
    assert quantization.read(checkpoint.quantization(folder)).label == "mxfp4"
    assert checkpoint.dtype(folder) == "float16"


def test_values_are_counted_through_their_packing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    header = {
        "a": {"dtype": "I32", "shape": [2, 4], "data_offsets": [0, 32]},
        "b": {"dtype": "BF16", "shape": [8], "data_offsets": [32, 48]},
    }
    told = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(told)) + told + bytes(48))
    assert checkpoint.unpacked(tmp_path, 4) == 8 * 8 + 8
    assert checkpoint.unpacked(tmp_path, 0) == 16


# What loads it


@pytest.mark.parametrize(
    ("config", "name", "bits", "packages"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq-int4", 4, ("gptqmodel", "optimum")),
        ({"quant_method": "gptq", "bits": 8}, "checkpoint", 0, ("gptqmodel", "optimum")),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}, "checkpoint", 0, ("gptqmodel", "optimum")),
        ({"quant_method": "awq", "w_bit": 4}, "awq-int4", 4, ("gptqmodel", "optimum")),
        ({"load_in_8bit": True}, "int8", 8, ("bitsandbytes",)),
        (ao("Int8WeightOnlyConfig"), "torchao-int8", 8, ("torchao",)),
        (
            ao("IntxWeightOnlyConfig", weight_dtype={"_data": "int3", "_type": "torch.dtype"}),
            "torchao-intx",
            8,
            ("torchao",),
        ),
        (ao("Int8DynamicActivationInt8WeightConfig"), "checkpoint", 0, ("torchao",)),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4, ("bitsandbytes",)),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "checkpoint", 0, ("bitsandbytes",)),
        ({"load_in_8bit": True, "llm_int8_threshold": "much"}, "checkpoint", 0, ("bitsandbytes",)),
        (tensors({"weights": INT4}), "checkpoint", 0, ("compressed_tensors",)),
        ({"quant_method": "new"}, "checkpoint", 0, ()),
        ({}, "checkpoint", 16, ()),
    ],
)
def test_what_a_kind_makes_the_kind_loads(
    config: dict[str, Any], name: str, bits: float, packages: tuple[str, ...]
) -> None:
    resolve = methods.spec("checkpoint").resolve
    assert resolve is not None
    found = resolve(config, "bfloat16")
    assert (found.name, found.bits, found.packages) == (name, bits, packages)


def test_a_missing_library_of_the_format_is_named_with_its_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("m", None, "x", str(folder), {}, None, kind="checkpoint")
    told: dict[str, Any] = tensors({"weights": INT4})

    def lacking(config: dict[str, Any]) -> str | None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
        gone = quantization.packages()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in gone else 1)
        return engines.missing(subject)

    assert lacking(told) == ("x needs compressed_tensors: pip install 'pytest-quantbudget[compressed-tensors]'")
    assert lacking({"quant_method": "auto-round"}) == "x needs auto_round: pip install auto-round"
    assert lacking({}) is None


def test_figures_are_kept_under_the_versions_of_what_formats_need(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").write_bytes(b"")

    def kept(kind: str) -> dict[str, str]:
        subject = Subject(str(folder), None, "x", str(folder), {}, None, kind=kind)
        found = keys.keys_of(Request(subject), [], NO_TRUST, tmp_path / "memo")
        assert found is not None
        return dict(found.base["libraries"])

    there = dict.fromkeys((*quantization.packages(), *methods.library_names()), "1.0")
    monkeypatch.setattr("pytest_quantbudget.core.versions.installed", lambda names: there)
    assert set(quantization.packages()) <= kept("checkpoint").keys()
    assert "compressed_tensors" not in kept("nf4")
    before = kept("checkpoint")
    there["compressed_tensors"] = "1.1"
    assert kept("checkpoint") != before
