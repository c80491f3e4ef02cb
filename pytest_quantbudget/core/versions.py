"""Versions of the libraries that a figure may depend on."""

from __future__ import annotations

import importlib.metadata

LIBRARIES = (
    "pytest-quantbudget", "torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "datasets",
    "lm-eval", "tokenizers", "safetensors", "numpy", "pytest", "pytest-xdist", "pyyaml",
)  # fmt: skip


def libraries() -> dict[str, str]:
    """Installed versions of everything that a figure may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
