"""The estimate of every architecture against random models: parameters and buffers as loaded, to the byte."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import families, memory
from pytest_quantbudget.models.estimate.formats import Format

WORKLOAD = Workload(16, 8, 1, 1)
METHODS: Sequence[tuple[str, dict[str, Any]]] = [
    ("fp32", {}), ("bf16", {}), ("fp16", {}), ("int8", {}), ("nf4", {}), ("nf4", {"double_quant": False}),
    ("nf4", {"compute_dtype": "float16"}), ("torchao-int8", {"group_size": 32, "compute_dtype": "float16"}),
]  # fmt: skip
# bitsandbytes takes torch's own class of linear layers and `Conv1D`, torchao what derives from the former.
UNQUANTIZED = (("falcon", "int8"), ("falcon", "nf4"), ("gpt2", "torchao-int8"))


def subject(model: Path | str, method: str, **more: Any) -> Subject:
    """A model in a method with its default options."""
    options = {field.name: field.default for field in methods.spec(method).options} | more.pop("options", {})
    return Subject(str(model), None, method, more.pop("checkpoint", None), options, None, **more)


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A random model of each architecture that is known."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, tiny_models.save(folder, request.param)


def test_a_model_of_every_family_is_compared() -> None:
    assert tiny_models.KINDS.keys() == families.FAMILIES.keys()


@pytest.mark.model
@pytest.mark.parametrize(("method", "options"), METHODS, ids=[f"{m}-{'-'.join(o)}" for m, o in METHODS])
def test_weights_are_those_of_the_loaded_model(model: tuple[str, Path], method: str, options: dict[str, Any]) -> None:
    from pytest_quantbudget.engine.hf.memory import weight_bytes

    kind, folder = model
    spec, asked = methods.spec(method), subject(folder, method, options=options)
    loaded: Any = spec.load(folder, asked.options, "cpu")
    if (kind, method) in UNQUANTIZED:
        with pytest.raises(ValueError, match="no layer of this architecture is one that is stored in"):
            memory.estimate(asked, WORKLOAD)
        return
    predicted = memory.estimate(asked, WORKLOAD)
    assert predicted.weights == weight_bytes(loaded)
    assert not predicted.at_least
    if spec.bits >= 16:
        assert predicted.parameters == loaded.num_parameters()


# Entries that decide about parameters or buffers, in the families that have them.
VARIANTS: Sequence[tuple[str, dict[str, Any]]] = [
    ("gemma", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gemma2", {"head_dim": 256, "num_hidden_layers": 3}),
    ("gemma3_text", {"num_hidden_layers": 7, "sliding_window_pattern": 3}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 2}),
    ("phi3", {"partial_rotary_factor": 0.75, "num_key_value_heads": None, "tie_word_embeddings": True}),
    ("mixtral", {"head_dim": 48, "num_local_experts": 3, "sliding_window": 32}),
    ("qwen3_moe", {"num_hidden_layers": 6, "mlp_only_layers": [1], "decoder_sparse_step": 2, "attention_bias": True}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1]}),
    ("gpt_oss", {"attention_bias": False, "tie_word_embeddings": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    ("falcon", {"ffn_hidden_size": 80, "tie_word_embeddings": False}),
    ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}),
    ("gpt2", {"n_inner": 80, "tie_word_embeddings": False}),
]


@pytest.mark.model
@pytest.mark.parametrize(("kind", "more"), VARIANTS, ids=[f"{k}-{'-'.join(m)}" for k, m in VARIANTS])
def test_parameters_are_those_that_transformers_builds(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_models.config_of(kind, **more)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    shape = families.read(json.loads((tmp_path / "config.json").read_text()))
    assert sum(shape.parameters.values()) == built.num_parameters()
    buffers = sum(buffer.nbytes for buffer in built.buffers())
    assert sum(kind.bytes for kind in memory.weights(shape, Format(4))) == 4 * built.num_parameters() + buffers
