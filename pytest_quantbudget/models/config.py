"""Finds a model's `config.json` without a download: in its directory, in the hub's cache, or in `configs`.

A folder in `configs` is named as its model on the hub, with `--` for `/`; the files are as transformers 5 writes them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pytest_quantbudget.models import checkpoint, hub

SHIPPED = Path(__file__).resolve().parent / "configs"


def find_config(model: str, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a model: of its directory, from the hub's cache on this machine, or as it ships here.

    Raises ValueError as `find_folder`, and where what there is cannot be read.
    """
    return checkpoint.config(find_folder(model, revision))


def find_folder(model: str, revision: str | None = None) -> Path:
    """The folder with a model's configuration, and with what else of it is on this machine.

    `model` is a hub id or an absolute directory, as in a budget's `Subject`. Raises ValueError, naming all that was
    tried, where there is none.
    """
    if Path(model).is_absolute():
        return Path(model)
    cached, tried = _cached(model, revision)
    if cached is not None:
        return cached
    shipped = {folder.parent.name.replace("--", "/"): folder.parent for folder in SHIPPED.glob("*/config.json")}
    if model in shipped:
        return shipped[model]
    raise ValueError(
        f"no configuration of {model} is on this machine: {tried}, and this package carries {', '.join(shipped)}; "
        f"download its config.json, or name a directory that holds one"
    )


def _cached(model: str, revision: str | None) -> tuple[Path | None, str]:
    """The folder of the hub's cache with the model's configuration, or None; and where it was looked for, in words."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None, "huggingface_hub is not installed, so its cache was not looked into"
    from huggingface_hub import constants

    cache = f"the hub's cache {constants.HF_HUB_CACHE}"
    try:
        folder = hub.snapshot(model, revision)
        if (folder / "config.json").is_file():
            return folder, ""
    except FileNotFoundError:
        pass
    except OSError as error:
        return None, f"{cache} cannot be read ({error.strerror or error})"
    return None, f"{cache} has none" + (f" of revision {revision}" if revision else "")


def positions(config: Any) -> int | None:
    """The longest sequence that a model was trained with, in tokens, by transformers' configuration of it.

    None where that does not say.
    """
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int):
        return None
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return max(found, _stretched(rotary, found)) if isinstance(rotary, dict) else found


def _stretched(rotary: dict[str, Any], positions: int) -> int:
    """The positions that YaRN stretches a model to (Peng et al. 2023, arXiv 2309.00071); 0 for other embeddings."""
    original, factor = rotary.get("original_max_position_embeddings") or positions, rotary.get("factor")
    yarn = rotary.get("rope_type", rotary.get("type")) == "yarn"
    return int(original * factor) if yarn and isinstance(factor, int | float) and isinstance(original, int) else 0
