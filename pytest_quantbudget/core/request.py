"""What to measure: the parts of a request, and the subject that they are measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.engines import TRANSFORMERS, Adapter, Server

T = TypeVar("T")
P = TypeVar("P")

# Where weights come from: from files, or drawn at random.
REAL, DUMMY = "auto", "dummy"

# What of a checkpoint may have to be its source model's own.
SAME_AS_SOURCE = ("tokenizer", "chat_template", "generation_config", "tensors")

# The phases, besides one for each task.
QUANTIZE, KERNELS, LOAD = "quantize", "kernels", "load"
REPLY, WORKLOAD, PERPLEXITY = "reply", "workload", "perplexity"
COMPILED_WORKLOAD = "compiled workload"


class Part:
    """One thing to measure of a subject. Each kind of part is a frozen dataclass of its own.

    Parts are measured by their `order`. The figures of a part that is a `timing` age. `held_in` names the field of a
    `Measurement` that holds the part's results, and `named` the field of a result that holds the part; both are empty
    where the result is no record of its own.
    """

    order: ClassVar[int]
    timing: ClassVar[bool] = False
    held_in: ClassVar[str] = ""
    named: ClassVar[str] = ""

    @property
    def phase(self) -> str:
        """The name of the phase that measures it."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """A name for people, in the names of stored entries."""
        raise NotImplementedError

    @property
    def noun(self) -> str:
        """Its figures in a message, such as `answers to gsm8k`."""
        raise NotImplementedError

    @property
    def source(self) -> str | None:
        """A name for what its questions or text come from; stored figures depend on the state of that."""
        return None

    def settings(self) -> dict[str, Any]:
        """What the figures depend on besides the subject and the content of files, by the names of a budget's keys."""
        return {}

    def key(self, state: str | None) -> dict[str, Any]:
        """What the store's key of the figures says besides the subject; `state` is that of the `source`, a hash."""
        return self.settings()

    def files(self) -> dict[str, str | None]:
        """The files whose content the figures depend on, by the budget's keys; None where the budget names none."""
        return {}


@dataclass(frozen=True)
class LoadTime(Part):
    """How long it takes to load the subject, from local files to a model that is ready on its device."""

    order: ClassVar[int] = 0
    timing: ClassVar[bool] = True
    phase = LOAD
    label = "load-time"
    noun = "load time"


@dataclass(frozen=True)
class Workload(Part):
    """What memory and speed are measured on: `batch_size` random prompts of `prompt_tokens`, then `new_tokens` each.

    With `compile`, the tokens after the first come from compiled steps on a static cache.
    """

    order: ClassVar[int] = 1
    timing: ClassVar[bool] = True
    held_in: ClassVar[str] = "speeds"
    named: ClassVar[str] = "workload"
    label = "workload"
    noun = "figures of the workload"

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    repeats: int
    compile: bool = False

    @property
    def phase(self) -> str:
        """A name of its own where steps are compiled: one way may fail where the other does not."""
        return COMPILED_WORKLOAD if self.compile else WORKLOAD

    def settings(self) -> dict[str, Any]:
        """All of its fields."""
        return vars(self).copy()

    def key(self, state: str | None) -> dict[str, Any]:
        """The settings, together."""
        return {"workload": self.settings()}


@dataclass(frozen=True)
class Reply(Part):
    """The greedy continuation of a text, which the report shows."""

    order: ClassVar[int] = 2
    phase = REPLY
    label = "reply"
    noun = "reply"

    prompt: str

    def settings(self) -> dict[str, Any]:
        """The text."""
        return {"prompt": self.prompt}


