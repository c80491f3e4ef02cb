"""Greedy decoding of many prompts at once, each in a sequence of its own; sequences that end make room for new ones.

The baseline's answers are fed first, whole: that gives the teacher-forced agreement, and what of them the model would
have said itself. From the first token on that differs, it goes on alone.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_quantbudget.engine.base import Decoded, Ends, Hear, NotFinite
from pytest_quantbudget.engine.llama_cpp.session import Session

BLOCK_LOGITS = 1 << 24  # elements of logits at once while drafts are fed
WORTH_SHARING = 32  # tokens that all prompts begin with, from which on they are computed once


@dataclass
class _Live:
    """An answer under way: its place, its sequence, and how many tokens of prompt and answer that holds."""

    place: int
    sequence: int
    fed: int


class Decoder:
    """Decodes prompts that begin with `prefix`, in at most `size` sequences at once; `what` names them in errors."""

    def __init__(self, session: Session, ends: Ends, prefix: Sequence[int], what: str) -> None:
        self.session, self.ends, self.what = session, ends, what
        self.prefix = list(prefix) if len(prefix) >= WORTH_SHARING else []

    def run(
        self, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]] | None, hear: Hear, size: int
    ) -> None:
        """The greedy continuation of each prompt; `hear` gets those that are complete.

        Raises NotFinite where logits that decide are NaN or infinite; MemoryError.
        """
        size = min(size, len(prompts))
        longest = max(
            len(prompt) + max(self.ends.most, len(drafts[i]) if drafts else 0) for i, prompt in enumerate(prompts)
        )
        # The last sequence holds what all begin with.
        self.session.shape(size + bool(self.prefix), longest, self.what)
        if self.prefix:
            self.session.feed([(size, 0, self.prefix, False)])
        self.prompts, self.drafts, self.hear = prompts, drafts, hear
        self.answers = [Decoded() for _ in prompts]
        self.began = time.perf_counter()
        waiting = collections.deque(range(len(prompts)))
        free = list(range(size))
        live: list[_Live] = []
        while waiting or live:
            if waiting and 2 * len(free) >= size:
                new = [_Live(waiting.popleft(), free.pop(), 0) for _ in range(min(len(free), len(waiting)))]
                self._begin(new, size)
                live += new
            else:
                self._step(live)
            done = [one for one in live if self.answers[one.place].done]
            free += [one.sequence for one in done]
            live = [one for one in live if not self.answers[one.place].done]
            self._report([one.place for one in done])

    def _begin(self, new: Sequence[_Live], shared: int) -> None:
        """Feed the prompts but for their last tokens, then the drafts."""
        start = len(self.prefix)
        for one in new:
            if start:
                self.session.copy(shared, one.sequence)
            else:
                self.session.cut(one.sequence, 0)
            one.fed = len(self.prompts[one.place]) - 1
        rows = [(one.sequence, start, self.prompts[one.place][start:-1], False) for one in new]
        rows = [row for row in rows if row[2]]
        if rows:
            self.session.feed(rows)
        if self.drafts is not None:
            self._verify(new, self.drafts)

    def _verify(self, new: Sequence[_Live], drafts: Sequence[Sequence[int]]) -> None:
        """Feed every draft whole, note its agreement, and accept its tokens up to the first that differs."""
        differing: set[int] = set()
        width = max(1, BLOCK_LOGITS // (self.session.vocabulary * len(new)))
        for at in range(0, max(len(drafts[one.place]) for one in new), width):
            open_ = [one for one in new if len(drafts[one.place]) > at]
            parts = [drafts[one.place][at : at + width] for one in open_]
            rows = []
            for one, part in zip(open_, parts, strict=True):
                before = self.prompts[one.place][-1] if at == 0 else drafts[one.place][at - 1]
                rows.append((one.sequence, one.fed + at, [before, *part[:-1]], True))
            choices, logprobs, finite = choose(self.session.feed(rows), [token for part in parts for token in part])
            row = 0
            for one, part in zip(open_, parts, strict=True):
                answer = self.answers[one.place]
                for wanted in part:
                    answer.agreed += choices[row] == wanted
                    answer.draft_logprob = (answer.draft_logprob or 0.0) + logprobs[row]
                    if one.place not in differing and not answer.done:
                        self._accept(answer, choices[row], finite=finite[row])
                        if choices[row] != wanted:
                            differing.add(one.place)
                    row += 1
        for one in new:
            one.fed += len(self.answers[one.place].ids)
            self.session.cut(one.sequence, one.fed)

    def _step(self, live: Sequence[_Live]) -> None:
        """Every open answer grows by one token."""
        newest = [(self.answers[one.place].ids or self.prompts[one.place])[-1] for one in live]
        rows = [(one.sequence, one.fed, [token], True) for one, token in zip(live, newest, strict=True)]
        choices, logprobs, finite = choose(self.session.feed(rows), None)
        for row, one in enumerate(live):
            answer = self.answers[one.place]
            self._accept(answer, choices[row], finite=finite[row])
            if self.drafts is None:
                answer.logprob = (answer.logprob or 0.0) + logprobs[row]
            one.fed += 1

    def _accept(self, answer: Decoded, token: int, *, finite: bool) -> None:
        if not finite:
            raise NotFinite(f"logits became NaN or infinite while answering {self.what}")
        self.ends.add(answer, token)

    def _report(self, places: Sequence[int]) -> None:
        for place in places:
            self.answers[place].seconds = time.perf_counter() - self.began
        if places:
            self.hear({place: self.answers[place] for place in places})


def choose(logits: Any, wanted: Sequence[int] | None) -> tuple[list[int], list[float], list[bool]]:
    """Of logits (rows, vocabulary): the greedy choices, log-probabilities, and whether the logits are numbers.

    The log-probabilities (nats) are those of the `wanted` tokens, or of the choices themselves.
    """
    scores = torch.from_numpy(logits)
    choices = scores.argmax(-1)
    finite = ~(scores.isnan() | scores.isposinf()).any(-1)
    index = choices if wanted is None else torch.tensor(list(wanted))
    logprobs = scores.gather(-1, index[:, None])[:, 0] - scores.logsumexp(-1)
    return choices.tolist(), logprobs.tolist(), finite.tolist()
