"""Mixtures of experts and models that read images: what is counted as quantized, what is loaded, and what answers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models

from pytest_quantbudget.core.layers import EXPERTS, LINEAR
from pytest_quantbudget.core.request import DUMMY, REAL, Subject, Workload
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import memory

pytestmark = pytest.mark.model

WORKLOAD = Workload(8, 4, 2, 1)
V, H, M, E, L = 640, 64, 128, 4, 2  # vocabulary, hidden and inner size, experts, layers


def subject(model: Path, method: str, load_format: str = REAL, **more: Any) -> Subject:
    """A model in a method with its default options."""
    options = {field.name: field.default for field in methods.spec(method).options}
    return Subject(str(model), None, method, None, options, None, load_format=load_format, **more)


# Mixtures of experts

# By hand: (in linear layers, in experts, all).
HEADS = {"mixtral": (4 * 16, 2 * 16), "qwen3_moe": (4 * 32, 2 * 32)}  # what queries and keys are wide
INNER = {"mixtral": M, "qwen3_moe": 32}


def by_hand(kind: str) -> tuple[int, int, int]:
    """Parameters in linear layers of the blocks, in experts, and in all."""
    query, key = HEADS[kind]
    linear = L * (2 * H * query + 2 * H * key)
    experts = L * E * 3 * H * INNER[kind]
    norms = (2 * L + 1) * H + (2 * 32 * L if kind == "qwen3_moe" else 0)
    return linear, experts, linear + experts + norms + L * E * H + 2 * V * H


@pytest.mark.parametrize("load_format", [REAL, DUMMY])
@pytest.mark.parametrize(("method", "bits"), [("int8", 16), ("nf4", 16)])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_that_are_left_alone_are_counted_so(
    kind: str, method: str, bits: int, load_format: str, tmp_path: Path
) -> None:
    from pytest_quantbudget.engine.hf import engine

    tiny_models.save(tmp_path, kind)
    asked = subject(tmp_path, method, load_format)
    loaded = engine.load(asked)
    told = loaded.describe()
    linear, experts, every = by_hand(kind)
    assert told.receipt.parameters == every
    assert told.receipt.quantized == linear
    assert told.receipt.fraction == linear / every
    kinds = {layers.kind: (layers.parameters, layers.bits, layers.count) for layers in told.receipt.layers}
    assert kinds[EXPERTS] == (experts, bits, 2 * L)
    assert kinds[LINEAR][0] == linear
    assert f"experts {experts:,} in {bits} bits" in told.receipt.kept
    (note,) = told.notes
    share = f"{experts:,} of {every:,} parameters ({100 * experts / every:.1f} %)"
    assert note.startswith(f"the experts, {share}, stay in {bits} bits")
    assert told.weights == memory.estimate(asked, WORKLOAD).weights
    assert loaded.time(WORKLOAD).median_tokens_per_s > 0


def test_nothing_is_said_of_experts_in_a_method_that_quantizes_nothing(tmp_path: Path) -> None:
    from pytest_quantbudget.engine.hf import load

    found = load.load(subject(tiny_models.save(tmp_path, "mixtral"), "bf16"), None).description
    assert found.notes == ()
    assert found.receipt.unpacked_experts  # it is the method that decides whether that is worth a word


# What gptqmodel packs otherwise than transformers


@pytest.mark.parametrize(
    ("kind", "part"),
    [("mixtral", "experts"), ("phi3", "gate_up_proj"), ("falcon", "FalconLinear"), ("gpt2", "Conv1D"), ("opt", "")],
)
def test_there_are_no_dummy_weights_of_what_gptqmodel_packs_otherwise(kind: str, part: str, tmp_path: Path) -> None:
    from pytest_quantbudget.models import dummy
    from pytest_quantbudget.models.methods import _gptqmodel

    tiny_models.config_of(kind).save_pretrained(tmp_path)
    found = dummy.find(subject(tmp_path, "gptq-int4", DUMMY))
    if not part:
        _gptqmodel._check_dummy(found)
        return
    with pytest.raises(ValueError, match=f"there are no dummy weights of it in this method: gptqmodel packs .*{part}"):
        _gptqmodel._check_dummy(found)


@pytest.mark.parametrize(
    ("kind", "layer", "own"),
    [
        ("llama", "model.layers.0.mlp.up_proj", False),
        ("llama", "model.language_model.layers.0.mlp.up_proj", False),  # transformers renames what stands before
        ("mixtral", "model.layers.0.self_attn.q_proj", False),
        ("mixtral", "model.layers.0.mlp.experts.0.up_proj", True),
        ("phi3", "model.layers.0.mlp.up_proj", True),
        ("falcon", "transformer.h.0.self_attention.dense", True),
    ],
)
def test_a_checkpoint_is_loaded_by_the_library_that_reads_its_layers(
    kind: str, layer: str, own: bool, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    from pytest_quantbudget.models.methods import _gptqmodel

    tiny_models.config_of(kind, quantization_config={"quant_method": "gptq", "bits": 4}).save_pretrained(tmp_path)
    save_file({f"{layer}.qweight": torch.zeros(1, 1, dtype=torch.int32)}, tmp_path / "model.safetensors")
    assert _gptqmodel.only_its_own(tmp_path) is own


# Models that read images


@pytest.mark.parametrize("load_format", [REAL, DUMMY])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_model_that_reads_images_is_measured_by_its_language_part(
    kind: str, load_format: str, tmp_path: Path
) -> None:
    from pytest_quantbudget.engine.hf import engine, roofline
    from pytest_quantbudget.engine.hf import memory as counted

    folder = tiny_models.save_vision(tmp_path, kind)
    for method in ("fp32", "nf4"):
        loaded = engine.load(subject(folder, method, load_format))
        told = loaded.describe()
        (note,) = told.notes
        assert note.startswith("its weights include parts that no text passes through: ")
        outside = sum(tensor.numel() for name, tensor in loaded.model.named_parameters() if _reads_images(name))
        assert outside > 0
        if method == "fp32":  # in others the first pass moves scales out of sight
            assert told.weights == counted.weight_bytes(loaded.model)  # all that is loaded
            sizes = sum(t.nbytes for name, t in loaded.model.named_parameters() if _reads_images(name))
            sizes += sum(t.nbytes for name, t in loaded.model.named_buffers() if _reads_images(name))
            table = loaded.model.get_input_embeddings().weight.nbytes
            tied = kind == "gemma3"
            expected = told.weights - sizes - (0 if tied else table)
            assert roofline.step_weights(loaded.model, told.weights) == expected
        assert told.positions == 256
        assert loaded.time(WORKLOAD).median_tokens_per_s > 0


def _reads_images(name: str) -> bool:
    return any(part in name for part in ("visual", "vision", "multi_modal"))
