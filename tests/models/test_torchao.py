"""torchao's tensors: made while loading, saved, loaded again; what a CPU cannot run; other configurations."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import DUMMY, Subject, Trust, Workload
from pytest_quantbudget.models import checkpoint, engines, methods
from pytest_quantbudget.models.estimate.architecture import Matrix
from pytest_quantbudget.models.estimate.memory import estimate

WORKLOAD = Workload(16, 8, 2, 2)
IN_FLOAT = {"compute_dtype": "float32"}
OPTIONS: dict[str, dict[str, Any]] = {
    "torchao-int8": {**IN_FLOAT, "group_size": 64},
    "torchao-intx": {**IN_FLOAT, "bits": 3, "group_size": 32},
    "torchao-fp8": {**IN_FLOAT, "group_size": -1},
}


def subject(method: str, **more: Any) -> Subject:
    values: dict[str, Any] = {"model": str(BUILTIN_DIR), "checkpoint": None, "options": {}, "calibration": None}
    return Subject(**{**values, **more}, revision=None, method=method)


def config_of(name: str, **data: Any) -> dict[str, Any]:
    """A `config.json` that names a configuration of torchao."""
    made = {"_type": name, "_version": 2, "_data": data}
    return {"quant_method": "torchao", "quant_type": {"default": made}, "modules_to_not_convert": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind that torchao saves on a CPU."""
    pytest.importorskip("torchao")
    folder = tmp_path_factory.mktemp("saved")
    for kind, options in OPTIONS.items():
        spec = methods.spec(kind)
        model: Any = spec.load(BUILTIN_DIR, spec.filled(options), "cpu")
        model.save_pretrained(folder / kind)
    return {kind: folder / kind for kind in OPTIONS}


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.arange(20, 60)[None]).logits


@pytest.mark.model
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_saved_checkpoint_is_the_model_that_was_saved(saved: dict[str, Path], kind: str) -> None:
    import torch

    from pytest_quantbudget.engine.hf import load, memory

    spec = methods.spec(kind)
    made = spec.load(BUILTIN_DIR, spec.filled(OPTIONS[kind]), "cpu")
    ready = load.load(subject(kind, checkpoint=str(saved[kind])), None)
    assert torch.equal(logits(made), logits(ready.model))
    assert ready.model.lm_head.weight.data_ptr() == ready.model.model.embed_tokens.weight.data_ptr() != 0
    predicted = estimate(subject(kind, checkpoint=str(saved[kind])), WORKLOAD)
    assert predicted.weights == ready.description.weights == memory.weight_bytes(made)
    assert ready.description.made_with == OPTIONS[kind]
    assert ready.description.disk == (saved[kind] / "model.safetensors").stat().st_size
    assert ready.description.receipt.fraction == 3 * (4 * 128 * 128 + 3 * 128 * 256) / 574_528
    assert ready.description.unread == ()


@pytest.mark.model
def test_what_the_options_say_otherwise_is_refused(saved: dict[str, Path]) -> None:
    from pytest_quantbudget.engine.hf import load

    wrong: dict[str, dict[str, Any]] = {
        "has bits 3, and the options say 4": {"method": "torchao-intx", "options": {"bits": 4}},
        "has group_size 32, and the options say 128": {"method": "torchao-intx", "options": {"group_size": 128}},
        "has compute_dtype float32, and the options say bfloat16": {
            "method": "torchao-intx",
            "options": {"compute_dtype": "bfloat16"},
        },
        "is torchao-intx, and torchao-int8 is asked for": {"method": "torchao-int8"},
        "is quantized with torchao; nf4 needs a bitsandbytes checkpoint": {"method": "nf4"},
    }
    for words, more in wrong.items():
        with pytest.raises(ValueError, match=words):
            load.load(subject(checkpoint=str(saved["torchao-intx"]), **more), None)


