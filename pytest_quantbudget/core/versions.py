"""Versions of installed libraries."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

# What figures may depend on whatever the method.
COMMON = (
    "pytest-quantbudget", "datasets", "lm-eval", "tokenizers", "safetensors", "numpy", "pytest", "pytest-xdist",
    "pyyaml",
)  # fmt: skip


# Modules whose distributions have other names.
DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    versions = {}
    for name in names:
        try:
            # Half removed, a distribution is there without a version.
            versions[name] = importlib.metadata.version(DISTRIBUTIONS.get(name, name)) or "unknown"
        except (importlib.metadata.PackageNotFoundError, KeyError):
            continue
    return versions
