"""Mixtures of experts and models that read images: what is counted as quantized, what is loaded, and what answers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from pytest_quantbudget.core.files import BUILTIN_DIR
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
    assert note.startswith(f"{method}: the experts, {share}, stay in {bits} bits")
    assert told.weights == memory.estimate(asked, WORKLOAD).weights
    assert loaded.time(WORKLOAD).median_tokens_per_s > 0


def test_nothing_is_said_of_experts_in_a_method_that_quantizes_nothing(tmp_path: Path) -> None:
    from pytest_quantbudget.engine.hf import load

    found = load.load(subject(tiny_models.save(tmp_path, "mixtral"), "bf16"), None).description
    assert found.notes == ()
    assert found.receipt.unpacked_experts  # it is the method that decides whether that is worth a word


# Models that read images

VISION = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def vlm(folder: Path, kind: str) -> Path:
    """A random model of two small layers that reads images, with the built-in model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {**tiny_models.SMALL, "head_dim": 16}
    if kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
        vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": H}
        more: dict[str, Any] = {
            "text_config": {**text, "rope_parameters": rope}, "vision_config": vision, "vision_start_token_id": 630,
            "image_token_id": 631, "video_token_id": 632,
        }  # fmt: skip
    elif kind == "gemma3":
        vision = {**VISION, "image_size": 28, "patch_size": 14, "vision_use_head": False}
        more = {"text_config": {**text, "sliding_window": 64}, "vision_config": vision, "mm_tokens_per_image": 4}
        more |= {"image_token_index": 631, "boi_token_index": 632, "eoi_token_index": 633}
    else:
        tower = {**VISION, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"}
        more = {"text_config": {**text, "model_type": "llama"}, "vision_config": tower, "image_token_index": 631}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **more))
    model.save_pretrained(folder)
    for path in BUILTIN_DIR.glob("token*.json"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("load_format", [REAL, DUMMY])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_model_that_reads_images_is_measured_by_its_language_part(
    kind: str, load_format: str, tmp_path: Path
) -> None:
    from pytest_quantbudget.engine.hf import engine, roofline
    from pytest_quantbudget.engine.hf import memory as counted

    folder = vlm(tmp_path, kind)
    for method in ("fp32", "nf4"):
        loaded = engine.load(subject(folder, method, load_format))
        told = loaded.describe()
        (note,) = told.notes
        assert note.startswith(f"{method}: its weights include parts that no text passes through: ")
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
