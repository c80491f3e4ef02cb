"""Requests under load: what is sent to a server, and when each answer's tokens came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pytest_quantbudget.core.answers import Origin
from pytest_quantbudget.core.request import Part

UNDER_LOAD = "requests under load"  # the phase
CONCURRENCY, RATE = "concurrency", "rate"  # the two ways to send requests, by the names of a budget's keys
# How a request fails, besides what another program calls it.
TIMEOUT, LOST, GARBLED, MIDWAY = "timeout", "connection lost", "garbled answer", "failed midway"
LENGTH, SILENT = "wrong length", "no token streamed"


@dataclass(frozen=True)
class Load(Part):
    """Requests of fixed lengths: `requests` at each level, after `warmup` that are not counted; times in seconds.

    A level of `concurrency` keeps so many requests open at any time (closed loop). A level of `rate` sends so many a
    second, at times of a Poisson process drawn by `seed` (open loop). One of the two is empty. Without `warmup`, as
    many as a level has at once are sent, or `WARMUP`. Prompts are drawn by `seed`, each another one: windows of the
    text `file`, or random tokens. A request that takes longer than `timeout_s` has failed. `tool` names another program
    that sends the requests, run by the interpreter `python`, an absolute path.
    """

    order: ClassVar[int] = 6
    timing: ClassVar[bool] = True
    held_in: ClassVar[str] = "loads"
    named: ClassVar[str] = "load"
    WARMUP: ClassVar[int] = 8
    phase = UNDER_LOAD
    label = "requests"
    noun = "figures under load"

    prompt_tokens: int = 512
    new_tokens: int = 128
    concurrency: tuple[int, ...] = ()
    rate: tuple[float, ...] = ()
    requests: int = 200
    warmup: int | None = None
    seed: int = 0
    timeout_s: float = 120.0
    file: str | None = None
    tool: str | None = None
    python: str | None = None

    @property
    def levels(self) -> tuple[tuple[str, float], ...]:
        """Each level, as its way and value."""
        return (*((CONCURRENCY, each) for each in self.concurrency), *((RATE, each) for each in self.rate))

    def warmup_at(self, way: str, value: float) -> int:
        """How many requests are sent before a level, of which none counts."""
        return self.warmup if self.warmup is not None else int(value) if way == CONCURRENCY else self.WARMUP

    @property
    def source(self) -> str | None:
        """The text file, if any."""
        return self.file

    def settings(self) -> dict[str, Any]:
        """All fields but the places of the text and of the interpreter."""
        values = {name: value for name, value in vars(self).items() if name not in ("file", "python")}
        return {**values, "concurrency": list(self.concurrency), "rate": list(self.rate)}

    def key(self, state: str | None) -> dict[str, Any]:
        """The settings, together, and a hash of the text."""
        return {"load": self.settings(), "text": state}

    def files(self) -> dict[str, str | None]:
        """The text."""
        return {"file": self.file}


@dataclass(frozen=True)
class Served:
    """One request, sent `sent_s` seconds after its level began.

    `ttft_s` runs until the first chunk with a token, and is 0 where none came. `waits` are the times from each chunk to
    the next, microseconds, in words: a chunk may hold several `tokens`, which are counted as ids. `error` is the kind
    of failure, empty where the answer came whole. `cached` are the prompt's tokens that came from a prefix cache, as
    far as the server tells.
    """

    sent_s: float
    ttft_s: float = 0.0
    waits: str = ""
    tokens: int = 0
    error: str = ""
    cached: int = 0

    def __post_init__(self) -> None:
        """Refuse, with ValueError, an answer whose times or counts cannot be true."""
        if not 0 <= self.sent_s < math.inf or not 0 <= self.ttft_s < math.inf or self.cached < 0:
            raise ValueError("times and counts of a request must be finite and not below 0")
        if not all(wait.isdecimal() and len(wait) < 16 for wait in self.waits.split(" ") if self.waits):
            raise ValueError("waits must be whole numbers of microseconds")
        chunks = len(self.waits.split()) + (self.ttft_s > 0)
        if self.tokens < chunks or (not self.error and not chunks):
            raise ValueError(f"{chunks} chunks of an answer hold {self.tokens} tokens")

    @cached_property
    def waits_s(self) -> tuple[float, ...]:
        """The times from each chunk to the next, seconds."""
        return tuple(int(wait) / 1e6 for wait in self.waits.split())

    @cached_property
    def e2e_s(self) -> float:
        """From sending until the last token, seconds; infinite where the request failed."""
        return math.inf if self.error else self.ttft_s + sum(self.waits_s)

    @property
    def first_s(self) -> float:
        """The time to first token, seconds; infinite where the request failed."""
        return math.inf if self.error else self.ttft_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first, seconds; infinite where the request failed."""
        return math.inf if self.error else (self.e2e_s - self.first_s) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Level:
    """What came of one level: a `value` of CONCURRENCY or RATE, in the order of sending.

    `seconds` run from the first request until the last answer ended. `behind_s` is how much later than planned a
    request was sent at most: a client that is busy itself measures itself.
    """

    way: str
    value: float
    seconds: float
    served: tuple[Served, ...]
    behind_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse, with ValueError, a level without requests or without a length."""
        if not self.served or not 0 < self.seconds < math.inf:
            raise ValueError("a level needs requests, and a time above 0")

    @property
    def name(self) -> str:
        """`concurrency 32`, `2.5 requests/s`."""
        return f"{self.way} {self.value:g}" if self.way == CONCURRENCY else f"{self.value:g} requests/s"

    @property
    def whole(self) -> tuple[Served, ...]:
        """The requests that were answered whole."""
        return tuple(served for served in self.served if not served.error)

    @property
    def throughput(self) -> float:
        """Output tokens/s of whole answers over the length of the level."""
        return sum(served.tokens for served in self.whole) / self.seconds

    @property
    def errors(self) -> dict[str, int]:
        """How many requests failed, by kind."""
        kinds = [served.error for served in self.served if served.error]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True)
class LoadResult:
    """What came of a load, level by level.

    With speculative decoding the server made `drafts` while the levels ran, of which it `accepted` so many tokens in
    sum; `undrafted` says why that is not known. `notes` say what is odd about the figures. `tool` names the program
    that sent the requests and its version, where that is another one. `source` is a hash of the prompts' text.
    """

    load: Load
    levels: tuple[Level, ...]
    origin: Origin | None = None
    drafts: int | None = None
    accepted: int | None = None
    undrafted: str = ""
    notes: tuple[str, ...] = ()
    tool: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse, with ValueError, other levels than those of the load, and tokens of no drafts."""
        if [(level.way, level.value) for level in self.levels] != list(self.load.levels):
            raise ValueError("the levels are not those of the load")
        if (self.drafts is None) != (self.accepted is None) or min(self.drafts or 0, self.accepted or 0) < 0:
            raise ValueError("accepted tokens need drafts")

    @property
    def acceptance_length(self) -> float | None:
        """Mean of tokens a step: those of a draft that were accepted, and the model's own; None without drafts."""
        return 1 + (self.accepted or 0) / self.drafts if self.drafts else None
