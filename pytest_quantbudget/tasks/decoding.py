"""Greedy decoding of many prompts with little work: a shared prefix, rows that leave, and answers that are known.

A method's answers are mostly the baseline's. So the baseline's answer is fed as a draft, in one pass, and decoding
starts only where the method's own greedy choice first differs; where its text later meets the draft again, the draft is
tried again (greedy speculative decoding: Leviathan et al. 2023, arXiv 2211.17192, section 2, at temperature 0, with a
text in place of the draft model). The same pass tells what the method thinks of the baseline's tokens.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_quantbudget.metrics import logits as checks
from pytest_quantbudget.tasks.rows import Rows

LEAVE = 8  # rows leave when one in so many is done
TRIED = 4, 16  # tokens of a draft that are tried at once: at first, and at most
BLOCK_LOGITS = 1 << 26  # elements of logits at once while drafts are fed
BLOCK_DRAFT = 16  # tokens of a draft at once: rows may leave in between
BLOCK_TOKENS = 1 << 14  # tokens at once in the prefill


@dataclass(frozen=True)
class Techniques:
    """What may be switched off, to see what it saves."""

    prefix: bool = True
    leave: bool = True
    draft: bool = True
    rejoin: bool = True


ALL = Techniques()


@dataclass
class Decoded:
    """What followed one prompt.

    `ids` end in the end token where one came; `seconds` run from the start of the batch until it was `done`. `logprob`
    sums the log-probabilities (nats) of the own tokens, where no draft was given. `agreed` counts the draft's tokens
    that are the own greedy choice after what stands before them in the draft, and `draft_logprob` sums their
    log-probabilities.
    """

    ids: list[int] = field(default_factory=list)
    done: bool = False
    cut_off: bool = False
    seconds: float = 0.0
    logprob: float | None = None
    agreed: int = 0
    draft_logprob: float | None = None


Watch = Callable[[Mapping[int, Decoded]], None]


class Ends:
    """When an answer is complete: an end token, a stop text, or its full length."""

    def __init__(self, tokenizer: Any, tokens: Sequence[int], texts: Sequence[str], most: int) -> None:
        self.tokenizer, self.tokens, self.texts, self.most = tokenizer, frozenset(tokens), texts, most
        self.last = {text[-1] for text in texts}
        self.window = 2 * max(map(len, texts), default=0)
        self._may_end = functools.cache(self._looks_like_an_end)

    def _looks_like_an_end(self, token: int) -> bool:
        piece = self.tokenizer.decode([token])
        return "\ufffd" in piece or any(letter in piece for letter in self.last)

    def add(self, answer: Decoded, token: int) -> None:
        """Append a token, and note whether the answer is complete with it."""
        answer.ids.append(token)
        if token in self.tokens or (self._may_end(token) and self._stopped(answer.ids)):
            answer.done = True
        elif len(answer.ids) >= self.most:
            answer.done = answer.cut_off = True

    def _stopped(self, ids: Sequence[int]) -> bool:
        tail = self.tokenizer.decode(ids[-self.window :], skip_special_tokens=True)
        return any(text in tail for text in self.texts)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, of each but the last."""
    low, high = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(low), len(high)) - 1
    same = next((i for i in range(most) if low[i] != high[i]), most)
    return list(low[: max(0, min(same, min(map(len, prompts)) - 1))])


