"""The engine protocol: the few things that whatever runs a model can be asked."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_quantbudget.core.engines import EngineFacts
from pytest_quantbudget.core.gpu_usage import PhaseMemory
from pytest_quantbudget.core.layers import Receipt
from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.core.measurement import Device, Speed
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import Task, Workload
from pytest_quantbudget.engine.out_of_memory import Batching

if TYPE_CHECKING:
    import torch


class Lacking(Exception):
    """The machine lacks what the subject needs: a skip, not a failure."""


class NotOffered(Exception):
    """The engine cannot give a figure: a skip, in these words."""


class NotFinite(ValueError):
    """Logits that are NaN or infinite."""


@dataclass(frozen=True)
class Description:
    """A loaded model. Times in seconds, sizes in bytes.

    `load_time_s` runs from local files to a model that is ready on its device. `positions` is the longest sequence
    that the model was trained with, None where that is not known. `placement` and `offloaded` are as in `Measurement`;
    `notes` say what had to be assumed, and what is odd; `made_with`, `unread`, `disk`, `untold`, `packing` and
    `decompressed` are as in `Measurement`, and `facts` are its `engine`. Where they are `untold`, `weights` and
    `load_time_s` are None, and the `receipt` is empty.
    """

    revision: str
    device: Device
    load_time_s: float | None
    weights: int | None
    receipt: Receipt
    placement: dict[str, str]
    offloaded: str = ""
    notes: tuple[str, ...] = ()
    load_memory: PhaseMemory | None = None
    positions: int | None = None
    end_tokens: tuple[int, ...] = ()
    made_with: dict[str, Any] | None = None
    unread: tuple[str, ...] = ()
    disk: int | None = None
    facts: EngineFacts | None = None
    untold: dict[str, str] = field(default_factory=dict)
    packing: Packing | None = None
    decompressed: str | None = None


@dataclass
class Decoded:
    """The greedy continuation of one prompt.

    `ids` include the end token where one came; `seconds` run from the start of the batch until the answer was `done`.
    `logprob` sums the log-probabilities (nats) of the answer's own tokens; None where a draft was given. `agreed`
    counts the draft's tokens that are the model's greedy choice after what precedes them in the draft, and
    `draft_logprob` sums their log-probabilities (teacher-forced).
    """

    ids: list[int] = field(default_factory=list)
    done: bool = False
    cut_off: bool = False
    seconds: float = 0.0
    logprob: float | None = None
    agreed: int = 0
    draft_logprob: float | None = None


Hear = Callable[[Mapping[int, Decoded]], None]
# Told how many questions or requests are done, of how many in all.
Tell = Callable[[int, int], None]


class Ends:
    """When an answer is complete: at an end token, at a stop text, or at its full length."""

    def __init__(self, tokenizer: Any, tokens: Sequence[int], texts: Sequence[str], most: int) -> None:
        self.tokenizer, self.tokens, self.texts, self.most = tokenizer, frozenset(tokens), texts, most
        self.last = {text[-1] for text in texts}
        self.window = 2 * max(map(len, texts), default=0)
        self._may_end = functools.cache(self._looks_like_an_end)

    def _looks_like_an_end(self, token: int) -> bool:
        piece = self.tokenizer.decode([token])
        return "\ufffd" in piece or any(letter in piece for letter in self.last)

    def add(self, answer: Decoded, token: int) -> None:
        """Append a token, and note whether the answer is complete with it."""
        answer.ids.append(token)
        if token in self.tokens or (self._may_end(token) and self._stopped(answer.ids)):
            answer.done = True
        elif len(answer.ids) >= self.most:
            answer.done = answer.cut_off = True

    def _stopped(self, ids: Sequence[int]) -> bool:
        tail = self.tokenizer.decode(ids[-self.window :], skip_special_tokens=True)
        return any(text in tail for text in self.texts)


class Scored(NamedTuple):
    """A token's log-probability (nats) given all tokens before it, and whether it is the likeliest of all."""

    logprob: float
    greedy: bool


# A sequence of token ids with the index, above 0, of the first token that is scored.
Sequences = Sequence[tuple[Sequence[int], int]]


class Engine(abc.ABC):
    """A loaded model. Prompts and answers are token ids of its `tokenizer`, which is None for dummy weights.

    What an engine does not implement raises NotOffered: the limits on it are skipped in words, and nothing else is.
    """

    name: str
    tokenizer: Any

    @abc.abstractmethod
    def describe(self) -> Description:
        """Device, weights, layers and placement, and how long it took to load."""

    def time(self, workload: Workload) -> Speed:
        """Timings and peak memory of a workload.

        Where it is to be compiled and cannot be, this raises an error that says why: it is never timed otherwise.
        """
        raise NotOffered(f"{self.name} cannot time a workload of fixed lengths")

    def load(self, load: Load, tell: Tell = lambda done, total: None) -> LoadResult:
        """What comes of requests under load, level by level; `tell` hears how many have ended, of how many."""
        raise NotOffered(
            f"{self.name} has no queue of requests: `load` is for the servers of the engines vllm and openai"
        )

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        """The greedy continuation of each prompt: `hear` gets those that are complete, by their place in `prompts`.

        `drafts` are another model's answers, which serve as speculative drafts, and whose agreement is noted where the
        engine can tell. `batching` limits how many prompts are answered at once, and takes note of memory that ran
        out. Raises NotFinite, with `what` in its message, where logits that decide are NaN or infinite.
        """
        raise NotOffered(f"{self.name} cannot continue prompts of token ids")

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """For each sequence its scored tokens.

        Raises NotFinite where logits are NaN or infinite.
        """
        raise NotOffered(f"{self.name} does not give the log-probabilities of a prompt's tokens")

    def logits(self, sequences: Sequences) -> Iterator[tuple[int, torch.Tensor]]:
        """The logits behind `score`, block by block: the sequence's index, and logits of shape (block, vocabulary).

        Raises NotFinite where logits are NaN or infinite.
        """
        raise NotOffered(f"{self.name} does not give full logits")

    def tops(self, sequences: Sequences) -> Iterator[list[Mapping[int, float]]]:
        """For each sequence and scored token the log-probabilities (nats) of the likeliest tokens, by their ids.

        For engines that do not give full `logits`. The scored token may stand among them besides.
        """
        raise NotOffered(f"{self.name} gives neither full logits nor the likeliest tokens of a prompt's positions")

    def harness_model(self, task: Task, batch_size: int) -> Any:
        """The model as an `lm_eval.api.model.LM`, where the library has a class for the engine; else None.

        It has a method `check_logits(what)` besides, which raises NotFinite where logits were NaN or infinite. Without
        one, the library is answered through `answer` and `score`.
        """
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the engine holds: memory, processes, connections."""

    def check_positions(self, tokens: int, what: str) -> None:
        """Raise ValueError where so many tokens do not fit into the model's positions."""
        check_positions(self.describe().positions, tokens, what)


def check_positions(positions: int | None, tokens: int, what: str) -> None:
    """Raise ValueError where so many tokens do not fit into so many positions."""
    if positions is not None and tokens > positions:
        raise ValueError(f"{what} needs {tokens} tokens and the model has {positions} positions")
