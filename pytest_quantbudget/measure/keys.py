"""What a figure depends on: the keys of the results store. Imports no heavy library."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, cores, entry_points, files, versions
from pytest_quantbudget.core.answers import TaskResult, draft_id
from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS, VLLM
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import DUMMY, DivergenceOf, Part, Request, Subject, Task, Trust
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.measure.probe import Found
from pytest_quantbudget.measure.store import Key
from pytest_quantbudget.models import dummy, engines, hub, methods, quantization
from pytest_quantbudget.models.methods import Spec
from pytest_quantbudget.tasks import prompts, questions

# What the libraries under measurement read from the environment and their numbers depend on.
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
)  # fmt: skip
# What the variables of an engine's own begin with.
OWN_VARIABLES = {VLLM: "VLLM_", LLAMA_CPP: "GGML_"}

# The code that figures depend on.
MEASURING = ("core/*.py", "engine/**/*.py", "measure/*.py", "models/**/*.py", "tasks/*.py", "judge/sequential.py")


@dataclass(frozen=True)
class Keys:
    """All that one subject's figures depend on; crosses to the measuring process, which stores under these keys.

    `revision` and `checkpoint_revision` are commits of the hub or content hashes of directories. `base` holds for every
    figure, `machine` for timings as well. `states` has the state of each part's source: hashes of files, or the commit
    of a set on the hub.
    """

    folder: str
    revision: str
    checkpoint_revision: str | None
    base: dict[str, Any]
    machine: dict[str, Any]
    states: dict[str, str]

    @property
    def adapter_revision(self) -> str | None:
        """As `revision`, of the subject's adapter; None where it has none."""
        return self.base["adapter"] and self.base["adapter"]["revision"]  # type: ignore[no-any-return]

    def load(self) -> Key:
        """The key of weights and layers as loaded."""
        return self._key("load")

    def of(self, part: Part, answers: str | None = None) -> Key:
        """The key of a part's figures. `answers` names the baseline's answers that they are compared with, if any.

        Answers that lm-evaluation-harness asked for are compared with none.
        """
        content = part.key(self.states[part.source] if part.source else None)
        if part.timing:
            content["machine"] = self.machine
        if isinstance(part, Task):
            content["drafts"] = None if part.harness else answers
        if isinstance(part, DivergenceOf):
            content["answers"] = answers
        return self._key(part.label, **content)

    def batch(self, task: Task, number: int, answers: str | None = None) -> Key:
        """The key of one batch of answers to a task."""
        content = task.key(self.states[task.source])
        return self._key(f"batch-{number}", **content, batch=number, drafts=answers)

    def _key(self, label: str, **more: Any) -> Key:
        return Key(self.folder, label, {"subject": self.base, "figure": label.partition("-")[0], **more})


def keys_of(
    request: Request, gpus: Sequence[Gpu], trust: Trust, memo: Path, interpreter: Found | None = None
) -> Keys | None:
    """The keys of a request that is to be measured on `gpus` (none: on the CPU).

    `memo` is a directory in which content hashes are kept. `interpreter` is what there is in the subject's interpreter,
    where that is another one. None where a revision cannot be found out: the hub does not answer, a file is gone, or a
    configuration cannot be used; the measurement will say so. None also for a server that the user starts: what answers
    there may be another one tomorrow.
    """
    subject = request.subject
    if subject.server is not None:
        return None
    spec = methods.spec(subject.kind)
    try:
        revision, checkpoint, calibration = _origins(subject, spec, trust, memo)
        adapter = subject.adapter
        changed = {"revision": _revision(adapter.name, memo), "merge": adapter.merge} if adapter is not None else None
        here = versions.installed((*methods.library_names(), *engines.libraries()))
        libraries = interpreter.libraries if interpreter else here
        states = {part.source: _state(part, memo, libraries) for part in request.parts if part.source is not None}
    except (OSError, ValueError):
        return None
    base = {
        "revision": revision,
        "checkpoint": checkpoint,
        "adapter": changed,
        "method": subject.kind,
        "engine": subject.engine,
        "engine_options": subject.engine_options,
        "named": _named(subject.engine_options, memo),
        "options": subject.options,
        "load_format": subject.load_format,
        "same_as_source": list(subject.same_as_source),
        "calibration": calibration,
        "trust": codec.to_builtins(trust),
        "gpus": [{"name": gpu.name, "driver": gpu.driver, "capability": gpu.capability} for gpu in gpus],
        "cpu": hardware.cpu(),
        "threads": cores.usable(),
        "environment": _environment(subject.engine),
        "python": interpreter.python if interpreter else platform.python_version(),
        "platform": sys.platform,
        "libraries": _versions(subject, spec, libraries),
    }
    if added := entry_points.packages():
        base["added"] = added
    if subject.engine == LLAMA_CPP:
        base["builds"] = interpreter.builds if interpreter else versions.builds()
    if interpreter and engines.measured_in(subject) is None:
        # A server runs there, and this interpreter makes the prompts.
        base["prompts"] = {name: here[name] for name in ("transformers", "tokenizers") if name in here}
    machine = {"host": platform.node(), "cores": os.cpu_count(), "gpus": [gpu.uuid for gpu in gpus]}
    folder = f"{subject.kind}-{codec.key_of(base)}"
    return Keys(folder, revision, checkpoint, base, machine, states)


