"""Which of transformers' classes a model is loaded with, by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantbudget.core.request import NO_TRUST, Trust

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
