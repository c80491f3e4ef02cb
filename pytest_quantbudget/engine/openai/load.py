"""Requests under load: sent at a fixed concurrency or a fixed rate, their tokens counted as they arrive.

Every prompt is another one, so that no prefix cache of the server answers for the model. What the client adds to the
times is shown by `benchmarks/load_cost.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.load import (
    CONCURRENCY,
    GARBLED,
    LENGTH,
    LOST,
    MIDWAY,
    SILENT,
    TIMEOUT,
    Level,
    Load,
    LoadResult,
    Served,
)
from pytest_quantbudget.engine.base import Tell
from pytest_quantbudget.engine.openai import counters, guidellm
from pytest_quantbudget.engine.openai.conversation import Conversation, at_once
from pytest_quantbudget.engine.openai.dialects import Asking
from pytest_quantbudget.engine.openai.http import Garbled, Late, Refused, ServerError, Unreachable
from pytest_quantbudget.tasks import texts

TRIES = 1000  # to draw a prompt that there has not been yet
TELL_S = 0.5  # between two words on how many requests have ended


def run(
    talk: Conversation,
    load: Load,
    tokenizer: Any,
    folder: Path | None = None,
    tell: Tell = lambda done, total: None,
) -> LoadResult:
    """What comes of a load; another tool finds the tokenizer in the `folder`.

    Raises ServerFailed where the server dies or hangs, ValueError for too few prompts, and GuidellmFailed.
    """
    return talk.run(Generator(talk, load, prompts(load, tokenizer, talk.salt), folder, tell).result())


def ordinary(tokenizer: Any) -> list[int]:
    """The ids of all tokens but special ones."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    return [token for token in range(len(tokenizer)) if token not in special]


