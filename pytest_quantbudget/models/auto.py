"""What transformers makes of a model's configuration: the class that loads it, and its layers without their values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import files
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import checkpoint

CAUSAL = "AutoModelForCausalLM"


def model_class(config: Mapping[str, Any], trust: Trust = NO_TRUST) -> Any:
    """The class of language models; where that does not know a model, the one of models that read images and text.

    The latter answers a text like any language model, by its language part, and holds the others too. `config` is a
    parsed `config.json`; where none of them knows it, the class of language models says so in its own words.
    """
    import transformers

    kind, code = str(config.get("model_type")), config.get("auto_map")
    of_code = trust.remote_code and isinstance(code, dict) and CAUSAL in code
    if kind in transformers.CONFIG_MAPPING and not of_code:
        known = transformers.CONFIG_MAPPING[kind]
        if known not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and (
            known in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        ):
            return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def skeleton(folder: Path, trust: Trust = NO_TRUST) -> Any:
    """The unquantized model of a directory, without memory; made once, because that takes a while for large ones."""
    return _skeleton(folder, trust, files.read(folder / "config.json", checkpoint.MAX_JSON))


@functools.lru_cache(maxsize=1)
def _skeleton(folder: Path, trust: Trust, told: bytes) -> Any:
    """As `skeleton`; what the configuration has `told` is another one once it has been written anew."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote_code)
    config.quantization_config = None
    with torch.device("meta"):
        known = model_class(checkpoint.config(folder), trust)
        return known.from_config(config, trust_remote_code=trust.remote_code)