@pytest.mark.model
def test_pickled_tensors_are_loaded_where_the_command_line_says_so(saved: dict[str, Path], tmp_path: Path) -> None:
    import torch

    from pytest_quantbudget.engine.hf import load

    folder = tmp_path / "pickled"
    shutil.copytree(saved["torchao-int8"], folder)
    (folder / "model.safetensors").unlink()
    made = methods.spec("torchao-int8").load(
        saved["torchao-int8"], methods.spec("torchao-int8").filled(IN_FLOAT), "cpu"
    )
    torch.save(made.state_dict(), folder / "pytorch_model.bin")
    mine = subject("torchao-int8", checkpoint=str(folder))
    with pytest.raises(ValueError, match="only --quant-allow-pickle allows others"):
        load.load(mine, None)
    ready = load.load(mine, None, Trust(pickles=True))
    assert torch.equal(logits(made), logits(ready.model))
    assert ready.description.weights == estimate(mine, WORKLOAD).weights


@pytest.mark.model
def test_dummy_weights_have_the_format_of_the_options_or_of_the_checkpoint(saved: dict[str, Path]) -> None:
    from pytest_quantbudget.engine.hf import load

    made = subject("torchao-int4", options={**IN_FLOAT, "group_size": 64}, load_format=DUMMY)
    assert load.load(made, None).description.weights == estimate(made, WORKLOAD).weights
    ready = subject("torchao-intx", checkpoint=str(saved["torchao-intx"]), load_format=DUMMY)
    loaded = load.load(ready, None).description
    assert loaded.weights == estimate(ready, WORKLOAD).weights
    assert loaded.made_with == OPTIONS["torchao-intx"]


@pytest.mark.model
@pytest.mark.parametrize("load_format", ["auto", DUMMY])
def test_a_name_that_torchao_would_call_is_refused_before_loading(
    saved: dict[str, Path], tmp_path: Path, load_format: str
) -> None:
    from pytest_quantbudget.engine.hf import load

    folder = tmp_path / "hostile"
    shutil.copytree(saved["torchao-int8"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_type"]["default"]["_data"]["granularity"] = {"_type": "quantize_", "_data": {}}
    (folder / "config.json").write_text(json.dumps(config))
    mine = subject("torchao-int8", checkpoint=str(folder), load_format=load_format)
    with pytest.raises(ValueError, match="names 'quantize_', which a library would look up and call"):
        load.load(mine, None)


@pytest.mark.model
def test_what_a_cpu_cannot_run_is_a_skip_in_words(tmp_path: Path) -> None:
    from pytest_quantbudget.engine.base import Lacking
    from pytest_quantbudget.engine.hf import load

    pytest.importorskip("torchao")
    folder = tmp_path / "gpu"
    shutil.copytree(BUILTIN_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config_of("Int4WeightOnlyConfig", group_size=128)
    (folder / "config.json").write_text(json.dumps(config))
    plain = subject("torchao-int4", checkpoint=str(folder))
    tiled = subject("torchao-int4", options={"packing": "tile_packed_to_4d"})
    for mine, packing in ((plain, "plain"), (tiled, "tile_packed_to_4d")):
        with pytest.raises(Lacking, match=f"^the packing `{packing}` of torchao-int4 needs a GPU$"):
            load.load(mine, None)


@pytest.mark.model
def test_layers_that_a_checkpoint_keeps_are_counted_as_kept(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    from pytest_quantbudget.engine.hf import load

    kept = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[*kept, "lm_head"])
    model: Any = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype="float32", quantization_config=config)
    model.save_pretrained(tmp_path / "kept")
    ready = load.load(subject("torchao-int8", checkpoint=str(tmp_path / "kept")), None)
    told = {(one.kind, one.name, one.bits): one.parameters for one in ready.description.receipt.layers}
    down, inside = 3 * 128 * 256, 3 * (4 * 128 * 128 + 2 * 128 * 256)
    assert told == {
        ("linear", "Int8Tensor", 8): inside,
        ("linear", "Linear", 32): down,
        ("embedding", "Embedding", 32): 640 * 128,
        ("lm_head", "Linear", 32): 0,
        ("norm", "Qwen3RMSNorm", 32): 1088,
    }
    rows, rotary = 3 * (4 * 128 + 2 * 256), 2 * 16 * 4
    assert ready.description.weights == inside + 5 * rows + 4 * (down + 640 * 128 + 1088) + rotary


@pytest.mark.model
def test_options_that_torchao_cannot_unite_are_refused_in_words() -> None:
    pytest.importorskip("torchao")
    spec = methods.spec("torchao-int4")
    wrong: dict[str, dict[str, Any]] = {
        "`tile_packed_to_4d` of torchao-int4 computes in bfloat16, and compute_dtype is float32": {
            "packing": "tile_packed_to_4d",
            "compute_dtype": "float32",
        },
        "`plain` of torchao-int4 takes no scales from hqq": {"packing": "plain", "hqq": True},
    }
    for words, options in wrong.items():
        with pytest.raises(ValueError, match=words):
            spec.load(BUILTIN_DIR, spec.filled(options), "cpu")


@pytest.mark.model
def test_a_group_size_that_does_not_divide_is_refused_before_loading(tmp_path: Path) -> None:
    """torchao would leave the layers as they are, and say so in its log alone."""
    pytest.importorskip("torchao")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 576, "intermediate_size": 1536}))
    for kind in ("torchao-int4", "torchao-int8", "torchao-intx", "torchao-fp8"):
        spec = methods.spec(kind)
        with pytest.raises(ValueError, match="group size 128 does not divide the model's hidden_size 576; 64 does"):
            spec.load(tmp_path, spec.filled({"group_size": 128}), "cpu")


