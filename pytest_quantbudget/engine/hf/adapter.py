"""LoRA adapters through PEFT: beside the weights of a loaded model, or merged into them."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from pytest_quantbudget.models import lora
from pytest_quantbudget.models.lora import Lora

UNTOLD = "Found missing adapter keys"  # how PEFT warns of layers that are left without their weights


def import_ahead() -> None:
    """Import PEFT, and what it imports itself with the first layer: gptqmodel, where it is, whatever the layer."""
    from peft.import_utils import is_gptqmodel_available

    if is_gptqmodel_available():
        importlib.import_module("gptqmodel.nn_modules.qlinear")


def beside(model: Any, found: Lora) -> Any:
    """The model, in whose layers the adapter's matrices now run beside the weights, in the types that PEFT gives them.

    The same object: PEFT puts its layers around those that the adapter changes. Raises ValueError where the adapter is
    one of another model.
    """
    return _put_on(model, found).get_base_model()


def merged_into(model: Any, found: Lora) -> Any:
    """The model, with the adapter merged into its weights. Raises ValueError as `beside`.

    By PEFT's default way, which rounds once; its safe one rounds the change first, and then the sum.
    """
    return _put_on(model, found).merge_and_unload()


def _put_on(model: Any, found: Lora) -> Any:
    from peft import PeftModel
    from transformers.conversion_mapping import get_model_conversion_mapping

    name = str(getattr(model.config, "name_or_path", "") or "the model").rpartition("/")[2]
    # Where transformers renames tensors while it loads, PEFT does so too.
    if not get_model_conversion_mapping(model, add_legacy=False):
        lora.check_fits(found, dict(model.named_modules()), name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            put = PeftModel.from_pretrained(model, str(found.folder))
        except KeyError as error:
            # It asks the file for the packed form of what the file holds unpacked.
            why = f"PEFT finds no {error} in it: `modules_to_save` names a layer that is packed here"
            raise ValueError(f"{found.folder.name} cannot be put on {name}: {why}") from None
    missing = next((str(each.message) for each in said if UNTOLD in str(each.message)), None)
    if missing is not None:
        raise ValueError(f"{found.folder.name} is an adapter of another model than {name}: {missing:.300}")
    for each in said:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return put
