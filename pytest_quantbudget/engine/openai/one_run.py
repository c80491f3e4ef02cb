"""One timed run of a workload on a server: streams of sequences that are decoded at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.engine.base import NotOffered
from pytest_quantbudget.engine.openai.conversation import Conversation, at_once
from pytest_quantbudget.engine.openai.dialects import Asking

TRIES = 3  # of a run whose tokens are read together, which they are where server or client has too little of its CPU
TOGETHER_S = 1e-4  # between two chunks: no model decodes a token in less


class Bunched(NotOffered):
    """Many tokens were read with a first one: when that came, and how fast the others did, cannot be told."""


def one_run(
    talk: Conversation, workload: Workload, prompt: Callable[[], Sequence[int]], void: list[Bunched]
) -> tuple[float, float]:
    """Seconds until the first token of every sequence, and to decode all tokens after the first ones.

    Runs whose tokens arrive together are left out and stand in `void`. Raises Bunched where three in a row are, and
    NotOffered where a server gives another number of tokens than it is asked for.
    """
    for _ in range(TRIES - 1):
        try:
            return talk.run(_run(talk, workload, prompt))
        except Bunched as error:
            void.append(error)
    return talk.run(_run(talk, workload, prompt))


def together(times: Sequence[float]) -> int:
    """How many tokens came with the first: in its chunk, or in chunks one upon the other."""
    return next((i for i in range(1, len(times)) if times[i] - times[i - 1] > TOGETHER_S), len(times))


async def _run(talk: Conversation, workload: Workload, prompt: Callable[[], Sequence[int]]) -> tuple[float, float]:
    prompts = [prompt() for _ in range(workload.batch_size)]
    arrivals: list[list[float]] = []
    told: list[float] = []

    async def one(ids: Sequence[int]) -> None:
        times: list[float] = []
        async for at, piece in talk.pieces(Asking(ids, workload.new_tokens, fixed=True)):
            if piece.ids is not None:
                # llama-server streams no id of a token that ends within a character, but counts it.
                times += [at] * max(len(piece.ids), (piece.tokens or 0) - len(times))
            told.append(piece.decode_s)
        if len(times) != workload.new_tokens:
            raise NotOffered(f"{workload.new_tokens} tokens were asked for, and the server gave {len(times)}")
        arrivals.append(times)

    began = time.perf_counter()
    await at_once(len(prompts), [functools.partial(one, ids) for ids in prompts])
    begun, ended = max(times[0] for times in arrivals), max(times[-1] for times in arrivals)
    after = sum(at > begun for times in arrivals for at in times)
    if not after:
        raise Bunched("the server sent all tokens at once: how fast it decodes cannot be told")
    bunch = max(map(together, arrivals))
    if bunch > max(1, workload.new_tokens // 4):
        raise Bunched(f"the server sent {bunch} of {workload.new_tokens} tokens together, as the first ones")
    if min(times[-1] for times in arrivals) <= begun:
        # So it is where the server takes one at a time, and where nothing was read until one was done.
        raise Bunched("the server had decoded a sequence before it had the first token of another")
    decode_s = (ended - begun) * workload.batch_size * (workload.new_tokens - 1) / after
    # What was read late, and so together, was not decoded faster than the server says.
    return begun - began, max(decode_s, *told)
