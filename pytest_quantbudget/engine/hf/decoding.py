"""Greedy decoding with prefix sharing, continuous batching, and the baseline's answers as speculative drafts.

A method's answers are mostly the baseline's. So the baseline's answer is fed as a draft, in one pass, and decoding
starts only where the method's own greedy choice first differs; where its text later meets the draft again, the draft is
tried again (greedy speculative decoding: Leviathan et al. 2023, arXiv 2211.17192, section 2, at temperature 0, with a
text in place of the draft model). The same pass gives the teacher-forced greedy match and log-probability on the draft.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pytest_quantbudget.engine.base import Decoded, Ends, Hear, NotFinite
from pytest_quantbudget.engine.hf.ragged_cache import Rows

LEAVE = 8  # complete rows are removed once they are one in so many
TRIED = 4, 16  # tokens of a draft that are verified at once: at first, and at most
# Tokens in one pass that take little longer than one token: the weights have to be read anyway.
FREE_TOKENS = {"cuda": 512, "cpu": 32}
BLOCK_LOGITS = 1 << 26  # elements of logits at once while drafts are fed
BLOCK_DRAFT = 16  # tokens of a draft in one pass: rows may be removed in between
BLOCK_TOKENS = 1 << 14  # tokens of all rows in one pass of the prefill


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with; no prompt's last one, which has to be fed for its answer to begin."""
    low, high = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(low), len(high)) - 1
    same = next((i for i in range(most) if low[i] != high[i]), most)
    return list(low[: max(0, min(same, min(map(len, prompts)) - 1))])