def _named(value: Any, memo: Path) -> dict[str, str]:
    """Content hashes of what an engine's options name on this machine, such as an adapter or a draft model."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return {name: state for each in value for name, state in _named(each, memo).items()}
    path = Path(value) if isinstance(value, str) else Path()
    there = path.is_absolute() and (path.is_dir() or path.is_file())
    return {value: _revision(value, memo)} if there else {}


def _environment(engine: str) -> dict[str, str]:
    """The variables that figures depend on; some engines read many of their own, of which keys are none of these."""
    prefix = OWN_VARIABLES.get(engine)
    own = [name for name in os.environ if prefix and name.startswith(prefix) and "KEY" not in name]
    return {name: os.environ[name] for name in sorted({*VARIABLES, *own}) if name in os.environ}


def _origins(subject: Subject, spec: Spec, trust: Trust, memo: Path) -> tuple[str, str | None, str | None]:
    """Revisions of model and checkpoint, and a hash of the calibration text; of dummy weights a hash of their form."""
    if subject.load_format == DUMMY:
        packed = spec.packed and spec.packed(spec.filled(subject.options))
        return dummy.find(subject, packed, trust).revision, None, None
    return (
        hub.revision_of(subject.model, subject.revision, memo),
        _revision(subject.checkpoint, memo) if subject.checkpoint else None,
        files.file_hash(Path(subject.calibration)) if subject.calibration else None,
    )


def _revision(checkpoint: str, memo: Path) -> str:
    """Of a checkpoint that is one file, a hash of its content."""
    path = Path(checkpoint)
    return files.file_hash(path) if path.is_absolute() and path.is_file() else hub.revision_of(checkpoint, None, memo)


def _state(part: Part, memo: Path, libraries: Mapping[str, str]) -> str:
    """The state of what a part's questions or text come from: hashes of files, or the commit of a set on the hub."""
    task = part.task if isinstance(part, DivergenceOf) else part
    return _asked(task, memo, libraries) if isinstance(task, Task) else files.file_hash(Path(part.source or ""))


def _asked(task: Task, memo: Path, libraries: Mapping[str, str]) -> str:
    if task.harness is not None:  # which data set the library will load, only running it would tell
        # It needs PyYAML, which another interpreter may not have.
        from pytest_quantbudget.tasks import harness_file

        state = harness_file.state(Path(task.harness)) if task.is_harness_file else task.harness
        return f"lm-eval {libraries.get('lm-eval')} {state}"
    if task.file is not None:
        return prompts.state(task)
    name, configuration = questions.HUB_SETS[task.name]
    return f"{name}/{configuration}@{hub.revision_of(name, None, memo, kind='dataset')}"


def _versions(subject: Subject, spec: Spec, installed: Mapping[str, str]) -> Mapping[str, str]:
    wanted = (*engines.spec(subject.engine).packages, *spec.packages, "tokenizers", "safetensors", "numpy", "datasets")
    if engines.needs_peft(subject):
        wanted = (*wanted, methods.PEFT)
    if spec.resolve is not None and subject.engine == TRANSFORMERS:
        # Which of them the checkpoint needs is not known before it is there.
        wanted = (*wanted, *quantization.packages())
    wanted = (*wanted, *engines.spec(subject.engine).libraries)
    return {
        "pytest-quantbudget": f"{methods.libraries().get('pytest-quantbudget')} {own_sources()}",
        **{name: installed[name] for name in wanted if name in installed},
    }


@functools.cache
def own_sources() -> str:
    """A hash of the code that figures depend on: between releases the version stays while that may change.

    A reworded verdict or table measures nothing anew.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    parts = (path for name in MEASURING for path in package.glob(name))
    for path in sorted(parts):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def logits_path(
    cache: Path, scratch: Path, keys: Keys | None, subject: Subject, task: Task, answers: TaskResult
) -> Path:
    """Where a baseline's logits for its own answers to a task lie; the stem is a hash of all that they depend on.

    `keys` are the baseline's. Without them it is not known what the logits depend on, and they lie in `scratch`, which
    is removed with the run.
    """
    drafts = draft_id(answers)
    name = codec.key_of(
        dict(keys.of(DivergenceOf(task), drafts).content) if keys else [codec.to_builtins(subject), drafts]
    )
    return (cache if keys else scratch) / "divergence" / f"{subject.method}-{name}.safetensors"