def prompts(load: Load, tokenizer: Any, salt: str = "") -> Iterator[list[int]]:
    """Prompts of token ids, no two alike: random tokens but special ones, or windows of a text at random places."""
    drawn, n = random.Random(f"{load.seed}{salt}"), load.prompt_tokens
    if load.file is not None:
        text = texts.read_text(Path(load.file))
        ids = [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        what = f"{Path(load.file).name} holds {len(ids):,} tokens"

        def draw() -> list[int]:
            start = drawn.randrange(len(ids) - n + 1) if len(ids) >= n else 0
            return ids[start : start + n]

    else:
        known = ordinary(tokenizer)
        what = f"the vocabulary holds {len(known):,} tokens"

        def draw() -> list[int]:
            return drawn.choices(known, k=n)

    seen: set[int] = set()  # hashes: two prompts of one hash are a draw more
    while True:
        found = next((each for each in (draw() for _ in range(TRIES)) if hash(tuple(each)) not in seen), [])
        if len(found) != n:
            raise ValueError(f"load: {what}, too few for as many different prompts of {n:,} tokens")
        seen.add(hash(tuple(found)))
        yield found


@dataclass
class _Heard:
    """What came of a request so far; times are those of `time.perf_counter`, seconds."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    ids: int = 0
    told: int | None = None
    cached: int = 0
    ended: float = 0.0
    error: str = ""

    def served(self, began: float) -> Served:
        """The record. Arrivals are rounded to microseconds before they are subtracted, so that sums stay right."""
        at = [round((arrival - self.sent) * 1e6) for arrival in self.arrivals]
        waits = " ".join(str(later - earlier) for earlier, later in itertools.pairwise(at))
        first = max(at[0], 1) / 1e6 if at else 0.0
        return Served(round(self.sent - began, 6), first, waits, self.tokens, self.error, self.cached)

    @property
    def tokens(self) -> int:
        """Ids that came, or as many as the server says it made: llama-server sends none for a part of a letter."""
        return max(self.ids, self.told or 0, len(self.arrivals))


class Generator:
    """Sends the requests of a load, level by level."""

    def __init__(
        self,
        talk: Conversation,
        load: Load,
        drawn: Iterator[list[int]],
        folder: Path | None = None,
        tell: Tell = lambda done, total: None,
    ) -> None:
        self.talk, self.load, self.prompts, self.folder, self.tell = talk, load, drawn, folder, tell
        self.ended, self.total = 0, sum(load.requests + load.warmup_at(*level) for level in load.levels)
        self.told_at = 0.0
        self.tool: str | None = None
        self.times = random.Random(f"times {load.seed}")
        self.drafted, self.accepted, self.made = 0, 0, 0
        self._asking_for_life = asyncio.Lock()

    async def result(self) -> LoadResult:
        """All levels."""
        levels, notes = [], []
        counts = counters.Counts()
        for way, value in self.load.levels:
            await self._warm_up(way, value)
            self.drafted = self.accepted = self.made = 0
            before = await counters.read(self.talk.client)
            levels.append(await self._level(way, value))
            after = await counters.read(self.talk.client)
            came = (after - before) if after and before else counters.Counts()
            if not came.drafts:
                came += counters.Counts.of_answers(self.drafted, self.accepted, self.made)
            counts += came
        if counts.cached and not any(served.cached for level in levels for served in level.served):
            notes.append(f"{counts.cached:,} tokens of prompts came from a prefix cache, as the server's metrics say")
        return LoadResult(
            self.load,
            tuple(levels),
            drafts=counts.drafts or None,
            accepted=counts.accepted if counts.drafts else None,
            undrafted="" if counts.drafts else counters.UNDRAFTED,
            notes=tuple(notes),
            tool=self.tool,
        )

    async def _warm_up(self, way: str, value: float) -> None:
        count = self.load.warmup_at(way, value)
        await self._at_once(int(value) if way == CONCURRENCY else Load.WARMUP, self._drawn(count))

    def _drawn(self, count: int) -> list[list[int]]:
        """So many prompts, drawn before the clock runs: that takes a while, and no stream is read meanwhile."""
        return [next(self.prompts) for _ in range(count)]

    async def _level(self, way: str, value: float) -> Level:
        if self.load.tool is not None and self.folder is not None:
            found, self.tool = await guidellm.level(self.talk.client, self.load, way, value, self.folder)
            self._count(len(found.served))
            return found
        prompts = self._drawn(self.load.requests)
        began = time.perf_counter()
        if way == CONCURRENCY:
            heard, behind = await self._at_once(int(value), prompts), 0.0
        else:
            heard, behind = await self._at_rate(value, prompts, began)
        heard.sort(key=lambda each: each.sent)
        served = [each.served(began) for each in heard]
        pairs = zip(heard, served, strict=True)
        # Of an answer, what comes after its last token is no part of the level.
        ends = [own.sent_s + own.e2e_s if not own.error else each.ended - began for each, own in pairs]
        return Level(way, value, max(ends), tuple(served), behind)

    async def _at_once(self, most: int, prompts: Sequence[Sequence[int]]) -> list[_Heard]:
        """A request a prompt, of which as many are open as may be."""
        heard: list[_Heard] = []

        async def one(prompt: Sequence[int]) -> None:
            heard.append(await self._serve(prompt))

        await at_once(most, [functools.partial(one, prompt) for prompt in prompts])
        return heard

    async def _at_rate(self, rate: float, prompts: Sequence[Sequence[int]], began: float) -> tuple[list[_Heard], float]:
        """Requests at times of a Poisson process, and how much later than that one was sent at most."""
        due = [began]
        tasks: list[asyncio.Task[_Heard]] = []
        try:
            for prompt in prompts:
                await asyncio.sleep(max(0.0, due[-1] - time.perf_counter()))
                tasks.append(asyncio.ensure_future(self._serve(prompt)))
                due.append(due[-1] + self.times.expovariate(rate))
            heard = list(await asyncio.gather(*tasks))
            return heard, round(max(each.sent - at for each, at in zip(heard, due, strict=False)), 6)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, prompt: Sequence[int]) -> _Heard:
        """One request, whatever comes of it. Raises ServerError where the server is gone."""
        heard = _Heard(time.perf_counter())
        try:
            async with asyncio.timeout(self.load.timeout_s):
                await self._hear(prompt, heard)
        except (TimeoutError, Late):
            heard.error = TIMEOUT
        except Refused as error:
            heard.error = f"status {error.status}"
        except Garbled:
            heard.error = GARBLED
        except Unreachable:
            heard.error = LOST
        except ServerError:
            heard.error = MIDWAY
        heard.ended = time.perf_counter()
        if not heard.error and heard.tokens != self.load.new_tokens:
            heard.error = LENGTH
        elif not heard.error and not heard.arrivals:
            heard.error = SILENT
        if heard.error == LOST:
            # One that is gone fails all that are left within a moment: that is told as what it is.
            async with self._asking_for_life:
                # One that refuses to answer is there.
                with contextlib.suppress(Refused):
                    await self.talk.health()
        self._count(1)
        return heard

    def _count(self, requests: int) -> None:
        """So many more have ended; not every one of them is told, which would take time from the others."""
        self.ended += requests
        now = time.monotonic()
        if now - self.told_at >= TELL_S or self.ended == self.total:
            self.told_at = now
            self.tell(self.ended, self.total)

    async def _hear(self, prompt: Sequence[int], heard: _Heard) -> None:
        asking = Asking(prompt, self.load.new_tokens, fixed=True)
        async with aclosing(self.talk.pieces(asking)) as pieces:
            async for at, piece in pieces:
                # Of a stream without ids the text tells when something came, and the usage how many tokens it was.
                if piece.ids or (piece.text and not heard.ids):
                    heard.arrivals.append(at)
                    heard.ids += len(piece.ids or ())
                heard.told = piece.tokens if piece.tokens is not None else heard.told
                heard.cached = piece.cached or heard.cached
                self.drafted += piece.drafted or 0
                self.accepted += piece.accepted or 0
        self.made += heard.tokens
