"""Answers to one task as they are given: stored in parts, so that a killed run loses few, and recalled by the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.measure.keys import Keys
from pytest_quantbudget.measure.store import Key, Store


def _silent(**message: Any) -> None:
    """Send no message."""


@dataclass
class KeptAnswers:
    """Where the answers to a task are kept: under keys that name the baseline's answers `drafts`, if there are any.

    Without a store nothing is kept. `say` sends messages to the parent process.
    """

    task: Task
    store: Store | None = None
    keys: Keys | None = None
    drafts: str | None = None
    say: Callable[..., None] = _silent
    _count: int = 0
    _parts: list[Key] = field(default_factory=list)

    def earlier(self) -> Iterator[TaskResult]:
        """The parts that earlier runs have kept; of a growing task first its result so far, for other limits."""
        if self.store is None or self.keys is None:
            return
        if self.task.start is not None:
            grown = self.store.get(self.keys.of(self.task, self.drafts))
            yield from codec.from_builtins(Measurement, grown.payload).tasks if grown else ()
        while True:
            key = self.keys.batch(self.task, len(self._parts), self.drafts)
            entry = self.store.get(key)
            if entry is None:
                return
            self._parts.append(key)
            try:
                yield codec.from_builtins(TaskResult, entry.payload)
            except ValueError as error:
                self.store.set_aside(key, str(error))

    def put(self, part: TaskResult) -> None:
        """Keep some answers."""
        if self.store is not None and self.keys is not None:
            self._parts.append(self.keys.batch(self.task, len(self._parts), self.drafts))
            self.store.put(self._parts[-1], codec.to_builtins(part))

    def report(self, answers: int, total: int) -> None:
        """Tell the parent process how many more answers are complete, of `total` that are asked for."""
        self._count += answers
        self.say(answered={"done": self._count, "total": total})

    def drop(self) -> None:
        """Remove the parts: the whole task is stored."""
        if self.store is not None:
            self.store.drop(self._parts)
