"""What runs a model. With the loaders of methods, the only code that imports torch.

`ENGINES` maps an engine's name to its module, which is imported on first use. A module holds `load(subject, gpus,
quantized, trust, pins, prepared)`, which returns a `base.Engine`; where its methods are quantized here, `quantize(
subject, trust, pin, cache, temporary)`, which returns the path of the subject's own quantization; and where kernels are
chosen before loading, `prepare(subject, quantized, trust, pins)`, which returns what `load` gets as `prepared`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pytest_quantbudget.core.engines import LLAMA_CPP, OPENAI, TRANSFORMERS, VLLM

ENGINES = {
    TRANSFORMERS: "pytest_quantbudget.engine.hf.engine",
    LLAMA_CPP: "pytest_quantbudget.engine.llama_cpp.engine",
    VLLM: "pytest_quantbudget.engine.vllm.engine",
    OPENAI: "pytest_quantbudget.engine.openai.engine",
}


def module(name: str) -> ModuleType:
    """An engine's module."""
    return importlib.import_module(ENGINES[name])