class Decoder:
    """Decodes batches of prompts that share a prefix."""

    def __init__(
        self, model: Any, ends: Ends, prefix: Sequence[int] = (), techniques: Techniques = ALL, what: str = "prompts"
    ) -> None:
        self.model, self.ends, self.techniques, self.what = model, ends, techniques, what
        self.prefix = list(prefix) if techniques.prefix else []
        self.shared: Rows | None = None

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]] | None = None,
        watch: Watch = lambda done: None,
    ) -> list[Decoded]:
        """The greedy continuation of each prompt, in their order; `watch` hears of those that are complete.

        Raises metrics.logits.NotFinite where logits that decide are NaN or infinite.
        """
        batch = _Batch(self._prefill(prompts), prompts, watch)
        if drafts is not None and self.techniques.draft:
            self._verify(batch, drafts)
            guides = [_Guide(draft, answer.ids) for draft, answer in zip(drafts, batch.answers, strict=True)]
            self._decode(batch, guides if self.techniques.rejoin else None)
        else:
            self._decode(batch, None, told=drafts is None)
        return batch.answers

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Rows that hold all of each prompt but its last token."""
        start = len(self.prefix)
        if start and self.shared is None:
            self.shared = Rows(self.model, 1)
            self.shared.feed([self.prefix], logits=False)
        rows = Rows(self.model, len(prompts), self.shared)
        longest = max(map(len, prompts)) - 1
        width = max(1, BLOCK_TOKENS // len(prompts))
        for at in range(start, longest, width):
            rows.feed([prompt[:-1][at : at + width] for prompt in prompts], logits=False)
        return rows

    def _verify(self, batch: _Batch, drafts: Sequence[Sequence[int]]) -> None:
        """Feed every draft whole, note what is thought of its tokens, and take over what the own choice begins with."""
        before = batch.rows.lengths.tolist()
        parted = [False] * len(drafts)
        vocabulary = self.model.config.get_text_config().vocab_size
        width = max(1, min(BLOCK_DRAFT, BLOCK_LOGITS // (vocabulary * len(drafts))))
        for at in range(0, max(map(len, drafts)), width):
            parts = [drafts[i][at : at + width] for i in batch.live]
            fed = [
                [batch.last[i], *part[:-1]] if at == 0 else drafts[i][at - 1 : at + len(part) - 1]
                for i, part in zip(batch.live, parts, strict=True)
            ]
            choices, told, sound = _choices(batch.rows.feed(fed), parts)
            for row, (i, part) in enumerate(zip(batch.live, parts, strict=True)):
                answer = batch.answers[i]
                for t, wanted in enumerate(part):
                    answer.agreed += choices[row][t] == wanted
                    answer.draft_logprob = (answer.draft_logprob or 0.0) + told[row][t]
                    if not parted[i] and not answer.done:
                        self._need(sound[row][t])
                        self.ends.add(answer, choices[row][t])
                        parted[i] = choices[row][t] != wanted
            batch.tell()
            self._leave(batch, {i for i in batch.live if batch.answers[i].done and len(drafts[i]) <= at + width})
        batch.rows.cut([before[i] + len(batch.answers[i].ids) for i in batch.live])

    def _decode(self, batch: _Batch, guides: Sequence[_Guide] | None, *, told: bool = False) -> None:
        """Go on with every answer until it is complete; with `told`, note the log-probabilities."""
        answers = batch.answers
        while not all(answer.done for answer in answers):
            self._leave(batch, {i for i in batch.live if answers[i].done})
            tried = [
                guides[i].propose(self.ends.most - len(answers[i].ids)) if guides and not answers[i].done else []
                for i in batch.live
            ]
            lengths = batch.rows.lengths.tolist()
            scores = batch.rows.feed([[batch.newest(i), *more] for i, more in zip(batch.live, tried, strict=True)])
            choices, logprobs, sound = _choices(scores, [] if told else None)
            for row, i in enumerate(batch.live):
                for t, guess in enumerate([*tried[row], None]):
                    if answers[i].done:
                        break
                    self._need(sound[row][t])
                    self.ends.add(answers[i], choices[row][t])
                    if told:
                        answers[i].logprob = (answers[i].logprob or 0.0) + logprobs[row][t]
                    lengths[row] += 1
                    if choices[row][t] != guess:
                        break
                if guides and not answers[i].done:
                    guides[i].moved(answers[i].ids)
            batch.rows.cut(lengths)
            batch.tell()

    def _need(self, sound: bool) -> None:
        if not sound:
            raise checks.NotFinite(f"logits became NaN or infinite while answering {self.what}")

    def _leave(self, batch: _Batch, over: set[int]) -> None:
        """Let the rows of these answers go, once they are enough to be worth the copying."""
        left = [row for row, i in enumerate(batch.live) if i not in over]
        if self.techniques.leave and left and (len(batch.live) - len(left)) * LEAVE >= len(batch.live):
            batch.rows.keep(left)
            batch.live = [batch.live[row] for row in left]


class _Batch:
    """Answers under way: `live` says which answer each row belongs to."""

    def __init__(self, rows: Rows, prompts: Sequence[Sequence[int]], watch: Watch) -> None:
        self.rows, self.watch = rows, watch
        self.began = time.perf_counter()
        self.told: set[int] = set()
        self.last = [prompt[-1] for prompt in prompts]
        self.answers = [Decoded() for _ in prompts]
        self.live = list(range(len(prompts)))

    def tell(self) -> None:
        """Let the answers that are newly complete be known."""
        new = {i: self.answers[i] for i in self.live if self.answers[i].done and i not in self.told}
        if new:
            self.told |= set(new)
            for answer in new.values():
                answer.seconds = time.perf_counter() - self.began
            self.watch(new)

    def newest(self, i: int) -> int:
        """The last token of an answer, or of its prompt."""
        return self.answers[i].ids[-1] if self.answers[i].ids else self.last[i]


def _choices(
    scores: torch.Tensor, wanted: Sequence[Sequence[int]] | None
) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
    """Of logits (rows, block, vocabulary): the greedy choices, log-probabilities, and whether the logits are sound.

    The log-probabilities are those of the `wanted` tokens; of the choices themselves where that is empty; and are left
    out where it is None.
    """
    choices = scores.argmax(-1)
    sound = ~(scores.isnan() | scores.isposinf()).any(-1)
    if wanted is None:
        return choices.tolist(), [], sound.tolist()
    index = choices
    if wanted:
        longest = scores.shape[1]
        index = torch.tensor([[*row, *[0] * (longest - len(row))] for row in wanted], device=scores.device)
    picked = scores.gather(-1, index[..., None])[..., 0].float()
    told = picked - scores.float().logsumexp(-1)
    return choices.tolist(), told.tolist(), sound.tolist()


class _Guide:
    """Where an answer stands in its draft: what of the draft is worth trying next."""

    def __init__(self, draft: Sequence[int], ids: Sequence[int]) -> None:
        self.draft = draft
        self.seen = 0  # tokens of the answer that were looked at
        self.at: int | None = 0  # the draft's token that should come next, or None where the texts have parted
        self.hope = 0  # where the texts meet again if each token stands for one
        self.size = TRIED[0]
        self.pairs: dict[tuple[int, int], list[int]] = {}
        for i, pair in enumerate(itertools.pairwise(draft)):
            self.pairs.setdefault(pair, []).append(i + 2)
        self.moved(ids)

    def moved(self, ids: Sequence[int]) -> None:
        """Take in the tokens that the answer has grown by."""
        for i in range(self.seen, len(ids)):
            at = self.at if self.at is not None else self.hope
            if at < len(self.draft) and ids[i] == self.draft[at]:
                self.size = min(2 * self.size, TRIED[1]) if self.at is not None else TRIED[0]
                self.at = at + 1
                continue
            self.at, self.hope = None, at + 1
            ends = self.pairs.get((ids[i - 1], ids[i]), []) if i else []
            if ends:
                self.at = min(ends, key=lambda end: abs(end - self.hope))
                self.size = TRIED[0]
        self.seen = len(ids)

    def propose(self, most: int) -> Sequence[int]:
        """Tokens of the draft to try next, fewer than `most`."""
        return [] if self.at is None else self.draft[self.at : self.at + min(self.size, most - 1)]
