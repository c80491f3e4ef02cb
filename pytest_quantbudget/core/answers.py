"""Answers to a task, and what they were compared with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_quantbudget.core.request import Task

NANO = 1e-9  # nats: to that the divergences of tokens are rounded
INVALID = "[invalid]"  # lm-evaluation-harness's word for "no match"


@dataclass(frozen=True)
class Origin:
    """When a figure was measured (ISO 8601, UTC), and whether it was reused from an earlier run."""

    at: str
    reused: bool = False


@dataclass(frozen=True)
class Answer:
    """One question's outcome. `question` is its line (from 0) in the set; both extractions are kept.

    `ids` are its tokens as generated, the end included; `logprob` sums their log-probabilities (nats) where they were
    told; `prompt` is a hash of the prompt; `seconds` run from the start of its batch until it was complete; `cluster`
    is what the question set says it belongs to, where the task declares that.
    """

    question: int
    text: str
    strict: str
    flexible: str
    strict_correct: bool
    flexible_correct: bool
    cut_off: bool
    tokens: int
    ids: tuple[int, ...] = ()
    logprob: float | None = None
    prompt: str = ""
    seconds: float = 0.0
    cluster: str = ""


@dataclass(frozen=True)
class Agreement:
    """Teacher-forced greedy match and log-probability on the baseline's answers, token by token.

    `against` names these answers. Of `tokens` of them, `agreed` are the method's greedy choice. The log-probabilities
    (nats) are sums over all tokens, under the method and under the baseline. `each_tokens`, `each_agreed` and
    `each_lost` (nats, the baseline's minus the method's) are the parts of single answers.
    """

    against: str
    tokens: int
    agreed: int
    logprob: float
    baseline_logprob: float
    each_tokens: tuple[int, ...] = ()
    each_agreed: tuple[int, ...] = ()
    each_lost: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse, with ValueError, an agreement over nothing, and sums that are no numbers."""
        if not 0 <= self.agreed <= self.tokens or not self.tokens:
            raise ValueError("an agreement needs tokens, and no more of them can agree than there are")
        if not math.isfinite(self.logprob) or not math.isfinite(self.baseline_logprob):
            raise ValueError("log-probabilities must be finite")


