"""What a figure depends on: the keys of the results store. Imports no heavy library."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, files, versions
from pytest_quantbudget.core.answers import TaskResult, draft_id
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import DUMMY, NO_MATTER, Request, Subject, Task, Text, Trust, Workload
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.measure.store import Key
from pytest_quantbudget.models import dummy, hub, methods
from pytest_quantbudget.models.methods import Spec
from pytest_quantbudget.tasks import harness_file, prompts, questions

# What the libraries under measurement read from the environment and their numbers depend on.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
)  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """All that one subject's figures depend on; crosses to the measuring process, which stores under these keys.

    `revision` and `checkpoint_revision` are commits of the hub or content hashes of directories. `base` holds for every
    figure, `machine` for timings besides. `asked` is the state of each `source` of questions: a hash of the file,
    or the set's commit on the hub; `texts` are the hashes of the files whose perplexity is measured.
    """

    folder: str
    revision: str
    checkpoint_revision: str | None
    base: dict[str, Any]
    machine: dict[str, Any]
    asked: dict[str, str]
    texts: dict[str, str] = field(default_factory=dict)

    def load(self) -> Key:
        """Weights and layers as loaded."""
        return self._key("load")

    def load_time(self) -> Key:
        """How long loading took."""
        return self._key("load-time", machine=self.machine)

    def workload(self, workload: Workload) -> Key:
        """Speed and peak memory."""
        return self._key("workload", machine=self.machine, workload=codec.to_builtins(workload))

    def reply(self, prompt: str) -> Key:
        """The continuation of a prompt."""
        return self._key("reply", prompt=prompt)

    def perplexity(self, text: Text) -> Key:
        """The perplexity of a text."""
        return self._key("perplexity", text=self.texts[text.file], window=text.window, stride=text.stride)

    def reference(self, task: Task, answers: str | None) -> Key:
        """A baseline's logits for its own `answers` to a task: what methods are compared with."""
        return self._key(f"reference-{task.name}", **self._task(task), answers=answers)

    def task(self, task: Task, drafts: str | None = None) -> Key:
        """All answers to a task; with what is thought of a baseline's, named `drafts`.

        Those that lm-evaluation-harness asked for have nothing to do with a baseline's.
        """
        return self._key(f"task-{task.name}", **self._task(task), drafts=None if task.harness else drafts)

    def batch(self, task: Task, number: int, drafts: str | None = None) -> Key:
        """The answers of one batch of a task."""
        return self._key(f"batch-{number}", **self._task(task), batch=number, drafts=drafts)

    def _task(self, task: Task) -> dict[str, Any]:
        # Its name is a label, the file's place does not matter, and both extractions are kept.
        told = codec.to_builtins(task)
        if task.harness:
            told["harness"] = Path(task.harness).name
        return {"task": {k: v for k, v in told.items() if k not in NO_MATTER}} | {"asked": self.asked[source_of(task)]}

    def _key(self, label: str, **more: Any) -> Key:
        return Key(self.folder, label, {"subject": self.base, "figure": label.partition("-")[0], **more})


def keys_of(request: Request, gpus: Sequence[Gpu], trust: Trust, memo: Path) -> Keys | None:
    """The keys of a request that is to be measured on `gpus` (none: on the CPU).

    `memo` is a directory in which content hashes are kept. None where a revision cannot be found out: the hub does not
    answer, a file is gone, or a configuration cannot be used; the measurement will say so.
    """
    subject = request.subject
    spec = methods.spec(subject.method)
    try:
        revision, checkpoint, calibration = _origins(subject, spec, trust, memo)
        asked = {source_of(task): _asked(task, memo) for task in request.tasks}
        texts = {text.file: files.file_hash(Path(text.file)) for text in request.texts}
    except (OSError, ValueError):
        return None
    base = {
        "revision": revision,
        "checkpoint": checkpoint,
        "method": subject.method,
        "options": subject.options,
        "load_format": subject.load_format,
        "calibration": calibration,
        "trust": codec.to_builtins(trust),
        "gpus": [{"name": gpu.name, "driver": gpu.driver, "capability": gpu.capability} for gpu in gpus],
        "cpu": hardware.cpu(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "platform": sys.platform,
        "libraries": _versions(spec),
    }
    machine = {"host": platform.node(), "cores": os.cpu_count(), "gpus": [gpu.uuid for gpu in gpus]}
    folder = f"{subject.method}-{codec.key_of(base)}"
    return Keys(folder, revision, checkpoint, base, machine, asked, texts)


def _origins(subject: Subject, spec: Spec, trust: Trust, memo: Path) -> tuple[str, str | None, str | None]:
    """Revisions of model and checkpoint, and a hash of the calibration text; of dummy weights a hash of their form."""
    if subject.load_format == DUMMY:
        return dummy.find(subject, spec.packed and spec.packed(subject.options), trust).revision, None, None
    return (
        hub.revision_of(subject.model, subject.revision, memo),
        hub.revision_of(subject.checkpoint, None, memo) if subject.checkpoint else None,
        files.file_hash(Path(subject.calibration)) if subject.calibration else None,
    )


def source_of(task: Task) -> str:
    """What a task's questions are drawn from: a file or a set on the hub. Budgets may give it the same name."""
    if task.harness is not None:
        return f"lm-eval {task.harness}"
    return "+".join(name for name in (task.file or task.name, task.shots_file) if name)


def _asked(task: Task, memo: Path) -> str:
    if task.harness is not None:  # which data set the library will load, only running it would tell
        state = harness_file.state(Path(task.harness)) if harness_file.is_file(task.harness) else task.harness
        return f"lm-eval {versions.libraries().get('lm-eval')} {state}"
    if task.file is not None:
        return prompts.state(task)
    name, configuration = questions.HUB_SETS[task.name]
    return f"{name}/{configuration}@{hub.revision_of(name, None, memo, kind='dataset')}"


def _versions(spec: Spec) -> Mapping[str, str]:
    installed = versions.libraries()
    wanted = (*methods.BASE_PACKAGES, *spec.extras, "tokenizers", "safetensors", "numpy", "datasets")
    return {
        "pytest-quantbudget": f"{installed.get('pytest-quantbudget')} {own_sources()}",
        **{name: installed[name] for name in wanted if name in installed},
    }


@functools.cache
def own_sources() -> str:
    """A hash of this package's code: between releases its version stays while what it measures may change."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def path_of(cache: Path, scratch: Path, keys: Keys | None, subject: Subject, task: Task, answers: TaskResult) -> Path:
    """Where a baseline's logits for its own answers to a task lie; the stem is a hash of all that they depend on.

    `keys` are the baseline's. Without them nobody knows what the logits depend on, and they go with the run, in
    `scratch`.
    """
    told = draft_id(answers)
    name = codec.key_of(dict(keys.reference(task, told).content) if keys else [codec.to_builtins(subject), told])
    return (cache if keys else scratch) / "divergence" / f"{subject.method}-{name}.safetensors"
