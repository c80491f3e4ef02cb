"""Weights that are not there, checkpoints of another kind than the budget says, and what beside weights differs."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject
from pytest_quantbudget.models import checkpoint, methods, tensors

pytestmark = pytest.mark.model
Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A copy of the built-in model with other tensors and another configuration."""

    def edit(change: Callable[[dict[str, Any]], dict[str, Any]] = dict, name: str = "model", **config: Any) -> Path:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / name
        shutil.copytree(BUILTIN_DIR, folder)
        held = change(load_file(folder / "model.safetensors"))
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return edit


def subject(folder: Path, method: str = "fp32", **more: Any) -> Subject:
    options = methods.spec(method).filled({}) if "checkpoint" not in more else {}
    return Subject(str(folder), None, method, **{"checkpoint": None, "options": options, "calibration": None, **more})


def loaded(subject: Subject) -> Any:
    from pytest_quantbudget.engine.hf import load

    return load.load(subject, None)


DOWN = "model.layers.2.mlp.down_proj.weight"


HOLE, PREFIX, TURNED = (
    lambda held: {k: v for k, v in held.items() if k != DOWN},
    lambda held: {f"_orig_mod.{k}": v for k, v in held.items()},
    lambda held: {**held, DOWN: held[DOWN].T.contiguous()},
)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (HOLE, {}, f"model lacks 1 of the model's 36 tensors ({DOWN}), which would be random"),
        (PREFIX, {}, "it holds 35 that the model does not use (_orig_mod."),
        (PREFIX, {}, ": all their names begin with '_orig_mod.'"),
        (dict, {"tie_word_embeddings": False}, "lacks 1 of the model's 36 tensors (lm_head.weight)"),
        (dict, {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "lacks 11 of the model's 47 tensors"),
        (TURNED, {}, f"holds {DOWN} in the shape [256, 128], and its config asks for [128, 256]"),
    ],
    ids=["hole", "prefix", "prefix's name", "untied", "more layers", "shape"],
)
def test_a_tensor_that_is_not_there_is_a_failure_that_names_it(
    edited: Edit, change: Callable[[dict[str, Any]], dict[str, Any]], config: dict[str, Any], words: str
) -> None:
    folder = edited(change, **config)
    with pytest.raises(ValueError, match=re.escape(words)):
        loaded(subject(folder))


def test_what_the_loader_reports_is_a_failure_too(edited: Edit) -> None:
    """Of models whose tensors transformers renames while it loads, only its own report tells what is missing."""
    folder = edited(HOLE)
    with pytest.raises(ValueError, match=rf"lacks 1 of the model's 36 tensors \({DOWN}\)"):
        methods.spec("fp32").load(folder, {}, "cpu")


def test_tensors_that_the_model_does_not_use_are_named(edited: Edit) -> None:
    import torch

    folder = edited(lambda held: {**held, "mtp.fc.weight": torch.zeros(2, 2)})
    assert loaded(subject(folder)).description.unread == ("mtp.fc.weight",)
    folder = edited(dict, "fewer", num_hidden_layers=2, layer_types=["full_attention"] * 2)
    unread = loaded(subject(folder)).description.unread
    assert len(unread) == 11
    assert all(name.startswith("model.layers.2.") for name in unread)


def test_a_models_tied_and_base_names_are_all_there(edited: Edit) -> None:
    """A base model's files lack the prefix; an output layer may be held beside the embedding that it shares."""
    folder = edited(lambda held: {k.removeprefix("model."): v for k, v in held.items()})
    assert loaded(subject(folder)).description.unread == ()
    assert tensors.few(["a", "b", "c", "d"]) == "a, b, c, ..."


# Checkpoints of another kind


