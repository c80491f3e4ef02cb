"""What a server can be asked, found out by asking: nothing is assumed from its name or version.

Each capability is `yes`, or says why not; the words stand in the report, and in the skip of what needs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.core import problems
from pytest_quantbudget.engine.base import Scored
from pytest_quantbudget.engine.openai.dialects import Asking, Dialect, LlamaServer, OpenAI, OpenAIWithIds
from pytest_quantbudget.engine.openai.http import Client, Garbled, Refused, ServerError

YES = "yes"
FAILED = 500  # the first status that says that the server failed, and not that it was asked for something odd
NOT_BUILT = 501  # "Not Implemented" (RFC 9110, section 15.6.2)
TELL_S = 20.0  # for an endpoint that says something
PROBE_TOKENS = 3
SAMPLE = "What is 12 + 7? 12 + 7 = 19"

TOKEN_PROMPTS, RETURNED_IDS, PROMPT_LOGPROBS = "token-id prompts", "returned token ids", "prompt log-probabilities"
FIXED_LENGTHS, SEEDS, SAME_TOKENIZER, SAME_TEMPLATE = "fixed lengths", "seeds", "tokenizer", "chat template"
UNTOLD = "the server has no endpoint that tells"


@dataclass
class Found:
    """What is known of a server: how it is asked, what it can, and how prompt log-probabilities are asked for."""

    dialect: Dialect
    capabilities: dict[str, str] = field(default_factory=dict)
    echo: bool = False

    def lacks(self, capability: str) -> str | None:
        """Why a capability is missing; None where it is there."""
        said = self.capabilities.get(capability, "not tried")
        return None if said == YES else said


async def models(client: Client, limit_s: float) -> list[dict[str, Any]]:
    """What the server says of the models that it serves. Raises ServerError where it is no OpenAI-compatible server."""
    answer = await client.json(client.api("models"), limit_s=limit_s)
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) and "id" in each for each in listed):
        raise ServerError(f"what answers at {client.url} lists no models: it is no OpenAI-compatible server")
    return listed


def chosen(listed: Sequence[dict[str, Any]], wanted: str | None, url: str) -> dict[str, Any]:
    """The entry of the model that is meant. Raises ValueError where it is not served, or could be several."""
    names = [str(each["id"]) for each in listed]
    if wanted is not None and wanted not in names:
        near = problems.nearest(wanted, names)
        raise ValueError(f"the server at {url} does not serve {wanted!r}{near}")
    if wanted is None and len(names) != 1:
        many = ", ".join(names[:5]) or "none"
        raise ValueError(f"the server at {url} serves {len(names)} models ({many}); name one as `server.model`")
    return next(each for each in listed if wanted is None or each["id"] == wanted)


async def probe(client: Client, model: str, tokenizer: Any, limit_s: float) -> Found:
    """Ask for everything once, `limit_s` seconds at most for each.

    What the server refuses, or answers in another form, it does not offer. Whatever else goes wrong is a ServerError.
    """
    ask = _Ask(limit_s)
    ids = [int(token) for token in tokenizer(SAMPLE)["input_ids"]]
    found = await _dialect(ask, client, model, ids)
    capabilities = found.capabilities
    capabilities[PROMPT_LOGPROBS], found.echo = await _logprobs(ask, client, model, ids)
    capabilities[FIXED_LENGTHS] = await _fixed(ask, found.dialect, ids)
    capabilities[SEEDS] = await _seeds(ask, client, model)
    capabilities[SAME_TOKENIZER] = await _tokenizer(client, model, tokenizer)
    capabilities[SAME_TEMPLATE] = await _template(client, model, tokenizer)
    return found


@dataclass(frozen=True)
class _Ask:
    """Asks, with a time limit in seconds."""

    limit_s: float

    async def __call__(self, dialect: Dialect, asking: Asking) -> tuple[Any, str]:
        """The whole answer to a request, or why the server does not give it."""
        try:
            answer = await dialect.client.json(dialect.path(), dialect.body(asking, stream=False), self.limit_s)
            dialect.read(answer)
        except Refused as error:
            if error.status >= FAILED and error.status != NOT_BUILT:
                raise
            return None, error.said or f"status {error.status}"
        except Garbled as error:
            return None, str(error)
        return answer, ""


async def _dialect(ask: _Ask, client: Client, model: str, ids: Sequence[int]) -> Found:
    """The form of request in which the server takes token ids and returns some; else one that takes them; else text."""
    for kind in (OpenAIWithIds, LlamaServer):
        dialect: Dialect = kind(client, model)
        answer, _ = await ask(dialect, Asking(ids, PROBE_TOKENS))
        if answer is not None and dialect.read(answer).ids:
            return Found(dialect, {TOKEN_PROMPTS: YES, RETURNED_IDS: YES})
    plain = OpenAI(client, model)
    returned = "the server returns text alone"
    answer, why = await ask(plain, Asking(ids, PROBE_TOKENS))
    if answer is not None:
        counted = (answer.get("usage") or {}).get("prompt_tokens")
        if counted == len(ids):
            return Found(plain, {TOKEN_PROMPTS: YES, RETURNED_IDS: returned})
        why = f"a prompt of {len(ids)} token ids was counted as {counted} tokens"
    return Found(plain, {TOKEN_PROMPTS: why or "they are refused", RETURNED_IDS: returned})


async def _logprobs(ask: _Ask, client: Client, model: str, ids: Sequence[int]) -> tuple[str, bool]:
    """Whether log-probabilities of a prompt's tokens can be had, and whether by `echo`."""
    plain = OpenAI(client, model)
    answer, why = await ask(plain, Asking(ids, 1, more={"prompt_logprobs": 0}))
    if answer is not None and len(of_prompt(answer, ids, 1) or ()) == len(ids) - 1:
        return YES, False
    answer, said = await ask(plain, Asking(ids, 1, more={"echo": True, "logprobs": 1}))
    if answer is not None and len(of_echo(answer, ids, 1) or ()) == len(ids) - 1:
        return YES, True
    ignored = "the server ignores `prompt_logprobs` and `echo`"
    return (ignored if answer is not None else said or why or ignored), False