class Decoder:
    """Decodes prompts that share a prefix, at most `size` at once. `what` names them in errors."""

    def __init__(
        self,
        model: Any,
        ends: Ends,
        size: int,
        prefix: Sequence[int] = (),
        what: str = "prompts",
    ) -> None:
        self.model, self.ends, self.size, self.what = model, ends, size, what
        self.prefix = list(prefix)
        self.shared: Rows | None = None
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.free = FREE_TOKENS.get(model.device.type, FREE_TOKENS["cpu"])

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]] | None = None,
        hear: Hear = lambda done: None,
    ) -> list[Decoded]:
        """The greedy continuation of each prompt, in their order; `hear` gets those that are complete.

        Raises NotFinite where logits that decide are NaN or infinite.
        """
        state = _State(prompts, drafts, hear, scored=drafts is None)
        waiting = collections.deque(range(len(prompts)))
        pool: _Pool | None = None
        while waiting or pool is not None:
            left = 0 if pool is None else sum(not state.answers[i].done for i in pool.live)
            if waiting and left <= self.size // 2:
                pool = pool and pool.only(state.open(pool.live))
                new = self._begin([waiting.popleft() for _ in range(min(len(waiting), self.size - left))], state)
                pool = pool.joined(new) if pool and new else pool or new
            elif pool is not None:
                self._step(pool, state)
                pool = self._compact(pool, state.open(pool.live))
        return state.answers

    def _begin(self, chosen: Sequence[int], state: _State) -> _Pool | None:
        """Rows for the prompts, without those whose drafts turned out to be their whole answers."""
        pool = _Pool(self._prefill([state.prompts[i] for i in chosen]), list(chosen))
        if state.drafts is None:
            return pool
        left = self._verify(pool, state, state.drafts)
        for i in left.live if left else ():
            state.guides[i] = _Guide(state.drafts[i], state.answers[i].ids)
        return left

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Rows that hold all of each prompt but its last token."""
        start = len(self.prefix)
        if start and self.shared is None:
            shared = Rows(self.model, 1)
            shared.feed([self.prefix], logits=False)
            # Only now: where memory runs out on the way, the rows do not hold the whole prefix.
            self.shared = shared
        rows = Rows(self.model, len(prompts), self.shared)
        longest = max(map(len, prompts)) - 1
        width = max(1, BLOCK_TOKENS // len(prompts))
        for at in range(start, longest, width):
            rows.feed([prompt[:-1][at : at + width] for prompt in prompts], logits=False)
        return rows

    def _verify(self, pool: _Pool, state: _State, drafts: Sequence[Sequence[int]]) -> _Pool | None:
        """Feed every draft whole, note its agreement, and accept its tokens up to the first that differs."""
        before = dict(zip(pool.live, pool.rows.lengths.tolist(), strict=True))
        differing: set[int] = set()
        width = max(1, min(BLOCK_DRAFT, BLOCK_LOGITS // (self.vocabulary * len(pool.live))))
        at = 0
        rest: _Pool | None = pool
        while rest is not None and any(len(drafts[i]) > at for i in rest.live):
            parts = [drafts[i][at : at + width] for i in rest.live]
            fed = [state.before(i, at, len(part)) for i, part in zip(rest.live, parts, strict=True)]
            choices, logprobs, finite = _choices(rest.rows.feed(fed), parts)
            for row, (i, part) in enumerate(zip(rest.live, parts, strict=True)):
                answer = state.answers[i]
                for t, wanted in enumerate(part):
                    answer.agreed += choices[row][t] == wanted
                    answer.draft_logprob = (answer.draft_logprob or 0.0) + logprobs[row][t]
                    if i not in differing and not answer.done:
                        self._check(finite[row][t])
                        self.ends.add(answer, choices[row][t])
                        if choices[row][t] != wanted:
                            differing.add(i)
            at += width
            state.report([i for i in rest.live if len(drafts[i]) <= at])
            rest = self._compact(rest, [i for i in rest.live if not state.answers[i].done or len(drafts[i]) > at])
        if rest is not None:
            rest.rows.cut([before[i] + len(state.answers[i].ids) for i in rest.live])
            rest = rest.only(state.open(rest.live))
        return rest

    def _step(self, pool: _Pool, state: _State) -> None:
        """One pass: every open answer grows by one token, and by those of its draft that are accepted."""
        room = self.free // len(pool.live) - 1
        tried = [state.propose(i, min(room, self.ends.most - len(state.answers[i].ids) - 1)) for i in pool.live]
        lengths = pool.rows.lengths.tolist()
        scores = pool.rows.feed([[state.newest(i), *more] for i, more in zip(pool.live, tried, strict=True)])
        choices, logprobs, finite = _choices(scores, [] if state.scored else None)
        for row, i in enumerate(pool.live):
            answer = state.answers[i]
            for t, guess in enumerate([*tried[row], None]):
                if answer.done:
                    break
                self._check(finite[row][t])
                self.ends.add(answer, choices[row][t])
                if state.scored:
                    answer.logprob = (answer.logprob or 0.0) + logprobs[row][t]
                lengths[row] += 1
                if choices[row][t] != guess:
                    break
            if i in state.guides and not answer.done:
                state.guides[i].follow(answer.ids)
        pool.rows.cut(lengths)
        state.report(pool.live)

    def _compact(self, pool: _Pool, wanted: Sequence[int]) -> _Pool | None:
        """The pool with the `wanted` answers alone, once enough others are in it to be worth copying the cache."""
        gone = len(pool.live) - len(wanted)
        return pool.only(wanted) if gone * LEAVE >= len(pool.live) else pool

    def _check(self, finite: bool) -> None:
        if not finite:
            raise NotFinite(f"logits became NaN or infinite while answering {self.what}")


class _State:
    """All answers of a run, open and complete; with `scored`, they sum the log-probabilities of their own tokens."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]] | None,
        hear: Hear,
        *,
        scored: bool,
    ) -> None:
        self.prompts, self.drafts, self.hear, self.scored = prompts, drafts, hear, scored
        self.answers = [Decoded() for _ in prompts]
        self.guides: dict[int, _Guide] = {}
        self.began = time.perf_counter()
        self.reported: set[int] = set()

    def open(self, some: Sequence[int]) -> list[int]:
        """The answers among `some` that are not complete."""
        return [i for i in some if not self.answers[i].done]

    def report(self, some: Sequence[int]) -> None:
        """Report those that are newly complete."""
        new = {i: self.answers[i] for i in some if self.answers[i].done and i not in self.reported}
        if new:
            self.reported |= set(new)
            for answer in new.values():
                answer.seconds = time.perf_counter() - self.began
            self.hear(new)

    def before(self, i: int, at: int, length: int) -> list[int]:
        """The tokens after which a draft's next `length` tokens from `at` stand, one for each."""
        draft = self.drafts[i] if self.drafts else []
        return (
            [self.prompts[i][-1], *draft[: length - 1]][:length] if at == 0 else list(draft[at - 1 : at + length - 1])
        )

    def newest(self, i: int) -> int:
        """The last token of an answer, or of its prompt."""
        return (self.answers[i].ids or self.prompts[i])[-1]

    def propose(self, i: int, most: int) -> Sequence[int]:
        """The draft's next tokens for an answer, at most so many."""
        return self.guides[i].propose(most) if i in self.guides and not self.answers[i].done else []


