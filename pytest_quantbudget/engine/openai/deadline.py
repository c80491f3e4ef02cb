"""A time limit for what awaits, on every Python that may run a measuring process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

if sys.version_info >= (3, 11):  # noqa: UP036  # the plugin needs 3.11, a measuring process only 3.10
    deadline = asyncio.timeout
else:

    @contextlib.asynccontextmanager
    async def deadline(limit_s: float) -> AsyncIterator[None]:
        """Raises TimeoutError where its body takes longer than `limit_s`, in seconds: `asyncio.timeout` of 3.11."""
        task, late = asyncio.current_task(), False

        def end() -> None:
            nonlocal late
            late = True
            task.cancel()

        handle = asyncio.get_running_loop().call_later(limit_s, end)
        try:
            yield
        except asyncio.CancelledError:
            if late:
                raise TimeoutError from None
            raise
        finally:
            handle.cancel()
