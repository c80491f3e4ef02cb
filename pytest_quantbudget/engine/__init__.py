"""What runs a model. With the loaders of methods, the only code that imports torch.

`ENGINES` maps an engine's name to its module, which is imported on first use. A module holds `load(subject, gpus,
quantized, trust, pins, prepared)`, which returns a `base.Engine`; `quantize(subject, trust, pin, cache, temporary)`,
which returns the directory of the subject's own quantization; and `prepare(subject, quantized, trust, pins)`, which
chooses and compiles kernels and returns what `load` gets as `prepared`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

TRANSFORMERS = "transformers"

ENGINES = {
    TRANSFORMERS: "pytest_quantbudget.engine.hf.engine",
}


def module(name: str = TRANSFORMERS) -> ModuleType:
    """An engine's module."""
    return importlib.import_module(ENGINES[name])