@dataclass
class _Pool:
    """Answers under way: `live` says which answer each row belongs to."""

    rows: Rows
    live: list[int]

    def only(self, wanted: Sequence[int]) -> _Pool | None:
        """The rows of some answers; None where there are none."""
        if not wanted:
            return None
        if len(wanted) < len(self.live):
            kept = set(wanted)
            self.rows.keep([row for row, i in enumerate(self.live) if i in kept])
        return _Pool(self.rows, list(wanted))

    def joined(self, other: _Pool) -> _Pool:
        """The rows of both."""
        self.rows.join(other.rows)
        return _Pool(self.rows, self.live + other.live)


def _choices(
    scores: torch.Tensor, wanted: Sequence[Sequence[int]] | None
) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
    """Of logits (rows, block, vocabulary): the greedy choices, log-probabilities, and whether the logits are numbers.

    The log-probabilities are those of the `wanted` tokens; of the choices themselves where that is empty; and are left
    out where it is None.
    """
    choices = scores.argmax(-1)
    finite = ~(scores.isnan() | scores.isposinf()).any(-1)
    if wanted is None:
        return choices.tolist(), [], finite.tolist()
    index = choices
    if wanted:
        longest = scores.shape[1]
        index = torch.tensor([[*row, *[0] * (longest - len(row))] for row in wanted], device=scores.device)
    picked = scores.gather(-1, index[..., None])[..., 0].float()
    logprobs = picked - scores.float().logsumexp(-1)
    return choices.tolist(), logprobs.tolist(), finite.tolist()


class _Guide:
    """Where an answer stands in its draft, and so which tokens of the draft to verify next."""

    def __init__(self, draft: Sequence[int], ids: Sequence[int]) -> None:
        self.draft = draft
        self.seen = 0  # tokens of the answer that were looked at
        self.at: int | None = 0  # the draft's token that should come next, or None where the texts differ
        self.expected = 0  # where the texts would meet again if tokens were replaced one by one
        self.size = TRIED[0]
        self.pairs: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(itertools.pairwise(draft)):
            self.pairs.setdefault(pair, []).append(i + 2)
        self.follow(ids)

    def follow(self, ids: Sequence[int]) -> None:
        """Follow the tokens by which the answer has grown."""
        for i in range(self.seen, len(ids)):
            at = self.at if self.at is not None else self.expected
            if at < len(self.draft) and ids[i] == self.draft[at]:
                self.size = min(2 * self.size, TRIED[1]) if self.at is not None else TRIED[0]
                self.at = at + 1
                continue
            self.at, self.expected = None, at + 1
            ends = self.pairs.get((ids[i - 1], ids[i]), []) if i else []
            if ends:
                self.at = min(ends, key=lambda end: abs(end - self.expected))
                self.size = TRIED[0]
        self.seen = len(ids)

    def propose(self, most: int) -> Sequence[int]:
        """Tokens of the draft to verify next, at most so many."""
        return [] if self.at is None else self.draft[self.at : self.at + max(0, min(self.size, most))]
