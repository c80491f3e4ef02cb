"""Reads the adapter of a method, and refuses what nothing runs or merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.paths import Paths
from pytest_quantbudget.core.engines import TRANSFORMERS, Adapter
from pytest_quantbudget.core.problems import Marked
from pytest_quantbudget.models import lora
from pytest_quantbudget.models.engines import EngineSpec
from pytest_quantbudget.models.methods import Spec

# Options of an engine that say what `adapter` says.
OWN_OPTIONS = ("enable_lora", "lora_modules")


def read_adapter(
    node: Marked, values: dict[str, Any], spec: Spec, engine: EngineSpec, options: dict[str, Any], paths: Paths
) -> Adapter | None:
    """The adapter that a method names; None where it names none, also by mistake."""
    problems, entry = paths.problems, node.entries.get("adapter")
    if entry is None:
        if values["merge"]:
            problems.add(node.entries["merge"], "merge: there is no `adapter` to merge")
        return None
    known = len(problems.found)
    name = paths.model(node, "adapter")
    if name is None or len(problems.found) > known:
        # What is refused is not looked at.
        return None
    merge = bool(values["merge"])
    why = _refusal(node, spec, engine, merge=merge)
    if why is not None:
        problems.add(node.entries["merge"] if merge and engine.name in spec.adapters else entry, why)
        return None
    own = [option for option in OWN_OPTIONS if option in options]
    if own and not merge:
        problems.add(node.entries["engine_options"], f"engine_options: {own[0]} is set by the plugin for the `adapter`")
    if Path(name).is_absolute() and Path(name).is_dir():
        try:
            found = lora.unfit(lora.config_in(Path(name)), engine.name, plain=engine.name != TRANSFORMERS and not merge)
        except ValueError as error:
            found = str(error)
        if found is not None:
            problems.add(entry, f"adapter: {found}")
    return Adapter(name, merge)


def _refusal(node: Marked, spec: Spec, engine: EngineSpec, *, merge: bool) -> str | None:
    """Why an adapter cannot run beside the weights of a kind, or be merged into them; None where it can."""
    if engine.name not in spec.adapters:
        others = f"; {' and '.join(spec.adapters)} can" if spec.adapters else ""
        return f"adapter: the engine {engine.name} runs none beside {spec.name}{others}"
    if merge and "checkpoint" in node.entries and not spec.merges:
        without = "without `checkpoint` it is merged into `model`"
        made = f", which is then quantized to {spec.name}" if spec.quantize is not None else ""
        beside = "without `merge` it runs beside the checkpoint's weights"
        return f"merge: nothing merges an adapter into a ready checkpoint of {spec.name}: {beside}, {without}{made}"
    return None
