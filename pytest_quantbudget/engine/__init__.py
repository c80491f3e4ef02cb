"""What runs a model. With the loaders of methods, the only code that imports torch.

`models/engines.py` says which module an engine has. It holds `load(subject, gpus, quantized, trust, pins, prepared)`,
which returns a `base.Engine`; where its methods are quantized here, `quantize(subject, trust, pin, cache, temporary)`,
which returns the path of the subject's own quantization; and where kernels are chosen before loading, `prepare(subject,
quantized, trust, pins)`, which returns what `load` gets as `prepared`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pytest_quantbudget.models import engines


def module(name: str) -> ModuleType:
    """An engine's module."""
    return importlib.import_module(engines.spec(name).module)
