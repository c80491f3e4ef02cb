"""Adapters that would run code, unpickle, are none, are incomplete, or are another model's: refused before loading."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adapters
import pytest
from adapters import OF_QUERY, QUERY

from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS, VLLM, Adapter
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust
from pytest_quantbudget.models import lora


def subject(folder: Path, engine: str = TRANSFORMERS, *, merge: bool = False) -> Subject:
    return Subject("org/m", None, "fp16", None, {}, None, engine=engine, adapter=Adapter(str(folder), merge))


def refusal(folder: Path, trust: Trust = NO_TRUST, **more: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        lora.find(subject(folder, **more), trust)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_adapter_is_read_from_its_headers(tmp_path: Path) -> None:
    found = lora.find(subject(adapters.write(tmp_path / "own")), NO_TRUST)
    assert found is not None
    assert found.tensors == {name: ("F32", list(shape)) for name, shape in OF_QUERY.items()}
    assert (found.values, found.rank) == (2 * 2 * 128, 2)
    assert found.size == found.path.stat().st_size > 4 * found.values
    assert found.revision.startswith("sha256:")


def test_a_subject_without_an_adapter_has_none() -> None:
    assert lora.find(Subject("org/m", None, "fp16", None, {}, None), NO_TRUST) is None


def test_what_is_no_adapter_is_told(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own")
    (own / "adapter_config.json").unlink()
    assert refusal(own) == "own holds no adapter: there is no adapter_config.json"
    (own / "config.json").write_text("{}")
    assert refusal(own).endswith("; it holds a whole model")


def test_weights_are_safetensors_unless_the_command_line_says_more(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own")
    (own / lora.SAFE).rename(own / lora.PICKLED)
    assert refusal(own).startswith("own has no adapter_model.safetensors; only --quant-allow-pickle allows others")
    found = lora.find(subject(own), Trust(pickles=True))
    assert found is not None
    assert (found.path.name, found.tensors) == (lora.PICKLED, {})
    (own / lora.PICKLED).unlink()
    assert refusal(own, Trust(pickles=True)) == "own has no adapter_model.safetensors"


@pytest.mark.parametrize("left", [0, 7, 20, -4])
def test_weights_that_are_cut_off_are_told(left: int, tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own")
    whole = (own / lora.SAFE).read_bytes()
    (own / lora.SAFE).write_bytes(whole[:left])
    assert "own/adapter_model.safetensors" in refusal(own)


def test_weights_without_a_tensor_and_what_is_no_file_are_told(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", {})
    assert refusal(own) == "own/adapter_model.safetensors holds no tensor"
    os.mkfifo(own / "pipe")
    assert refusal(own) == "own/pipe is neither a regular file nor a directory"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "is of the kind 'IA3', and only LORA"),
        ({"peft_type": None}, "is of the kind None"),
        ({"task_type": "SEQ_CLS"}, "is for the task 'SEQ_CLS'"),
        ({"megatron_config": {"x": 1}}, "megatron_config names the layers of another library"),
        ({"layer_replication": [[0, 2]]}, "layer_replication makes another model"),
        ({"alora_invocation_tokens": [1, 2]}, "is for the tokens after certain ones"),
        ({"arrow_config": {"x": 1}}, "chooses among several adapters"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes its base model's weights (init_lora_weights: pissa_niter_4)"),
        ({"init_lora_weights": "olora"}, "changes its base model's weights"),
        ({"r": 0}, "r is no rank"),
        ({"r": "8"}, "r is no rank"),
        ({"rank_pattern": {"q_proj": -1}}, "r is no rank"),
        ({"rank_pattern": [3]}, "r is no rank"),
        ({"alpha_pattern": [3]}, "alpha_pattern is no mapping"),
        ({"alpha_pattern": {"(a+)+": 3}}, "alpha_pattern holds '(a+)+', which repeats a group"),
        ({"rank_pattern": {"(a|a){9}": 3}}, "rank_pattern holds '(a|a){9}', which repeats a group"),
        ({"target_modules": r"([\w.]*)*q_proj"}, "target_modules holds"),
        ({"exclude_modules": ".*" * 7}, "which repeats a group, or has more than 6 repeats"),
        ({"layers_pattern": ["layers", "(x*)*"]}, "layers_pattern holds '(x*)*'"),
        ({"alpha_pattern": {"q" * 1001: 3}}, "holds an expression of more than 1,000 characters"),
        ({"rank_pattern": {"q_(proj": 3}}, "is no regular expression (missing )"),
    ],
)
def test_what_nothing_runs_is_told_for_every_engine(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", **config)
    for engine in (TRANSFORMERS, VLLM, LLAMA_CPP):
        assert words in refusal(own, engine=engine)
        assert words in refusal(own, engine=engine, merge=True)


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"target_parameters": ["x"]}]
)
def test_what_only_peft_runs_is_told_for_the_others_and_merged_is_not(config: dict[str, Any], tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", **config)
    for engine in (VLLM, LLAMA_CPP):
        told = refusal(own, engine=engine)
        assert told.startswith(f"own: {engine} runs plain LoRA adapters, and this one has {next(iter(config))};")
        assert lora.find(subject(own, engine, merge=True), NO_TRUST) is not None
    assert lora.find(subject(own), NO_TRUST) is not None


def test_a_configuration_that_names_code_is_refused(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", auto_map={"AutoModel": "evil.Model"})
    assert "names code that comes with the model (auto_map)" in refusal(own)
    assert lora.find(subject(own), Trust(remote_code=True)) is not None
    (own / "adapter_config.json").write_text("[1]")
    assert refusal(own) == "own/adapter_config.json is not a JSON object"


def module(takes: int, gives: int) -> Any:
    return SimpleNamespace(in_features=takes, out_features=gives)


def test_an_adapter_of_another_model_is_told_by_layers_and_shapes(tmp_path: Path) -> None:
    found = lora.read("own", adapters.write(tmp_path / "own"), "", NO_TRUST)
    lora.check_fits(found, {QUERY: module(128, 128)}, "m")
    lora.check_fits(found, {QUERY: object()}, "m")
    with pytest.raises(ValueError, match=r"own is an adapter of another model: of the 1 layers .* m lacks 1 \(model"):
        lora.check_fits(found, {QUERY.replace("0", "7"): module(128, 128)}, "m")
    with pytest.raises(ValueError, match=rf"its {QUERY} takes 128 values, and that of m 256"):
        lora.check_fits(found, {QUERY: module(256, 128)}, "m")
    with pytest.raises(ValueError, match=rf"its {QUERY} gives 128 values, and that of m 1,024"):
        lora.check_fits(found, {QUERY: module(128, 1024)}, "m")


def test_an_adapter_that_names_another_base_is_a_remark(tmp_path: Path) -> None:
    def said(told: str | None, model: str) -> str:
        own = adapters.write(tmp_path / "own", base_model_name_or_path=told)
        return lora.other_base(lora.read("own", own, "", NO_TRUST), model)

    assert said("org/other", "org/m") == "the adapter own says that it was trained on org/other, and the model is org/m"
    assert said("org/m", "org/m") == said("", "org/m") == said(None, "org/m") == ""
    assert said("org/other", "/models/own") == said("/home/me/model", "org/m") == ""


@pytest.mark.parametrize(
    ("config", "module", "scaling"),
    [
        ({}, QUERY, 2.0),
        ({"use_rslora": True}, QUERY, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 10}}, QUERY, 5.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 10}}, QUERY, 5.0),
        ({"alpha_pattern": {"k_proj": 10}}, QUERY, 2.0),
        ({"lora_alpha": None}, QUERY, 4.0),
    ],
)
def test_the_scaling_is_that_of_peft(config: dict[str, Any], module: str, scaling: float, tmp_path: Path) -> None:
    found = lora.read("own", adapters.write(tmp_path / "own", **config), "", NO_TRUST)
    assert found.scaling(module, 2) == pytest.approx(scaling)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r".*\.layers\.(1|2)\.(self_attn|mlp)\..*(q|k)_proj"},
        # As unsloth writes it.
        {"target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|o_proj).*?)|(?:\.[\d]{1,}\.o)"},
        {"target_modules": ["(q+)+", "q_proj"]},
        {"alpha_pattern": {r"^model\.layers\.[0-9]+\.self_attn\.q_proj": 3, "[(+)*+]": 4, r"\)+": 5}},
        {"rank_pattern": {"model.layers.0.self_attn.q_proj": 3}, "layers_pattern": "layers"},
    ],
)
def test_expressions_that_are_matched_at_once_are_taken(config: dict[str, Any], tmp_path: Path) -> None:
    assert lora.find(subject(adapters.write(tmp_path / "own", **config)), NO_TRUST) is not None


def test_a_name_that_no_module_has_is_refused_before_it_is_matched(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", {f"{'q' * 400}.lora_A.weight": (2, 128)})
    assert "holds a tensor whose name has 414 characters" in refusal(own)


def test_the_largest_rank_is_told(tmp_path: Path) -> None:
    own = adapters.write(tmp_path / "own", rank_pattern={"q_proj": 24})
    assert lora.read("own", own, "", NO_TRUST).rank == 24
    assert json.loads((own / "adapter_config.json").read_text())["r"] == 2