@pytest.mark.model
def test_the_layout_for_gpus_is_counted_with_its_padding() -> None:
    """Put together by hand, as it would lie on a GPU: 128 inputs are padded to 1,024."""
    import torch
    from torch import nn

    from pytest_quantbudget.engine.hf import layers, memory

    tensors = pytest.importorskip("torchao.quantization")
    outputs, padded, group = 16, 1024, 128
    qdata = torch.zeros(outputs // 8, padded // 128, 32, 4, dtype=torch.int32)
    scales = torch.zeros(padded // group, outputs, 2, dtype=torch.bfloat16)
    made = tensors.Int4TilePackedTo4dTensor(qdata, scales, [1, group], torch.Size((outputs, 128)))
    model: Any = nn.Sequential(nn.Linear(128, outputs, bias=False, dtype=torch.bfloat16))
    model[0].weight = nn.Parameter(made, requires_grad=False)
    model.get_output_embeddings = lambda: None
    (told,) = layers.receipt(model).layers
    assert (told.name, told.kernel, told.bits) == ("Int4TilePackedTo4dTensor", "torchao", 4)
    assert told.parameters == 128 * outputs
    form = methods.spec("torchao-int4").storage(
        {"compute_dtype": "bfloat16", "group_size": 128, "packing": "tile_packed_to_4d"}
    )
    assert form is not None
    matrix = Matrix("MLP", 128, outputs)
    assert form.values(matrix) + form.scales(matrix) == memory.weight_bytes(model)


def test_configurations_are_read_without_torchao() -> None:
    read = methods.spec("torchao-int8").told
    assert read is not None
    groups = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}}
    bits = {"_type": "torch.dtype", "_data": "int2"}
    tiled = {"_type": "Int4PackingFormat", "_data": "TILE_PACKED_TO_4D"}
    assert read(config_of("Int8WeightOnlyConfig")) == {"method": "torchao-int8", "group_size": -1}
    assert read(config_of("Float8WeightOnlyConfig", granularity={"_type": "PerTensor", "_data": {}})) == {
        "method": "torchao-fp8",
        "group_size": "tensor",
    }
    assert read({**config_of("IntxWeightOnlyConfig", weight_dtype=bits, granularity=groups), "dtype": "float16"}) == {
        "method": "torchao-intx",
        "compute_dtype": "float16",
        "bits": 2,
        "group_size": 32,
    }
    assert read(config_of("Int4WeightOnlyConfig", group_size=64, int4_packing_format=tiled)) == {
        "method": "torchao-int4",
        "group_size": 64,
        "packing": "tile_packed_to_4d",
        "hqq": False,
    }
    assert read(config_of("FqnToConfig"))["method"] == "torchao's 'FqnToConfig'"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_type": "int4_weight_only"}, "quant_type is not one configuration of torchao"),
        ({"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "quant_type is not one configuration"),
        ({"quant_type": {"default": {}, "other": {}}}, "quant_type is not one configuration"),
    ],
    ids=["text", "no data", "two"],
)
def test_other_configurations_are_refused_in_words(config: dict[str, Any], words: str) -> None:
    read = methods.spec("torchao-int8").told
    assert read is not None
    with pytest.raises(ValueError, match=words):
        read(config)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (
            "torchao-int8",
            {**config_of("Int8WeightOnlyConfig"), "modules_to_not_convert": []},
            "an empty modules_to_not_convert is not known",
        ),
        ("torchao-int8", config_of("Float8WeightOnlyConfig"), "that is torchao-fp8 is not known to the estimate of"),
        ("torchao-intx", config_of("IntxWeightOnlyConfig", scale_dtype="float32"), "with scale_dtype is not known"),
        (
            "torchao-int8",
            {**config_of("Int8WeightOnlyConfig"), "include_input_output_embeddings": True},
            "with include_input_output_embeddings is not known",
        ),
        (
            "torchao-int8",
            {**config_of("Int8WeightOnlyConfig"), "modules_to_not_convert": ["model.layers.0"]},
            "modules_to_not_convert",
        ),
        (
            "torchao-int8",
            config_of("Int8WeightOnlyConfig", granularity={"_type": "PerGroup", "_data": {"group_size": "x"}}),
            "in groups of 'x' is not known",
        ),
    ],
)
def test_a_checkpoint_of_another_format_is_not_guessed_at(
    tmp_path: Path, kind: str, config: dict[str, Any], words: str
) -> None:
    told = checkpoint.config(BUILTIN_DIR)
    (tmp_path / "config.json").write_text(json.dumps({**told, "quantization_config": config}))
    with pytest.raises(ValueError, match=words):
        estimate(subject(kind, checkpoint=str(tmp_path)), WORKLOAD)


