"""Ready checkpoints of many formats, each loaded for real by transformers: what they are, and how they are held."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ct_models import KEPT, made, says

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import DUMMY, Subject, Workload
from pytest_quantbudget.engine.base import Lacking
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf import logits, memory
from pytest_quantbudget.engine.hf.load import Loaded
from pytest_quantbudget.measure import bench
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate.memory import estimate

pytestmark = pytest.mark.model
PARAMETERS = 574_528
IN_LINEAR = 3 * (4 * 128 * 128 + 3 * 128 * 256)
OUTPUTS = 3 * (4 * 128 + 2 * 256 + 128)
ROTARY = 2 * 16 * 4
WORKLOAD = Workload(16, 8, 2, 2)
SCHEMES = {
    "W4A16": ("compressed-tensors W4A16 g128", 4, IN_LINEAR // 128),
    "W8A8": ("compressed-tensors W8A8", 8, OUTPUTS),
    "FP8_DYNAMIC": ("compressed-tensors FP8 dynamic", 8, OUTPUTS),
    "NVFP4A16": ("compressed-tensors NVFP4A16", 4, IN_LINEAR // 16),
}


def subject(folder: Path, kind: str = "checkpoint", **more: Any) -> Subject:
    return Subject(str(BUILTIN_DIR), None, "mine", str(folder), {}, None, kind=kind, **more)


def load(folder: Path, kind: str = "checkpoint") -> Loaded:
    return loading.load(subject(folder, kind), None)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the built-in model."""
    folder = tmp_path / "model"
    shutil.copytree(BUILTIN_DIR, folder)
    return folder


def answered(model: Any) -> Any:
    """Log-probabilities of every token at each place of a question."""
    import torch

    ids = torch.randint(0, 640, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids).logits.float().log_softmax(-1)


def kl(ours: Any, theirs: Any) -> float:
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


# compressed-tensors


@pytest.fixture(scope="module", params=SCHEMES)
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Loaded]:
    """A checkpoint in one of the library's schemes, loaded."""
    pytest.importorskip("compressed_tensors")
    folder = made(tmp_path_factory.mktemp("made") / request.param, request.param)
    return request.param, folder, load(folder)


def test_compressed_tensors_are_what_they_say_and_are_decompressed(compressed: tuple[str, Path, Loaded]) -> None:
    scheme, folder, found = compressed
    label, bits, _ = SCHEMES[scheme]
    told = found.description
    assert told.packing == Packing("compressed-tensors", label, bits, (KEPT,))
    assert told.decompressed == (
        "transformers decompresses compressed-tensors at the first forward, so that memory and speed here are not the "
        "checkpoint's; `engine: vllm` runs it packed"
    )
    assert told.notes[-1] == told.decompressed
    assert (told.receipt.parameters, told.receipt.quantized) == (PARAMETERS, 0)
    assert told.disk == (folder / "model.safetensors").stat().st_size


def test_what_is_counted_is_what_runs(compressed: tuple[str, Path, Loaded]) -> None:
    scheme, _, found = compressed
    weights = found.description.weights
    assert weights is not None
    logits.check(found.model)
    assert memory.weight_bytes(found.model) == weights
    # Beside the dense weights lie the scales, and of some schemes shapes, zero points and scales of scales.
    dense = 2 * PARAMETERS + ROTARY
    assert dense + SCHEMES[scheme][2] <= weights <= dense + 8 * SCHEMES[scheme][2] + 21 * 64


def test_the_answers_are_nearly_those_of_the_source(compressed: tuple[str, Path, Loaded]) -> None:
    scheme, _, found = compressed
    dense = loading.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None)
    lost = kl(answered(dense.model), answered(found.model))
    assert 1e-7 < lost < {4: 0.1, 8: 0.02}[SCHEMES[scheme][1]]


def test_activations_are_rounded_as_the_checkpoint_says(compressed: tuple[str, Path, Loaded]) -> None:
    scheme, _, found = compressed
    rounded = answered(found.model)
    layers = [module for module in found.model.modules() if hasattr(module, "quantization_scheme")]
    assert len(layers) == 21
    for layer in layers:
        layer.quantization_enabled = False
    exact = answered(found.model)
    for layer in layers:
        del layer.quantization_enabled
    assert bool((rounded != exact).any()) == (scheme in ("W8A8", "FP8_DYNAMIC"))


