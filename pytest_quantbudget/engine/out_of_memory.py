"""What happens where memory runs out: less is done at once."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# What failed allocations say, on GPUs and on CPUs; "could not create a primitive" is oneDNN's, which found no memory
# for its code.
OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cannot allocate memory",
    "could not create a primitive",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or a CPU: torch has a class for the former only."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        # torch.OutOfMemoryError is a RuntimeError, and says so in words too.
        isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)
    )


def release() -> None:
    """Give memory that nothing holds any more back to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass
class Batching:
    """How much is done at once: `size`, which is halved where memory runs out; 0 leaves it to the engine.

    `tried` is what was tried at once before memory ran out for the first time, None if it never did. `slow` says in
    words that follow "answers" how they come about where the model cannot be run the fast way.
    """

    size: int = 0
    tried: int | None = None
    slow: str = ""

    def attempt(self, action: Callable[[], T], left: Callable[[], int]) -> T | None:
        """What `action` returns; None where memory ran out: then half as much is next, of the `left` at most.

        Raises what the action raises, a lack of memory too where only one thing was done at once.
        """
        try:
            return action()
        except Exception as error:
            if self.size == 1 or not is_out_of_memory(error):
                raise
        # Only here the exception no longer holds the frames, and so the memory, of the failed attempt.
        release()
        before = min(self.size, left())
        self.tried = self.tried or before
        self.size = max(1, before // 2)
        logging.getLogger(__name__).warning("out of memory with %d at once; now %d", before, self.size)
        return None
