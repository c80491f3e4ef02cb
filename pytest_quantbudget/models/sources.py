"""What a subject is loaded from, and whether that is on this machine: nothing is asked of the hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantbudget.core.engines import LLAMA_CPP
from pytest_quantbudget.core.request import DUMMY, Subject, Trust, Workload
from pytest_quantbudget.models import checkpoint, hub
from pytest_quantbudget.models.config import find_config
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.formats import WIDTHS

EVERYTHING = Trust(remote_code=True, pickles=True)
HERE, THERE, UNKNOWN = "here", "there", "unknown"


@dataclass(frozen=True)
class Source:
    """One thing that is read: a hub id or a path, in whose place it stands (`model`, `checkpoint`, `adapter`).

    It is HERE, THERE (on the hub, and not in its cache) or UNKNOWN. `size` in bytes; None where that is not known.
    With `about`, it is an estimate.
    """

    name: str
    kind: str
    where: str
    size: int | None = None
    about: bool = False


def sources(subject: Subject, workload: Workload) -> Iterator[Source]:
    """What a subject is loaded from."""
    if subject.server is not None:
        return
    # With a checkpoint, of the model only its tokenizer is read.
    if subject.checkpoint is not None:
        yield _of_checkpoint(subject, workload)
    elif subject.load_format != DUMMY:
        yield _of_model(subject, workload)
    if subject.adapter is not None:
        yield _looked_up(subject.adapter.name, subject.adapter.revision, "adapter")


def _of_model(subject: Subject, workload: Workload) -> Source:
    found = _looked_up(subject.model, subject.revision, "model")
    return found if found.size is not None or found.where == HERE else replace(found, size=_dense(subject), about=True)


def _of_checkpoint(subject: Subject, workload: Workload) -> Source:
    found = _looked_up(str(subject.checkpoint), None, "checkpoint")
    if found.size is not None or found.where == HERE or subject.engine == LLAMA_CPP:
        return found
    try:
        made = memory.estimate(subject, workload)
    except ValueError:
        return found
    return replace(found, size=made.weights, about=True)


def _dense(subject: Subject) -> int | None:
    """Bytes of the files of a model that is not here, by its configuration."""
    try:
        parameters = sum(memory.shape_of(subject).parameters.values())
        told = find_config(subject.model, subject.revision)
    except ValueError:
        return None
    dtype = str(told.get("dtype") or told.get("torch_dtype")).removeprefix("torch.")
    return parameters * WIDTHS.get(dtype, WIDTHS["bfloat16"])


def _looked_up(name: str, revision: str | None, kind: str) -> Source:
    """A directory, a file, or what the hub's cache has of a hub id."""
    path = Path(name)
    if path.is_absolute():
        return Source(name, kind, HERE if path.exists() else UNKNOWN, _size(path))
    if importlib.util.find_spec("huggingface_hub") is None:
        return Source(name, kind, UNKNOWN)
    try:
        folder = hub.snapshot(name, revision)
    except OSError:
        return Source(name, kind, THERE)
    size = _size(folder)
    if size is not None:
        return Source(name, kind, HERE, size)
    return Source(name, kind, THERE, _by_index(folder))


def _by_index(folder: Path) -> int | None:
    try:
        told = checkpoint.index(folder).get("metadata")
    except ValueError:
        return None
    total = told.get("total_size") if isinstance(told, dict) else None
    return int(total) if isinstance(total, int | float) else None


def _size(path: Path) -> int | None:
    """Bytes of a file, or of the files in a directory that hold weights or an adapter; None where there are none."""
    try:
        if path.is_file():
            return path.stat().st_size
        try:
            return checkpoint.size(path, EVERYTHING)
        except ValueError:
            others = [each for pattern in ("adapter_model.*", "*.gguf") for each in path.glob(pattern)]
            return sum(each.stat().st_size for each in others) or None
    except OSError:
        return None


def set_is_here(name: str) -> bool | None:
    """Whether a data set of the hub is in its cache; None where that cannot be told."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    try:
        return hub.snapshot(name, None, "dataset").is_dir()
    except OSError:
        return False
