"""Whether every tensor of a model has its data in the files: what has none, libraries fill at random."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.request import Trust
from pytest_quantbudget.models import checkpoint

if TYPE_CHECKING:
    from torch import nn

UNREAD = "quantbudget_unread"  # of a loaded model: the names of tensors in its files that it does not use
FEW = 3  # names in a message
PACKED = ("qweight", "qzeros", "scales", "g_idx")  # what layers of gptqmodel hold as buffers


def check_headers(folder: Path, skeleton: Any, trust: Trust) -> None:
    """Raise ValueError where the files lack a tensor of the model `skeleton`, or hold it in another shape.

    The skeleton has no memory, and transformers neither renames nor joins tensors of its kind while it loads.
    """
    held = checkpoint.tensors(folder, trust)
    if not held:
        return
    prefix = f"{skeleton.base_model_prefix}."
    wanted = {name: list(tensor.shape) for name, tensor in _expected(skeleton).items()}
    # A base model's files lack the prefix, and those of a model around it may have one too many.
    names = {name: shape for held_name, (_, shape) in held.items() for name in _names(held_name, prefix, wanted)}
    missing = _without_tied(skeleton, wanted.keys() - names.keys(), wanted.keys() & names.keys())
    known = skeleton.state_dict().keys()
    unread = [name for name in held if not set(_names(name, prefix, known)) & known]
    check(folder.name, missing, unread, len(wanted))
    for name in sorted(wanted.keys() & names.keys()):
        if wanted[name] != names[name]:
            shapes = f"in the shape {names[name]}, and its config asks for {wanted[name]}"
            raise ValueError(f"{folder.name} holds {name} {shapes}")


def _expected(model: Any) -> dict[str, Any]:
    """The tensors that files have to hold: all but buffers that a model computes, and those that its class may lack."""
    computed = {name for name, _ in model.named_buffers() if name.rpartition(".")[2] not in PACKED}
    lacking = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in computed and not any(pattern.search(name) for pattern in lacking)
    }


def _names(held: str, prefix: str, wanted: Collection[str]) -> set[str]:
    """The names under which transformers may look for a tensor."""
    return {name for name in (held, prefix + held, held.removeprefix(prefix)) if name in wanted} or {held}


def _without_tied(model: Any, missing: Iterable[str], there: Collection[str]) -> list[str]:
    """Of missing tensors those that share their data with none that is there."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    groups = {**tied, **{source: target for target, source in tied.items()}}
    return sorted(name for name in missing if groups.get(name) not in there)


def check(folder: str, missing: Iterable[str], unread: Iterable[str], total: int) -> None:
    """Raise ValueError where tensors are `missing`, naming them, and those in the files that nothing reads."""
    missing, unread = sorted(missing), sorted(unread)
    if not missing:
        return
    said = f"{folder} lacks {len(missing):,} of the model's {total:,} tensors ({few(missing)}), which would be random"
    if unread:
        said += f"; it holds {len(unread):,} that the model does not use ({few(unread)})"
    ends, heads = set(missing), set()
    for name in unread:
        head, dot, rest = name.partition(".")
        while dot and rest not in ends:
            more, dot, rest = rest.partition(".")
            head = f"{head}.{more}"
        heads |= {f"{head}."} if dot else set()
    if len(heads) == 1:
        said += f": all their names begin with {heads.pop()!r}"
    raise ValueError(said)


def few(names: Iterable[str]) -> str:
    """The first of some names."""
    listed = list(names)
    return ", ".join(listed[:FEW]) + (", ..." if len(listed) > FEW else "")


def check_loaded(folder: Path, model: nn.Module, told: Mapping[str, Any], trust: Trust) -> None:
    """Raise ValueError where transformers' report of a loading tells of missing tensors; note the unread ones.

    Also where tensors differ that the configuration ties: transformers uses both, other engines the one or the other.
    `told` is what `from_pretrained(output_loading_info=True)` gives.
    """
    held = checkpoint.tensors(folder, trust)
    # What a class of models is known not to use, transformers leaves out of its report.
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    unread = {name for name in held if any(pattern.search(name) for pattern in ignored)} | set(told["unexpected_keys"])
    wanted = _expected(model)
    check(folder.name, [name for name in told["missing_keys"] if name in wanted], unread, len(wanted))
    ties: Mapping[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
    for name in sorted(ties.keys() - getattr(model, "all_tied_weights_keys", ties).keys()):
        said = f"{folder.name} contradicts itself: its config.json ties {name} to {ties[name]} (tie_word_embeddings)"
        raise ValueError(f"{said}, and its files hold two that differ; other engines would use one of them for both")
    setattr(model, UNREAD, tuple(sorted(unread)))


def check_names(folder: Path, model: Any, trust: Trust) -> None:
    """As `check_loaded`, for a model that another library has loaded: by its tensors' names alone."""
    held, wanted = checkpoint.tensors(folder, trust), _expected(model)
    unread = held.keys() - model.state_dict().keys()
    check(folder.name, _without_tied(model, wanted.keys() - held.keys(), held.keys()), unread, len(wanted))
    setattr(model, UNREAD, tuple(sorted(unread)))