@dataclass(frozen=True)
class Divergence:
    """How far the method's next-token distributions are from the baseline's, over `tokens` tokens of its answers.

    Defined as by llama.cpp's `--kl-divergence`: `mean_kl`, `max_kl` and `p99_kl` (a quantile) are over the tokens'
    divergences (nats); `same_top` counts the tokens whose likeliest next token is the same. `against` names the file of
    the baseline's logits. `each_tokens`, `each_same` and `each_kl` (sums) are the parts of single answers, and
    `token_kls` has the divergence of each of their tokens: whole numbers of 1e-9 nats, a text an answer.

    Where the engine told only the likeliest tokens, at least `top` of them at each place (0: all), the divergences are
    lower bounds, in which all other tokens count as one; `mean_rest` and `max_rest` are the baseline's probability of
    these, over the places.
    """

    tokens: int
    same_top: int
    mean_kl: float
    max_kl: float
    p99_kl: float
    against: str = ""
    each_tokens: tuple[int, ...] = ()
    each_same: tuple[int, ...] = ()
    each_kl: tuple[float, ...] = ()
    top: int = 0
    mean_rest: float = 0.0
    max_rest: float = 0.0
    token_kls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse, with ValueError, a divergence over nothing, or one that is no number."""
        if not 0 <= self.same_top <= self.tokens or not self.tokens:
            raise ValueError("a divergence needs tokens, and no more of them can agree than there are")
        if not all(math.isfinite(value) for value in (self.mean_kl, self.max_kl, self.p99_kl)):
            raise ValueError("a divergence must be finite")
        if not 0 <= self.mean_rest <= 1 or not 0 <= self.max_rest <= 1:
            raise ValueError("a probability lies between 0 and 1")
        if not all(kl.isdecimal() and len(kl) < 16 for text in self.token_kls for kl in text.split(" ")):
            raise ValueError("divergences of tokens must be whole numbers of 1e-9 nats")

    @property
    def tokens_kl(self) -> tuple[tuple[float, ...], ...]:
        """The divergence of each token (nats), answer by answer; nothing where an earlier release measured."""
        return tuple(tuple(int(kl) * NANO for kl in text.split(" ")) for text in self.token_kls)


@dataclass(frozen=True)
class TaskResult:
    """The answers to a task, in the order in which the questions were drawn.

    `metric` is the figure that counted, as `METRIC,FILTER`, where lm-evaluation-harness asked. `planned` is how many
    questions would have been asked at most (0: those that were), and `stopped` says why fewer were. `name` is the
    answers' name as drafts, where their tokens are not kept. `source` is the state of what the questions came from.
    `chance` is the percent that guessing gets right, where the options are given. `clock` is the time (ISO 8601, UTC)
    that a chat template was told, empty where it did not ask. `tokenizer` is a hash of what made the prompts' tokens.
    """

    task: Task
    answers: tuple[Answer, ...]
    seconds: float  # of answering, summed over the runs that it took
    origin: Origin | None = None
    resumed: int = 0  # answers that an earlier run had given before it was ended
    agreement: Agreement | None = None
    divergence: Divergence | None = None
    metric: str | None = None
    planned: int = 0
    stopped: str = ""
    name: str | None = None
    source: str | None = None
    chance: float | None = None
    clock: str = ""
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Refuse, with ValueError, a task without answers: it has no accuracy."""
        if not self.answers:
            raise ValueError("a task needs at least one answer")

    @property
    def total(self) -> int:
        """How many questions would have been asked at most."""
        return max(self.planned, len(self.answers))

    @property
    def correct(self) -> tuple[bool, ...]:
        """Right or wrong, question by question, under the task's extraction."""
        return self.right(self.answers)

    def right(self, answers: Iterable[Answer]) -> tuple[bool, ...]:
        """Right or wrong, under the task's extraction."""
        strict = self.task.extract == "strict"
        return tuple(a.strict_correct if strict else a.flexible_correct for a in answers)

    @property
    def accuracy(self) -> float:
        """Percent of questions answered correctly."""
        return 100 * sum(self.correct) / len(self.answers)

    @property
    def cut_off(self) -> int:
        """Answers that ended only because `max_new_tokens` was reached."""
        return sum(a.cut_off for a in self.answers)

    @property
    def missing(self) -> tuple[bool, ...]:
        """Whether the task's extraction found nothing, answer by answer."""
        strict = self.task.extract == "strict"
        return tuple((a.strict if strict else a.flexible) == INVALID for a in self.answers)

    @property
    def absent(self) -> int:
        """Answers in which the task's extraction found nothing."""
        return sum(self.missing)


def by_prompt(answers: Iterable[Answer], prompts: Iterable[str]) -> list[Answer | None]:
    """For each prompt (a hash) the answer to it, None where there is none.

    A prompt that stands there more than once has as many answers, and each is taken once.
    """
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.prompt, []).append(answer)
    ways = {prompt: iter(each) for prompt, each in found.items() if prompt}
    return [next(ways[prompt], None) if prompt in ways else None for prompt in prompts]


def counterparts(before: TaskResult, after: TaskResult) -> list[Answer | None]:
    """For each answer that `after` holds, the one that `before` holds to the same prompt; None where it holds none.

    Where not every prompt is known, answers go together by the numbers of their questions.
    """
    if all(answer.prompt for answer in (*before.answers, *after.answers)):
        return by_prompt(before.answers, (answer.prompt for answer in after.answers))
    known = {answer.question: answer for answer in before.answers}
    pairs = ((known.get(answer.question), answer) for answer in after.answers)
    return [
        None if own is None or (own.prompt and answer.prompt and own.prompt != answer.prompt) else own
        for own, answer in pairs
    ]


def draft_id(baseline: TaskResult | None) -> str | None:
    """A name for answers that serve as drafts; None for those that cannot: of the harness only texts are known."""
    if baseline is None or baseline.name is not None:
        return baseline.name if baseline else None
    if not all(answer.ids for answer in baseline.answers):
        return None
    text = "\n".join(f"{answer.logprob} {' '.join(map(str, answer.ids))}" for answer in baseline.answers)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
