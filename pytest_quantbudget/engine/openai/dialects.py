"""How a server is asked to continue a prompt of token ids, and how its answers are read.

The same greedy request in three forms: the OpenAI API with the fields of vLLM (also of SGLang) that return token ids;
llama-server's own `/completion`; and the plain OpenAI API, whose answers are text.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.engine.openai.http import Client, Garbled


@dataclass(frozen=True)
class Piece:
    """What one event of a stream, or one whole answer, brought.

    `ids` are new tokens, None where the server gives text alone. `finish` is `stop` or `length` at the end. `tokens` is
    how many there were up to then, and `cached` how many of the prompt's came from a cache, where the server says so.
    So are the tokens that were `drafted` by speculative decoding, and those of them that were `accepted`. `decode_s` is
    how long decoding took by the server's own clock, 0 where it does not say.
    """

    ids: tuple[int, ...] | None = None
    text: str = ""
    finish: str = ""
    tokens: int | None = None
    cached: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    decode_s: float = 0.0


@dataclass
class Asking:
    """A greedy request: a prompt of token ids, or a text, and how many tokens are wanted at most.

    With `fixed`, end tokens are to be ignored: just so many tokens are wanted.
    """

    prompt: Sequence[int] | str
    most: int
    fixed: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


class Dialect(abc.ABC):
    """One form of a request and its answers; `model` is the name that the server knows."""

    name: str
    gives_ids = True

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model

    @abc.abstractmethod
    def path(self) -> str:
        """The endpoint's path."""

    @abc.abstractmethod
    def body(self, asking: Asking, *, stream: bool) -> dict[str, Any]:
        """The request."""

    @abc.abstractmethod
    def read(self, event: Any) -> Piece:
        """One event, or a whole answer. Raises Garbled for one of another form."""


class OpenAI(Dialect):
    """`/v1/completions`, whose answers are text."""

    name = "OpenAI completions"
    gives_ids = False
    # What is not in OpenAI's own API; other servers may refuse it.
    extras: Mapping[str, Any] = {}

    def path(self) -> str:
        """Of completions."""
        return self.client.api("completions")

    def body(self, asking: Asking, *, stream: bool) -> dict[str, Any]:
        """Greedy: temperature 0."""
        prompt = asking.prompt if isinstance(asking.prompt, str) else list(asking.prompt)
        wanted: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": asking.most, "temperature": 0}
        if stream:
            wanted |= {"stream": True, "stream_options": {"include_usage": True}}
        if asking.fixed:
            wanted |= {"ignore_eos": True, "min_tokens": asking.most}
        return {**wanted, **self.extras, **asking.more}

    def read(self, event: Any) -> Piece:
        """The first choice, and the usage."""
        try:
            usage = event.get("usage") or {}
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            choice = (event.get("choices") or [{}])[0]
            ids, finish = choice.get("token_ids"), choice.get("finish_reason") or ""
            return Piece(
                tuple(map(int, ids)) if ids is not None else () if self.gives_ids else None,
                str(choice.get("text") or ""),
                str(finish),
                usage.get("completion_tokens"),
                cached,
            )
        except (AttributeError, TypeError, ValueError, IndexError, KeyError):
            raise Garbled(f"an answer of the server has another form than {self.name}: {str(event)[:200]}") from None


class OpenAIWithIds(OpenAI):
    """`/v1/completions` with `return_token_ids` (vLLM's documentation, "OpenAI-Compatible Server")."""

    name = "OpenAI completions with token ids"
    gives_ids = True
    extras: Mapping[str, Any] = {"return_token_ids": True}


class LlamaServer(Dialect):
    """llama-server's `/completion` (llama.cpp, tools/server/README.md).

    The prompt cache is off: what was answered before must not make an answer faster or another one.
    """

    name = "llama-server completion"

    def path(self) -> str:
        """Beside the API."""
        return self.client.root("completion")

    def body(self, asking: Asking, *, stream: bool) -> dict[str, Any]:
        """Greedy: temperature 0 takes the likeliest token."""
        prompt = asking.prompt if isinstance(asking.prompt, str) else list(asking.prompt)
        wanted: dict[str, Any] = {"prompt": prompt, "n_predict": asking.most, "temperature": 0, "stream": stream}
        wanted |= {"return_tokens": True, "cache_prompt": False, "ignore_eos": asking.fixed}
        return {**wanted, **asking.more}

    def read(self, event: Any) -> Piece:
        """The tokens; of the last event how it ended."""
        try:
            ended = bool(event["stop"])
            finish = ("length" if event.get("stop_type") == "limit" else "stop") if ended else ""
            timings = event.get("timings") or {}
            tokens, ids = event.get("tokens_predicted"), tuple(map(int, event.get("tokens") or ()))
            drafted, accepted = (timings.get(name) if ended else None for name in ("draft_n", "draft_n_accepted"))
            own = float(timings.get("predicted_ms") or 0) / 1000 if ended else 0.0
            text = str(event.get("content") or "")
            return Piece(ids, text, finish, tokens, timings.get("cache_n"), drafted, accepted, own)
        except (AttributeError, TypeError, ValueError, KeyError):
            raise Garbled(f"an answer of the server has another form than {self.name}: {str(event)[:200]}") from None
