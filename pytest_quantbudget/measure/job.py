"""The job of a measuring process, as both sides know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.request import NO_TRUST, Request, Task, Trust
from pytest_quantbudget.measure.keys import Keys
from pytest_quantbudget.models.methods import Prepared

Drafts = Mapping[Task, TaskResult]
NO_DRAFTS: Drafts = {}
References = Mapping[Task, Path]
FORK_SPOILED = 78


@dataclass(frozen=True)
class Job:
    """What a measuring process does, and where.

    `cache` keeps checkpoints; `scratch` is removed with the run. Without `keys` nothing is stored. `quantized` is the
    directory of the subject's own quantization. `only` is the one phase to run, QUANTIZE or KERNELS, None for all those
    from LOAD on; `prepared` is what the phase KERNELS found, where it has run before. `drafts` are the baseline's
    answers, and `references` the files of its logits. `answers` are the subject's own, where they were stored. `last`
    says that there is no other way to start a process. `temporary` is the directory for its temporary files, removed
    with the process; None for the system's.
    """

    request: Request
    cache: str
    scratch: str
    keys: Keys | None = None
    store: str | None = None
    refresh: bool = False
    only: str | None = None
    quantized: str | None = None
    prepared: Prepared | None = None
    trust: Trust = NO_TRUST
    environ: Mapping[str, str] = field(default_factory=dict)
    last: bool = True
    temporary: str | None = None
    drafts: Mapping[Task, TaskResult] = field(default_factory=dict)
    references: Mapping[Task, Path] = field(default_factory=dict)
    answers: Mapping[Task, TaskResult] = field(default_factory=dict)