def test_what_is_decompressed_takes_at_least_what_its_files_do(compressed: tuple[str, Path, Loaded]) -> None:
    _, folder, found = compressed
    bound = estimate(subject(folder), WORKLOAD)
    assert bound.at_least
    assert found.description.weights is not None
    assert found.description.disk is not None
    assert 0.5 * found.description.disk < bound.weights < found.description.weights


def test_there_has_to_be_room_for_what_is_decompressed(
    compressed: tuple[str, Path, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, found = compressed
    spec = methods.resolved(subject(folder))
    disk, held = found.description.disk, found.description.weights
    assert disk is not None
    assert held is not None
    monkeypatch.setattr(memory, "free_ram", lambda: (disk + held) // 2)
    with pytest.raises(Lacking, match="too little free memory: the weights take 1"):
        loading.check_room(spec, folder, "cpu")
    monkeypatch.setattr(memory, "free_ram", lambda: held + 50_000)
    loading.check_room(spec, folder, "cpu")


def test_a_checkpoint_that_lies_is_refused(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    config = json.loads((made(tmp_path / "made", "W4A16") / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model lacks \d+ of the model's \d+ tensors \(model\.layers\.0\."):
        load(copy)


# Other formats


def test_weights_in_8_bits_that_lie_in_16_here_are_seen(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "fp8"
    shutil.copytree(BUILTIN_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    for name, weight in load_file(BUILTIN_DIR / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().view(rows // 128, 128, columns // 128, 128).transpose(1, 2)
        scale = blocks.abs().amax((-1, -2)) / 448
        packed = (blocks / scale[..., None, None]).to(torch.float8_e4m3fn)
        tensors[name] = packed.transpose(1, 2).reshape(rows, columns).contiguous()
        tensors[name.replace("weight", "weight_scale_inv")] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    says(folder, {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": [KEPT]})
    found = load(folder)
    told = found.description
    assert told.packing == Packing("fp8", "fp8 block 128x128", 8, (KEPT,))
    assert told.decompressed is not None
    assert told.decompressed.startswith(
        "transformers runs fp8 block 128x128 packed on a GPU of compute capability 8.9 or above; elsewhere "
        "transformers decompresses it while it loads, so that memory and speed here are not the checkpoint's"
    )
    assert (told.receipt.parameters, told.receipt.quantized) == (PARAMETERS, 0)
    assert told.weights == 2 * PARAMETERS + ROTARY
    dense = loading.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None)
    assert 1e-7 < kl(answered(dense.model), answered(found.model)) < 0.01


def test_experts_in_mxfp4_that_lie_in_16_bits_here_are_seen(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GptOssConfig

    full = ["full_attention"]
    sizes: dict[str, Any] = {
        "vocab_size": 640,
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 16,
        "num_hidden_layers": 1,
    }
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "layer_types": full,
    }
    config = GptOssConfig(**sizes, **heads, dtype="bfloat16", architectures=["GptOssForCausalLM"])
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = {}
    for name, tensor in dense.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            count, inputs, outputs = tensor.shape
            # Two values a byte, and an exponent for 32 of them.
            tensors[f"{name}_blocks"] = torch.full((count, outputs, inputs // 32, 16), 0x2A, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.full((count, outputs, inputs // 32), 120, dtype=torch.uint8)
        else:
            tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    says(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": [KEPT]})
    found = load(tmp_path)
    told = found.description
    assert told.packing == Packing("mxfp4", "mxfp4", 4, (KEPT,))
    assert (told.decompressed or "").startswith("transformers runs mxfp4 packed on a GPU, with Triton and the package")
    parameters = sum(tensor.numel() for tensor in dense.parameters())
    assert (told.receipt.parameters, told.receipt.quantized) == (parameters, 0)
    held = found.model.state_dict()["model.layers.0.mlp.experts.down_proj"]
    # 0xA is -1 in FP4, and 0x2 is 1: the sign stands in front of 2 exponent bits and 1 of the fraction.
    assert set(held.float().flatten().tolist()) == {-(2.0**-7), 2.0**-7}


@pytest.mark.parametrize(
    ("options", "kind", "label", "bits"),
    [
        ({"load_in_8bit": True}, "int8", "bnb int8", 8),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", "bnb nf4", 4),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, None, "bnb fp4", 4),
    ],
    ids=["int8", "nf4", "fp4"],
)
def test_what_bitsandbytes_saved_is_held_packed(
    options: dict[str, Any], kind: str | None, label: str, bits: int, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**options)
    AutoModelForCausalLM.from_pretrained(
        BUILTIN_DIR, dtype="float16", device_map={"": "cpu"}, quantization_config=config
    ).save_pretrained(tmp_path / "saved")
    found = load(tmp_path / "saved").description
    assert found.packing is not None
    assert (found.packing.label, found.packing.bits, found.decompressed) == (label, bits, None)
    assert (found.receipt.main_bits, found.receipt.quantized) == (bits, IN_LINEAR)
    assert found.notes == ()
    if kind is not None:
        own = load(tmp_path / "saved", kind).description
        assert (found.receipt, found.weights, found.made_with) == (own.receipt, own.weights, own.made_with)
        assert estimate(subject(tmp_path / "saved"), WORKLOAD).weights == found.weights


def test_what_torchao_saved_is_held_packed(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    model = AutoModelForCausalLM.from_pretrained(
        BUILTIN_DIR, dtype="float32", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    model.save_pretrained(tmp_path / "saved")
    found = load(tmp_path / "saved")
    told = found.description
    assert told.packing is not None
    assert (told.packing.label, told.packing.bits, told.decompressed) == ("torchao int8wo", 8, None)
    assert (told.receipt.parameters, told.receipt.quantized) == (PARAMETERS, IN_LINEAR)
    assert told.weights == memory.weight_bytes(model)
    assert kl(answered(model), answered(found.model)) == 0


def test_weights_that_are_not_packed_are_loaded_in_their_own_type(copy: Path) -> None:
    found = load(copy).description
    dtype = json.loads((copy / "config.json").read_text())["dtype"]
    assert found.packing == Packing("dense", f"dense {dtype}", 16)
    assert found.decompressed is None
    assert found.weights == 2 * PARAMETERS + ROTARY == estimate(subject(copy), WORKLOAD).weights


# Refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "super"}, "the quantization_config of model says it is 'super': transformers 5"),
        ({"bits": 4}, "the quantization_config of model does not say what it is (quant_method): transformers 5"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8"},
            "the checkpoint in model is ModelOpt FP8: transformers does not know it, and would use packed numbers as "
            "weights; vllm runs it packed",
        ),
        (
            {"quant_method": "nvfp4"},
            "the checkpoint in model is nvfp4: transformers quantizes to it while it loads, and",
        ),
        ({"quant_method": "gguf"}, "the checkpoint in model is gguf: a GGUF file is for `engine: llama.cpp`, with `ki"),
        ([4], "model/config.json: quantization_config is not an object"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "quantize_", "_data": {"model": 1}}}},
            "model/config.json names 'quantize_', which a library would look up and call (quantiz",
        ),
    ],
)
def test_what_transformers_would_load_wrongly_is_not_loaded(
    config: Any, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    says(copy, config)
    with pytest.raises(ValueError, match="model") as error:
        load(copy)
    assert str(error.value)[: len(message)] == message


def test_what_runs_on_a_gpu_alone_is_skipped_without_one(copy: Path) -> None:
    says(copy, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}})
    with pytest.raises(Lacking, match="transformers runs hqq 4-bit g64 on a GPU alone"):
        load(copy)


def test_modelopts_own_file_is_not_overlooked(copy: Path) -> None:
    (copy / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}')
    with pytest.raises(ValueError, match="in model is ModelOpt NVFP4 g16: transformers does not know it"):
        load(copy)


def test_a_gguf_file_in_a_directory_is_for_llama_cpp(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model.gguf")
    with pytest.raises(ValueError, match=r"holds no safetensors weights; a GGUF file is for `engine: llama\.cpp`"):
        load(copy)


def test_only_a_format_that_a_kind_makes_has_dummy_weights(copy: Path) -> None:
    says(copy, {"quant_method": "compressed-tensors"})
    why = "mine has no dummy weights: no kind makes what its checkpoint says it is"
    assert bench._unfit(subject(copy, load_format=DUMMY)) == why
    says(copy, {"load_in_8bit": True})
    assert bench._unfit(subject(copy, load_format=DUMMY)) is None