@dataclass(frozen=True)
class Task(Part):
    """A question set and how it is asked; files are absolute; without `file` it is the hub's set.

    With `harness`, a task of lm-evaluation-harness (its name, or a YAML file's path), of whose questions the first
    `limit` are asked or `questions` drawn by `seed`; `shots` None is then the task's own number. `batch_size` and
    `chat_template` None mean `auto`; `max_truncated` is in percent.
    """

    order: ClassVar[int] = 3
    held_in: ClassVar[str] = "tasks"
    named: ClassVar[str] = "task"
    # Not part of what answers depend on: labels, places of files, and how the answers are read and judged.
    irrelevant: ClassVar[tuple[str, ...]] = ("name", "file", "shots_file", "extract", "max_truncated", "divergence")

    name: str
    questions: int | None
    shots: int | None
    seed: int
    file: str | None
    max_new_tokens: int
    batch_size: int | None
    extract: str
    style: str = "gsm8k"
    shots_file: str | None = None
    fewshot: str = "fixed"
    chat_template: bool | None = False
    system_prompt: str | None = None
    enable_thinking: bool | None = None
    max_truncated: float = 2.0
    divergence: bool = False
    harness: str | None = None
    limit: int | None = None
    metric: str | None = None
    start: int | None = None  # where answers are first looked at, if only as many questions are asked as decide
    cluster: str | None = None  # the key of the questions' file that says which belong together

    @property
    def phase(self) -> str:
        """The name of the phase in which its questions are answered."""
        return f"task {self.name}"

    @property
    def divergence_phase(self) -> str:
        """The name of the phase in which logits for its answers are kept, or compared with the baseline's."""
        return f"divergence {self.name}"

    @property
    def label(self) -> str:
        """`task-` and its name."""
        return f"task-{self.name}"

    @property
    def noun(self) -> str:
        """Its answers."""
        return f"answers to {self.name}"

    @property
    def is_harness_file(self) -> bool:
        """Whether `harness` is the path of a task file, and not the name of a task."""
        return self.harness is not None and self.harness.endswith((".yaml", ".yml"))

    @property
    def source(self) -> str:
        """What questions are drawn from: files, a set on the hub, or the harness. Budgets may name it as they like."""
        if self.harness is not None:
            return f"lm-eval {self.harness}"
        return "+".join(name for name in (self.file or self.name, self.shots_file) if name)

    def key(self, state: str | None) -> dict[str, Any]:
        """The settings, together, and the state of the questions."""
        return {"task": self.settings(), "asked": state}

    def settings(self) -> dict[str, Any]:
        """The fields that answers depend on; of a task file of the harness only its name."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.irrelevant}
        return {**values, "harness": Path(self.harness).name} if self.harness else values

    def files(self) -> dict[str, str | None]:
        """Questions and worked examples, and the task file of the harness."""
        return {
            "harness": self.harness if self.is_harness_file else None,
            "file": self.file,
            "shots_file": self.shots_file,
        }


@dataclass(frozen=True)
class DivergenceOf(Part):
    """A comparison of full logits with the baseline's on its answers to a task; a baseline keeps its own."""

    order: ClassVar[int] = 4

    task: Task

    @property
    def phase(self) -> str:
        """The name of the phase in which logits are kept or compared."""
        return self.task.divergence_phase

    @property
    def label(self) -> str:
        """`reference-` and the task's name."""
        return f"reference-{self.task.name}"

    @property
    def noun(self) -> str:
        """The divergence."""
        return f"divergence of the answers to {self.task.name}"

    @property
    def source(self) -> str:
        """That of the task."""
        return self.task.source

    def settings(self) -> dict[str, Any]:
        """Those of the task."""
        return self.task.settings()

    def key(self, state: str | None) -> dict[str, Any]:
        """That of the task."""
        return self.task.key(state)

    def files(self) -> dict[str, str | None]:
        """Those of the task."""
        return self.task.files()


@dataclass(frozen=True)
class Rule:
    """A limit that a growing task's answers are to decide.

    `relation` is what the limit is on (`drop`, `recovery`, `absent` ...; nothing for the score); `bound` is `min` or
    `max`; `values` (in the limit's unit; None for `auto`) hold for devices whose name matches the one of `patterns` in
    the same place.
    """

    task: str
    relation: str
    bound: str
    patterns: tuple[str, ...]
    values: tuple[float | None, ...]
    confidence: float


