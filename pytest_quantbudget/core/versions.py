"""Versions of installed libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable

# What figures may depend on whatever the method.
COMMON = (
    "pytest-quantbudget", "datasets", "lm-eval", "tokenizers", "safetensors", "numpy", "pytest", "pytest-xdist",
    "pyyaml",
)  # fmt: skip


# Modules whose distributions have other names.
DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}
# Modules that are compiled while they are installed: for which GPU and instructions, their versions do not tell.
COMPILED = ("llama_cpp",)


def distribution(module: str) -> str:
    """The name under which a module's distribution is installed."""
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def is_there(module: str) -> bool:
    """Whether a module, by its top name, can be imported. Imports nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


LIBRARY = re.compile(r"\.(so|dylib|dll|pyd)\b")


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


def builds() -> dict[str, str]:
    """A hash over the compiled files of each module that is compiled while it is installed, by its record of files."""
    found = {}
    for name in COMPILED:
        try:
            files = importlib.metadata.files(DISTRIBUTIONS.get(name, name)) or ()
        except (importlib.metadata.PackageNotFoundError, KeyError, OSError, ValueError):
            continue
        lines = sorted(f"{file} {file.hash.value}" for file in files if file.hash and LIBRARY.search(file.name))
        found[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return found