def test_the_packing_of_gpus_is_said_or_counted() -> None:
    auto = estimate(subject("torchao-int4"), WORKLOAD)
    assert auto.notes == ("on a GPU it takes more: the layers' inputs are padded to multiples of 1,024 there",)
    tiled = estimate(subject("torchao-int4", options={"packing": "tile_packed_to_4d"}), WORKLOAD)
    assert tiled.notes == ()
    # Each of the inputs, 128 or 256, is padded to 1,024; outputs are multiples of 8. Groups of 128, 4 bytes each.
    assert tiled.weights - auto.weights == sum(
        size * (1024 - inputs) // 2 + 4 * size * (1024 - inputs) // 128
        for size, inputs in ((3 * (4 * 128 + 2 * 256), 128), (3 * 128, 256))
    )
    whole = estimate(subject("torchao-int4", model="Qwen/Qwen3-8B"), WORKLOAD)
    assert whole.notes == ()


def test_without_torchao_the_methods_are_skipped_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else there("json"))
    for kind in ("torchao-int8", "torchao-int4", "torchao-intx", "torchao-fp8"):
        words = f"{kind} needs torchao: pip install 'pytest-quantbudget[torchao]'"
        assert engines.missing(subject(kind)) == words
    assert engines.missing(subject("fp32")) is None