def saved(folder: Path, method: str, **config: Any) -> Path:
    """A checkpoint that bitsandbytes makes of the built-in model."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        BUILTIN_DIR, quantization_config=BitsAndBytesConfig(**config), device_map={"": "cpu"}, dtype=torch.float16
    )
    model.save_pretrained(folder / method)
    return folder / method


def test_another_type_or_option_than_the_budget_says_is_a_failure(tmp_path: Path) -> None:
    nf4 = saved(tmp_path, "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    fp4 = saved(tmp_path, "fp4", load_in_4bit=True, bnb_4bit_quant_type="fp4")
    own = subject(BUILTIN_DIR, "nf4", checkpoint=str(nf4))
    told = loaded(own).description
    assert told.made_with == {"double_quant": True, "compute_dtype": "float32"}
    assert told.receipt.main_bits == 4
    assert loaded(replace(own, options={"double_quant": True})).description.made_with == told.made_with
    with pytest.raises(ValueError, match="the checkpoint in nf4 has double_quant True, and the options say False"):
        loaded(replace(own, options={"double_quant": False}))
    with pytest.raises(ValueError, match="the checkpoint in fp4 is fp4, and nf4 is asked for"):
        loaded(replace(own, checkpoint=str(fp4)))
    with pytest.raises(ValueError, match="the checkpoint in nf4 is nf4, and int8 is asked for"):
        loaded(replace(own, method="int8", kind="int8"))


@pytest.mark.parametrize(
    ("name", "config", "told"),
    [
        ("gptq-int4", {"bits": 8, "group_size": 128}, {"method": "gptq-int8", "bits": 8, "group_size": 128}),
        ("gptq-int4", {"bits": 4, "group_size": 32, "desc_act": True}, {"method": "gptq-int4", "act_order": True}),
        ("awq-int4", {"w_bit": 4, "q_group_size": 64, "zero_point": True}, {"method": "awq-int4", "group_size": 64}),
        ("int8", {"load_in_8bit": True}, {"method": "int8", "outlier_threshold": 6.0}),
        ("nf4", {"load_in_4bit": True}, {"method": "fp4", "double_quant": False, "compute_dtype": "float32"}),
    ],
)
def test_what_a_checkpoint_says_of_itself(name: str, config: dict[str, Any], told: dict[str, Any]) -> None:
    read = methods.spec(name).told
    assert read is not None
    assert told.items() <= read(config).items()


def test_forms_of_older_tools_are_read_and_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BUILTIN_DIR, tmp_path / "m")
    folder, old = tmp_path / "m", {"bits": 4, "group_size": 128, "desc_act": False}
    (folder / "quantize_config.json").write_text(json.dumps(old))
    assert checkpoint.quantization(folder) == {"quant_method": "gptq", **old}
    assert checkpoint.is_old_form(folder)
    config = json.loads((folder / "config.json").read_text())
    now = {"quant_method": "gptq", "bits": 8, "group_size": 128}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": now}))
    with pytest.raises(ValueError, match=r"m contradicts itself: .* says bits 8, and quantize_config.json says 4"):
        checkpoint.quantization(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    assert checkpoint.weight_files(folder, NO_TRUST) == [folder / "gptq_model-4bit-128g.safetensors"]
    (folder / "gptq_model-4bit-128g.safetensors").rename(folder / "mine.safetensors")
    with pytest.raises(ValueError, match=r"m holds its weights in mine.safetensors, .*: name it model.safetensors"):
        checkpoint.weight_files(folder, NO_TRUST)


# What a checkpoint has of its own


@pytest.mark.parametrize(
    ("file", "change", "name", "words"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "chat_template", "its chat template differs"),
        ("generation_config.json", {"temperature": 0.6}, "generation_config", "generation_config.json differs in temp"),
        ("tokenizer_config.json", {"eos_token": "#"}, "tokenizer", "its special tokens differ: eos_token"),
    ],
)
def test_what_differs_from_the_source_is_a_note_or_a_failure(
    tmp_path: Path, file: str, change: dict[str, Any], name: str, words: str
) -> None:
    nf4 = saved(tmp_path, "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    for path in BUILTIN_DIR.glob("*token*.json"):
        shutil.copy(path, nf4)
    path = nf4 / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **change}))
    own = subject(BUILTIN_DIR, "nf4", checkpoint=str(nf4))
    notes = loaded(own).description.notes
    assert any(words in note for note in notes), notes
    with pytest.raises(ValueError, match=f"is not as `same_as_source` asks: {words}"):
        loaded(replace(own, same_as_source=(name,)))


def test_tensors_that_a_method_leaves_alone_can_be_compared(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    nf4 = saved(tmp_path, "nf4", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    own = subject(BUILTIN_DIR, "nf4", checkpoint=str(nf4), same_as_source=("tensors",))
    assert loaded(own).description.disk == (nf4 / "model.safetensors").stat().st_size
    held = load_file(nf4 / "model.safetensors")
    held["model.norm.weight"] += 1
    save_file(held, nf4 / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors that both hold differ \(model.norm.weight\)"):
        loaded(own)


def test_a_checkpoint_with_a_dense_layer_is_read_by_the_library_that_made_it(tmp_path: Path) -> None:
    """transformers would pack that layer too, and fill it with uninitialized memory."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from pytest_quantbudget.engine.hf.load import settle
    from pytest_quantbudget.models.calibration import calibration_texts
    from pytest_quantbudget.models.methods import _gptqmodel

    settle(methods.spec("gptq-int4"))
    pytest.importorskip("gptqmodel")
    texts = calibration_texts(BUILTIN_DIR / "calibration.jsonl", 16, 0)
    options = {"bits": 4, "group_size": 32}
    dense: dict[str, Any] = {r"-:.*layers\.1\..*": {}}
    _gptqmodel.quantize(
        BUILTIN_DIR, options, texts, tmp_path / "mixed", NO_TRUST, desc_act=False, sym=True, dynamic=dense
    )
    own = subject(BUILTIN_DIR, "gptq-int4", checkpoint=str(tmp_path / "mixed"))
    found = loaded(own)
    kinds = {layers.bits: layers.count for layers in found.description.receipt.layers if layers.kind == "linear"}
    assert kinds == {4: 14, 16: 7}
    assert found.description.made_with == {"bits": 4, "group_size": 32, "act_order": False}
    ids = found.tokenizer("Question: Adam has 3 boats and buys 4 more. How many?\nAnswer:", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR)
    ours, theirs = (model(**ids).logits[0, -1].float() for model in (found.model, plain))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.3
    # What its own loader does not tell of: a packed layer's zero points that are gone, a tensor that no layer uses.
    file = tmp_path / "mixed" / "model.safetensors"
    held, lost = load_file(file), "model.layers.0.mlp.up_proj.qzeros"
    save_file({**held, "mtp.fc.weight": torch.zeros(2, 2)}, file, metadata={"format": "pt"})
    assert loaded(own).description.unread == ("mtp.fc.weight",)
    save_file({name: tensor for name, tensor in held.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"mixed lacks 1 of the model's .* \({lost}"):
        loaded(own)
    save_file(held, file, metadata={"format": "pt"})
    # The same tensors with an entry that hides what is mixed: nothing is loaded at random.
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    config["quantization_config"].pop("dynamic")
    (tmp_path / "mixed" / "config.json").write_text(json.dumps(config))
    (tmp_path / "mixed" / "quantize_config.json").unlink()
    with pytest.raises(ValueError, match=r"mixed lacks 28 of the model's .* \(model.layers.1.mlp.down_proj.g_idx"):
        loaded(own)