async def _fixed(ask: _Ask, dialect: Dialect, ids: Sequence[int]) -> str:
    """Whether a number of tokens can be asked for. Where the model would not have ended, the request tells no more."""
    answer, why = await ask(dialect, Asking(ids, 8, fixed=True))
    if answer is None:
        return why
    piece = dialect.read(answer)
    got = len(piece.ids) if piece.ids is not None else piece.tokens
    return YES if got == 8 else f"8 tokens were asked for, and {got} came"


async def _seeds(ask: _Ask, client: Client, model: str) -> str:
    """Whether sampling with one seed gives one answer; nothing here samples, but users ask."""
    said = []
    for seed in (1, 1, 2):
        asking = Asking("Once", 12, more={"temperature": 1.5, "seed": seed})
        answer, why = await ask(OpenAI(client, model), asking)
        if answer is None:
            return why
        said.append(OpenAI(client, model).read(answer).text)
    if said[0] != said[1]:
        return "two requests with one seed were answered differently"
    return YES if said[2] != said[0] else "another seed gave the same answer"


async def _tokenizer(client: Client, model: str, tokenizer: Any) -> str:
    """Whether the server makes the same token ids of a text, where it has an endpoint that tells."""
    ids = [int(token) for token in tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]]
    forms = ({"model": model, "prompt": SAMPLE, "add_special_tokens": False}, {"content": SAMPLE, "add_special": False})
    for body in forms:
        try:
            answer = await client.json(client.root("tokenize"), body, TELL_S)
        except ServerError:
            continue
        theirs = answer.get("tokens") if isinstance(answer, dict) else None
        if theirs:
            return (
                YES if theirs == ids else f"it makes {theirs[:6]} of {SAMPLE[:12]!r}, and the model's makes {ids[:6]}"
            )
    return UNTOLD


async def _template(client: Client, model: str, tokenizer: Any) -> str:
    """Whether the server puts a conversation into the same words, where it has an endpoint that tells.

    Tasks are asked through the template of the budget's model; a server's own may be another, or one where the model
    has none.
    """
    turns = [{"role": "user", "content": SAMPLE}]
    theirs = await _rendered(client, model, turns)
    if theirs is None:
        return UNTOLD
    if getattr(tokenizer, "chat_template", None) is None:
        return f"the model has none, and the server's makes {theirs!s:.60}"
    ours = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if not isinstance(theirs, str):
        ours = [int(token) for token in tokenizer(ours, add_special_tokens=False)["input_ids"]]
    return YES if theirs == ours else f"it makes {theirs!s:.60}, and the model's makes {ours!s:.60}"


async def _rendered(client: Client, model: str, turns: list[dict[str, str]]) -> Any:
    """A conversation as the server renders it: text (llama-server) or token ids (vLLM); None where it does not tell."""
    for path, key, more in (("apply-template", "prompt", {}), ("tokenize", "tokens", {"model": model})):
        try:
            answer = await client.json(client.root(path), {"messages": turns, **more}, TELL_S)
        except ServerError:
            continue
        if isinstance(answer, dict) and answer.get(key):
            return answer[key]
    return None


def of_prompt(answer: Any, ids: Sequence[int], first: int) -> list[Scored] | None:
    """From vLLM's `prompt_logprobs`: of each token from `first` on its log-probability, and if it is the likeliest.

    In nats. None where the answer has another form.
    """
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        if len(told) != len(ids):
            return None
        own = [told[at][str(ids[at])] for at in range(first, len(ids))]
        return [Scored(float(each["logprob"]), each["rank"] == 1) for each in own]
    except (KeyError, TypeError, IndexError, ValueError):
        return None


def of_echo(answer: Any, ids: Sequence[int], first: int) -> list[Scored] | None:
    """The same from OpenAI's `echo` with `logprobs: 1`, which names the likeliest token beside each."""
    try:
        told = answer["choices"][0]["logprobs"]
        own, best = told["token_logprobs"], told["top_logprobs"]
        if len(own) < len(ids) or math.isnan(float(own[first])):
            return None
        pairs = zip(own[first : len(ids)], best[first : len(ids)], strict=True)
        return [Scored(float(value), float(value) >= max(top.values())) for value, top in pairs]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        return None
