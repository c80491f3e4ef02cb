"""What is to be measured: the request that crosses to a measuring process."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pytest_quantbudget.core import codec

T = TypeVar("T")
REAL, DUMMY = "auto", "dummy"  # where weights come from: from files, or drawn at random


# The phases, besides one for each task.
QUANTIZE, LOAD, REPLY, WORKLOAD, PERPLEXITY = "quantize", "load", "reply", "workload", "perplexity"


@dataclass(frozen=True)
class Workload:
    """What memory and speed are measured on: `batch_size` random prompts of `prompt_tokens`, then `new_tokens` each."""

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    repeats: int


@dataclass(frozen=True)
class Task:
    """A question set and how it is asked; files are absolute; without `file` it is the hub's set.

    With `harness`, a task of lm-evaluation-harness (its name, or a YAML file's path), of whose questions the first
    `limit` are asked or `questions` drawn by `seed`; `shots` None is then the task's own number. `batch_size` and
    `chat_template` None mean `auto`; `max_truncated` is in percent.
    """

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

    @property
    def phase(self) -> str:
        """The name of the phase in which its questions are answered."""
        return f"task {self.name}"

    @property
    def divergence_phase(self) -> str:
        """The name of the phase in which logits for its answers are kept, or compared with the baseline's."""
        return f"divergence {self.name}"


@dataclass(frozen=True)
class Rule:
    """A limit that a growing task's answers are to decide.

    `relation` is `drop`, `flips`, or nothing for the score; `bound` is `min` or `max`; `values` (points or percent;
    None for `auto`) hold for devices whose name matches the one of `patterns` in the same place.
    """

    task: str
    relation: str
    bound: str
    patterns: tuple[str, ...]
    values: tuple[float | None, ...]
    confidence: float


@dataclass(frozen=True)
class Text:
    """A text file whose perplexity is measured in windows of `window` tokens that move by `stride`."""

    file: str
    window: int
    stride: int


@dataclass(frozen=True)
class Subject:
    """One (model, method): what is loaded once. `model` and `checkpoint` are hub ids or absolute directories."""

    model: str
    revision: str | None
    method: str
    checkpoint: str | None
    options: dict[str, Any]
    calibration: str | None
    gpus: int = 1  # how many GPUs it is spread over, where there are any
    again: int = 0  # the number of an equal run, which shows how much runs differ; 0 is the run that is judged
    load_format: str = REAL

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
    """Everything that the selected limits need of one subject. Times in seconds."""

    subject: Subject
    load_time: bool = False  # whether a limit is on it; it comes with every load anyway
    workloads: tuple[Workload, ...] = ()
    tasks: tuple[Task, ...] = ()
    prompts: tuple[str, ...] = ()  # texts whose continuation the report shows
    timeout_s: float = math.inf  # for quantizing, loading and measuring together
    max_age_s: float = math.inf  # a timing that is older is taken again
    texts: tuple[Text, ...] = ()  # of which the perplexity is measured
    divergence: tuple[Task, ...] = ()  # on whose answers a method is compared with its baseline, logit by logit
    rules: tuple[Rule, ...] = ()  # which end a growing task once they are decided; without any, all is asked
    whole: tuple[str, ...] = ()  # tasks of which all is asked, because others are compared with these answers

    def and_(self, other: Request) -> Request:
        """What serves both requests of one subject."""
        return replace(
            self,
            load_time=self.load_time or other.load_time,
            workloads=_union(self.workloads, other.workloads),
            tasks=_union(self.tasks, other.tasks),
            texts=_union(self.texts, other.texts),
            divergence=_union(self.divergence, other.divergence),
            prompts=_union(self.prompts, other.prompts),
            rules=_union(self.rules, other.rules),
            whole=_union(self.whole, other.whole),
            timeout_s=max(self.timeout_s, other.timeout_s),
            max_age_s=min(self.max_age_s, other.max_age_s),
        )


def _union(left: tuple[T, ...], right: tuple[T, ...]) -> tuple[T, ...]:
    return (*left, *(item for item in right if item not in left))


NO_MATTER = ("name", "file", "shots_file", "extract", "max_truncated", "divergence")  # to the answers of a task