@dataclass(frozen=True)
class Text(Part):
    """A text file whose perplexity is measured in windows of `window` tokens that move by `stride`."""

    order: ClassVar[int] = 5
    held_in: ClassVar[str] = "perplexities"
    named: ClassVar[str] = "text"
    phase = PERPLEXITY
    label = "perplexity"
    noun = "perplexity"

    file: str
    window: int
    stride: int

    @property
    def source(self) -> str:
        """The file."""
        return self.file

    def settings(self) -> dict[str, Any]:
        """Window and stride."""
        return {"window": self.window, "stride": self.stride}

    def key(self, state: str | None) -> dict[str, Any]:
        """The settings and a hash of the text."""
        return {"text": state, **self.settings()}

    def files(self) -> dict[str, str | None]:
        """The text."""
        return {"file": self.file}


@dataclass(frozen=True)
class Subject:
    """One (model, method): what is loaded once. `model` and `checkpoint` are hub ids or absolute paths.

    `method` is the budget's name for it, and `kind` what it is: the name of a spec of `models.methods`. With a
    `checkpoint`, `options` are those that the budget names: it must have been made with them. The `engine` runs it,
    with `engine_options`; in the interpreter `python`, an absolute path, or in this one. An `adapter` belongs to it.
    """

    model: str
    revision: str | None
    method: str
    checkpoint: str | None
    options: dict[str, Any]
    calibration: str | None
    gpus: int = 1  # how many GPUs it is spread over, where there are any
    again: int = 0  # the number of a repeat run, which shows how much runs differ; 0 is the run that is judged
    load_format: str = REAL
    same_as_source: tuple[str, ...] = ()  # of SAME_AS_SOURCE: a difference is a failure
    against: str | None = None  # the key of the baseline that its answers are compared with
    kind: str = ""  # the method's name where it is not given
    engine: str = TRANSFORMERS
    engine_options: dict[str, Any] = field(default_factory=dict)
    python: str | None = None
    server: Server | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        """A method that is named as its kind needs no other name."""
        if not self.kind:
            object.__setattr__(self, "kind", self.method)

    @property
    def key(self) -> str:
        """A name for files and locks."""
        return codec.key_of(self)

    @property
    def name(self) -> str:
        """A name for people."""
        return f"{self.method} again {self.again}" if self.again else self.method


@dataclass(frozen=True)
class Trust:
    """What only the command line may allow: running code that comes with a model, and unpickling its weights."""

    remote_code: bool = False
    pickles: bool = False


NO_TRUST = Trust()


@dataclass(frozen=True)
class Request:
    """All that the selected limits need of one subject; times in seconds.

    `timeout_s` is for quantizing, loading and measuring together. A timing that is older than `max_age_s` is measured
    again. `rules` end a growing task once they are decided; without any, all questions are asked. The tasks named in
    `whole` are asked completely, because other methods are compared with these answers.
    """

    subject: Subject
    parts: tuple[Part, ...] = ()
    timeout_s: float = math.inf
    max_age_s: float = math.inf
    rules: tuple[Rule, ...] = ()
    whole: tuple[str, ...] = ()

    def of(self, kind: type[P]) -> tuple[P, ...]:
        """The parts of one kind."""
        return tuple(part for part in self.parts if isinstance(part, kind))

    def and_(self, other: Request) -> Request:
        """One request that serves both requests of a subject."""
        return replace(
            self,
            parts=tuple(sorted(_union(self.parts, other.parts), key=lambda part: part.order)),
            rules=_union(self.rules, other.rules),
            whole=_union(self.whole, other.whole),
            timeout_s=max(self.timeout_s, other.timeout_s),
            max_age_s=min(self.max_age_s, other.max_age_s),
        )


def _union(left: tuple[T, ...], right: tuple[T, ...]) -> tuple[T, ...]:
    return (*left, *(item for item in right if item not in left))
