"""Greedy is greedy: of a model's own generation config nothing counts but where answers end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.hf import engine, generation, speed

# Values that would change answers, break `generate`, or end it.
ODD: dict[str, Any] = {
    "no_repeat_ngram_size": 2, "min_new_tokens": 60, "min_length": 99, "suppress_tokens": [10, 11, 12, 13, 14],
    "begin_suppress_tokens": [10, 11], "max_time": 0.0001, "stop_strings": ["."], "num_return_sequences": 3,
    "return_dict_in_generate": True, "prompt_lookup_num_tokens": 5, "pad_token_id": -1, "repetition_penalty": 5.0,
    "remove_invalid_values": True, "exponential_decay_length_penalty": [1, 9.0], "bad_words_ids": [[10], [11]],
    "forced_eos_token_id": 3, "forced_bos_token_id": 3, "do_sample": True, "temperature": 5.0, "num_beams": 3,
    "guidance_scale": 3.0, "max_new_tokens": 1, "max_length": 3, "use_cache": False, "sequence_bias": [[[10], -99.0]],
}  # fmt: skip


def subject(folder: Path) -> Subject:
    return Subject(str(folder), None, "fp32", None, {}, None)


def continued(loaded: engine.Transformers) -> list[int]:
    import torch

    ids = torch.tensor([loaded.tokenizer("Question: Adam has 3 boats and buys 4.")["input_ids"]])
    config = generation.greedy(loaded.model, 24)
    out = loaded.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    found: list[int] = out[0].tolist()
    return found


@pytest.fixture(scope="module")
def plain() -> engine.Transformers:
    return engine.load(subject(BUILTIN_DIR))


def odd(folder: Path, **values: Any) -> Path:
    shutil.copytree(BUILTIN_DIR, folder)
    own = json.loads((BUILTIN_DIR / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **values}))
    return folder


@pytest.mark.parametrize("name", ODD)
def test_no_key_of_a_models_own_config_counts(plain: engine.Transformers, tmp_path: Path, name: str) -> None:
    loaded = engine.load(subject(odd(tmp_path / "m", **{name: ODD[name]})))
    assert continued(loaded) == continued(plain)
    assert len(loaded.time(Workload(8, 4, 1, 1)).decode_s) == 1


def test_whatever_fields_there_are_none_is_taken_over(plain: engine.Transformers) -> None:
    """Also those that transformers may add: every field but the end and the padding is as in a fresh config."""
    from transformers import GenerationConfig

    before = plain.model.generation_config
    try:
        crowded = GenerationConfig(eos_token_id=[5, 7], pad_token_id=10**6)
        for name in [name for name in vars(crowded) if name not in ("eos_token_id", "pad_token_id")]:
            setattr(crowded, name, "odd")
        plain.model.generation_config = crowded
        generation.settle(plain.model)
        assert vars(plain.model.generation_config) == vars(GenerationConfig(eos_token_id=[5, 7], pad_token_id=5))
    finally:
        plain.model.generation_config = before


def test_yarn_stretches_the_positions(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = json.loads((BUILTIN_DIR / "config.json").read_text()) | {"max_position_embeddings": 128}
    rotary = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

    def positions(**more: Any) -> int | None:
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        model = type("Model", (), {"config": AutoConfig.from_pretrained(tmp_path)})
        return speed.positions(model)

    assert positions() == 128
    assert positions(rope_parameters=rotary) == 512
    assert positions(rope_scaling={"rope_type": "yarn", "factor": 2.0}) == 256
    assert positions(rope_parameters={**rotary, "rope_type": "linear"}) == 128
    assert positions(rope_parameters=rotary, max_position_embeddings=4096) == 4096
