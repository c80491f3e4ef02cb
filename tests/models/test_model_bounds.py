"""Models whose architecture the estimate does not know: a marked lower bound from their files, and never too much."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.models import checkpoint, methods
from pytest_quantbudget.models.estimate import fit, lower_bound, memory

WORKLOAD = Workload(16, 8, 1, 1)
VOCABULARY, HIDDEN = 640, 64


def subject(model: Path, method: str, **more: Any) -> Subject:
    """A model in a method with its default options."""
    options = {field.name: field.default for field in methods.spec(method).options}
    return Subject(str(model), None, method, more.pop("checkpoint", None), options, None, **more)


def written(folder: Path, tensors: dict[str, list[int]], stored: str = "BF16", **config: Any) -> Path:
    """A model of an unknown architecture, whose file holds tensors of these shapes; only its header is ever read."""
    folder.mkdir(exist_ok=True)
    told = {"model_type": "odd", "vocab_size": VOCABULARY, "num_hidden_layers": 2, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(told | config))
    header, end, width = {}, 0, lower_bound.FLOATS[stored]
    for name, shape in tensors.items():
        span = [end, end + math.prod(shape) * width]
        header[name], end = {"dtype": stored, "shape": shape, "data_offsets": span}, span[1]
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


TENSORS = {
    "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
    "model.layers.0.mlp.up.weight": [96, HIDDEN],
    "model.layers.1.mlp.up.weight": [96, HIDDEN],
    "model.norm.weight": [HIDDEN],
    "lm_head.weight": [VOCABULARY, HIDDEN],
}
TABLE, MATRICES = VOCABULARY * HIDDEN, 2 * 96 * HIDDEN


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("fp32", 4 * (TABLE + MATRICES + HIDDEN)),
        ("bf16", 2 * (TABLE + MATRICES + HIDDEN)),
        ("int8", 2 * (TABLE + HIDDEN) + MATRICES),
        ("nf4", 2 * (TABLE + HIDDEN) + MATRICES // 2),
        ("gptq-int4", 2 * (TABLE + HIDDEN) + MATRICES // 2),
    ],
)
def test_tensors_in_headers_are_counted_in_the_methods_bits(tmp_path: Path, method: str, expected: int) -> None:
    """Tables that may be one and the same count once."""
    found = memory.estimate(subject(written(tmp_path / "m", TENSORS), method), WORKLOAD)
    assert (found.weights, found.at_least, found.kv_cache, found.activations) == (expected, True, None, None)
    assert found.peak == found.process == expected  # nothing is certain besides
    assert found.parameters == TABLE + MATRICES + HIDDEN


def test_what_is_certain_is_counted_and_nothing_else(tmp_path: Path) -> None:
    def bound(more: dict[str, list[int]], **config: Any) -> int:
        return memory.estimate(subject(written(tmp_path / "m", TENSORS | more, **config), "bf16"), WORKLOAD).weights

    least = bound({})
    assert bound({}, tie_word_embeddings=False) == least + 2 * TABLE
    assert bound({}, text_config={"tie_word_embeddings": False}) == least + 2 * TABLE
    # Layers that predict more tokens than one: transformers does not load them.
    assert bound({"model.layers.2.mlp.up.weight": [96, HIDDEN], "mtp.fc.weight": [96, HIDDEN]}) == least
    assert bound({"vision_tower.layers.2.up.weight": [96, HIDDEN]}) == least + 2 * 96 * HIDDEN
    # A matrix of a block may have as many rows as the vocabulary has tokens.
    rows = {
        "model.layers.0.mlp.wide.weight": [VOCABULARY, HIDDEN],
        "model.layers.1.mlp.wide.weight": [VOCABULARY, HIDDEN],
    }
    assert bound(rows) == least + 4 * TABLE


@pytest.mark.parametrize(
    ("index", "config", "values"),
    [
        ({"metadata": {"total_size": 4000}, "weight_map": {}}, {}, 2000),
        ({"metadata": {"total_size": 4000}, "weight_map": {}}, {"dtype": None, "torch_dtype": "float32"}, 1000),
        ({"metadata": {"total_size": 4000}, "weight_map": {}}, {"dtype": None}, 1000),  # at most four bytes each
        ({"metadata": {"total_size": 4000}, "weight_map": {"model.layers.2.up.weight": "x"}}, {}, None),
        ({"metadata": {}, "weight_map": {}}, {}, None),
        ({"metadata": {"total_size": "many"}, "weight_map": {}}, {}, None),
        ({"metadata": {"total_size": 4000}, "weight_map": []}, {}, None),
        ({"weight_map": {}}, {}, None),
    ],
)
def test_an_index_without_its_files_tells_their_size(
    tmp_path: Path, index: dict[str, Any], config: dict[str, Any], values: int | None
) -> None:
    written(tmp_path / "m", {}, **config)
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    if values is None:
        with pytest.raises(ValueError, match=r"'odd' is not known to the estimate.*; nor are weights on this machine"):
            memory.estimate(subject(tmp_path / "m", "fp16"), WORKLOAD)
        return
    assert memory.estimate(subject(tmp_path / "m", "fp16"), WORKLOAD).weights == 2 * values
    assert memory.estimate(subject(tmp_path / "m", "nf4"), WORKLOAD).weights == values // 2
    assert memory.estimate(subject(tmp_path / "m", "nf4"), WORKLOAD).parameters == values


@pytest.mark.model
@pytest.mark.parametrize("kind", ["granite", "starcoder2", "olmoe", "bloom"])
def test_it_is_at_most_what_the_loaded_model_takes(kind: str, tmp_path: Path) -> None:
    from pytest_quantbudget.engine.hf.memory import weight_bytes

    more = {"n_layer": 2, "n_head": 4} if kind == "bloom" else {"num_experts": 4} if kind == "olmoe" else {}
    tiny_models.save(tmp_path, kind, **more)
    for method in ("fp32", "bf16", "int8", "nf4"):
        asked = subject(tmp_path, method)
        predicted = memory.estimate(asked, WORKLOAD)
        held = weight_bytes(methods.spec(method).load(tmp_path, asked.options, "cpu"))
        assert predicted.at_least
        assert predicted.weights <= held
        if methods.spec(method).bits >= 16:
            assert predicted.weights >= 0.99 * held  # all but buffers


def test_a_packed_checkpoint_of_any_model_has_one(tmp_path: Path) -> None:
    folder = written(tmp_path / "packed", {"model.norm.weight": [HIDDEN], "model.layers.0.up.scales": [4, 96]}, "F32")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    found = memory.estimate(subject(BUILTIN_DIR, "gptq-int4", checkpoint=str(folder)), WORKLOAD)
    assert not found.at_least  # the model's architecture is known, and so is the format
    odd = written(tmp_path / "odd", TENSORS)
    found = memory.estimate(subject(odd, "gptq-int4", checkpoint=str(folder)), WORKLOAD)
    assert found.at_least
    assert found.weights == 2 * (HIDDEN + 4 * 96)  # in float16 once it is loaded
    assert found.parameters == 0  # packed tensors do not tell
    assert checkpoint.tensors(folder)


def test_limits_are_skipped_only_where_the_bound_itself_does_not_fit(tmp_path: Path) -> None:
    asked = subject(written(tmp_path / "m", TENSORS), "bf16")
    need = memory.estimate(asked, WORKLOAD).weights
    tight, less = (Gpu(0, "Tight", "GPU-1", size, size, "8.0", "580.1") for size in (need, need - 1))
    assert fit.too_large(asked, WORKLOAD, [tight], runs=True) is None
    assert "its weights take at least" in str(fit.too_large(asked, WORKLOAD, [less], runs=False))
    assert "the workload's peak is at least" in str(fit.too_large(asked, WORKLOAD, [less], runs=True))
    assert fit.too_large(replace(asked, model=str(tmp_path / "none")), WORKLOAD, [less], runs=True) is None


def test_it_is_marked_in_the_estimate(pytester: pytest.Pytester) -> None:
    written(pytester.path / "odd", TENSORS)
    (pytester.path / "b.yaml").write_text("model: odd\nmethods: {fp16: {}, nf4: {}}\n")
    result = pytester.runpytest("b.yaml", "--quant-estimate")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "odd: at least 53,312 parameters; 512 prompt tokens, *",
            "method * weights  KV cache  activations * peak * process",
            "fp16 * at least 104 KiB         -            - * at least 104 KiB * at least 104 KiB",
            "nf4 * at least 86.1 KiB *",
            "fp16: at least, by the tensors in its files: the architecture 'odd' is not known to the estimate",
            "fits Tesla T4 (15.0 GiB): not ruled out: fp16, nf4",
        ]
    )
