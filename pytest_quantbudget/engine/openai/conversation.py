"""Many requests at once to one server, which is watched meanwhile: it may die, hang, or answer nonsense."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pytest_quantbudget.engine.openai.dialects import Asking, Dialect, Piece
from pytest_quantbudget.engine.openai.http import Client, Refused, ServerError
from pytest_quantbudget.engine.openai.probe import FAILED
from pytest_quantbudget.engine.openai.process import Running

T = TypeVar("T")

LOOK_S = 0.5  # between two looks at a server that is at work
STALL_S = 60.0  # without a single event before the server is asked whether it lives
HEALTH_S = 60.0  # for one token
LONGEST_S = 3600.0  # between two events of one request, while others are answered
EVENTS = 16  # of a stream for each token that is asked for: no server makes so many


class ServerFailed(RuntimeError):
    """A server that died, hangs, or answers nonsense; the end of its log stands behind the first line."""


class Conversation:
    """The requests to one server. `running` is its process, where this one has started it."""

    def __init__(self, client: Client, running: Running | None) -> None:
        self.client, self.running = client, running
        # Goes into what random prompts are drawn by: one that was there before may have cached those of another run.
        self.salt = secrets.token_hex(8) if running is None else ""
        # Set once the server has a dialect; asking for one token needs it.
        self.dialect: Dialect | None = None
        self.health_prompt: Sequence[int] | str = "1"
        self.broken = ""
        # asyncio.Runner is newer than the oldest Python that may run a measuring process.
        self._loop = asyncio.new_event_loop()
        self._heard = time.monotonic()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some requests. Raises ServerFailed, once and for all, where the server fails meanwhile."""
        if self.broken:
            work.close()
            raise ServerFailed(self.broken)
        try:
            return self._loop.run_until_complete(self._watched(work))
        except ServerError as error:
            words = self._words(error)
            # A request that was refused says nothing about the next one.
            self.broken = "" if isinstance(error, Refused) and error.status < FAILED else words
            raise ServerFailed(words) from error

    def _words(self, error: ServerError) -> str:
        """What happened, and the end of the server's log."""
        ended = self._ended(after_s=LOOK_S)
        what = f"{ended} ({error})" if ended and ended != str(error) else str(error)
        log = self.running.tail() if self.running is not None else ""
        return f"{what}\nthe end of its log:\n{log}" if log else what

    def _ended(self, after_s: float = 0.0) -> str | None:
        """How the server has ended; its guard may hear of that a little later than its connections."""
        until = time.monotonic() + after_s
        while self.running is not None:
            ended = self.running.ended
            if ended is not None or time.monotonic() >= until:
                return ended
            time.sleep(0.05)
        return None

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        self._heard = time.monotonic()
        task, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                watch.result()
            return await task
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _watch(self) -> None:
        """Ends, with the reason, when the server has died, or has sent nothing for long and answers no request."""
        while True:
            await asyncio.sleep(LOOK_S)
            ended = self.running.ended if self.running is not None else None
            if ended is not None:
                raise ServerError(ended)
            if time.monotonic() - self._heard < STALL_S:
                continue
            before = self._heard
            try:
                await self.health()
            except ServerError as error:
                if self._heard == before:
                    silent = time.monotonic() - before
                    raise ServerError(f"the server hangs: nothing came for {silent:.0f} s, and {error}") from error
            self._heard = time.monotonic()

    async def health(self, limit_s: float | None = None) -> None:
        """Have the server make one token: one that merely accepts connections may hang all the same."""
        if self.dialect is not None:
            body = self.dialect.body(Asking(self.health_prompt, 1), stream=False)
            await self.client.json(self.dialect.path(), body, limit_s or HEALTH_S)

    async def pieces(self, asking: Asking) -> AsyncGenerator[tuple[float, Piece], None]:
        """The answer to one request as it comes, each piece with its time of arrival (`time.perf_counter`).

        Raises ServerError where it goes on for ever: not all servers end where they are told to.
        """
        assert self.dialect is not None
        heard, most = 0, EVENTS * (asking.most + EVENTS)
        path, body = self.dialect.path(), self.dialect.body(asking, stream=True)
        async with aclosing(self.client.stream(path, body, LONGEST_S)) as events:
            async for at, event in events:
                self._heard = time.monotonic()
                heard += 1
                if heard > most:
                    raise ServerError(
                        f"an answer does not end: {asking.most:,} tokens were asked for, and {heard:,} events came"
                    )
                yield at, self.dialect.read(event)

    async def json(self, path: str, body: Any = None) -> Any:
        """The whole answer to one request."""
        answer = await self.client.json(path, body, LONGEST_S)
        self._heard = time.monotonic()
        return answer

    def close(self) -> None:
        """End the server that was started, and all connections."""
        try:
            self._loop.run_until_complete(self.client.close())
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
        finally:
            if self.running is not None:
                self.running.end()


async def at_once(count: int, jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run jobs in their order, at most `count` at once. The first error ends all of them."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    tasks = [asyncio.ensure_future(work()) for _ in range(min(count, len(jobs)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
