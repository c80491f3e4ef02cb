"""Asking a loaded model: greedy answers to all questions of a task, in batches, kept as they come."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pytest_quantbudget.measurement import Agreement, Answer, Task, TaskResult, draft_id
from pytest_quantbudget.metrics import memory
from pytest_quantbudget.metrics.speed import check_positions, end_tokens
from pytest_quantbudget.tasks import extraction, plain, rows
from pytest_quantbudget.tasks.decoding import ALL, Decoded, Decoder, Ends, Techniques, shared_prefix
from pytest_quantbudget.tasks.prompts import Asked, Prompter
from pytest_quantbudget.tasks.questions import Question

AT_ONCE = 256  # questions of a batch where the budget says `auto` and memory allows
SHARE_OF_FREE = 0.6  # of the free memory, for keys and values


class Kept(Protocol):
    """Where finished batches are kept and found again, by number, and who hears of answers."""

    def get(self, number: int) -> TaskResult | None:
        """A batch that was finished before."""

    def put(self, number: int, batch: TaskResult) -> None:
        """Keep a finished batch."""

    def shrunk(self, asked: int, held: int) -> None:
        """Memory ran out with `asked` questions at once, and held `held`."""

    def answered(self, answers: Sequence[Answer], total: int) -> None:
        """So many more answers are there."""


class Nowhere:
    """Keeps nothing."""

    def get(self, number: int) -> TaskResult | None:
        """Nothing."""
        return None

    def put(self, number: int, batch: TaskResult) -> None:
        """Nothing."""

    def shrunk(self, asked: int, held: int) -> None:
        """Nothing."""

    def answered(self, answers: Sequence[Answer], total: int) -> None:
        """Nothing."""


def run(
    model: Any,
    tokenizer: Any,
    task: Task,
    asked: Sequence[Asked],
    kept: Kept | None = None,
    baseline: TaskResult | None = None,
    techniques: Techniques = ALL,
) -> TaskResult:
    """Ask every question, in batches of like length that do not depend on which of them an earlier run has finished.

    Longest prompts go first, so that memory runs out at once or not at all; then the batch is halved. The `baseline`'s
    answers to the same questions serve as drafts. Raises ValueError where a prompt and its answer need more positions
    than the model has, logits.NotFinite where its logits break down.
    """
    kept = kept or Nowhere()
    asking = _Asking(model, tokenizer, task, asked, kept, baseline, techniques)
    order = sorted(range(len(asked)), key=lambda i: -len(asking.prompts[i]))
    group = task.batch_size or AT_ONCE
    batches: list[TaskResult] = []
    answers: dict[int, Answer] = {}
    resumed = 0
    for number, start in enumerate(range(0, len(order), group)):
        batch = order[start : start + group]
        known = kept.get(number)
        if known is not None and [a.question for a in known.answers] == [asked[i].question.index for i in batch]:
            done, resumed = known, resumed + len(batch)
            kept.answered(done.answers, len(asked))
        else:
            done = asking.batch(batch)
            kept.put(number, done)
        batches.append(done)
        answers.update(zip(batch, done.answers, strict=True))
    return TaskResult(
        task,
        tuple(answers[i] for i in range(len(asked))),
        sum(batch.seconds for batch in batches),
        resumed=resumed,
        agreement=_sum([batch.agreement for batch in batches]),
    )


def _sum(parts: Sequence[Agreement | None]) -> Agreement | None:
    told = [part for part in parts if part is not None]
    if not told or len(told) < len(parts):
        return None
    return Agreement(
        told[0].against,
        sum(part.tokens for part in told),
        sum(part.agreed for part in told),
        sum(part.logprob for part in told),
        sum(part.baseline_logprob for part in told),
    )


class _Asking:
    """One task asked of one model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        asked: Sequence[Asked],
        kept: Kept,
        baseline: TaskResult | None,
        techniques: Techniques,
    ) -> None:
        self.model, self.tokenizer, self.task, self.asked, self.kept = model, tokenizer, task, asked, kept
        self.prompter = Prompter(tokenizer, task)
        self.texts = [self.prompter.text(each) for each in asked]
        self.prompts = [self.prompter.tokens(text) for text in self.texts]
        self.longest = max(map(len, self.prompts)) + task.max_new_tokens
        check_positions(model, self.longest, task.phase)
        self.known = _drafts(baseline, asked)
        self.against = baseline
        self.ends = Ends(tokenizer, end_tokens(model), self.prompter.style.stops, task.max_new_tokens)
        why = rows.unfit(model, self.longest)
        if why:
            logging.getLogger(__name__).warning("answers come from transformers' generate: %s", why)
        prefix = shared_prefix(self.prompts)
        self.decoder = None if why else Decoder(model, self.ends, prefix, techniques, task.phase)
        self.size = task.batch_size or self.fitting()

    def fitting(self) -> int:
        """How many questions' keys and values find room at once."""
        free = memory.free_bytes(self.model)
        if free is None or self.decoder is None:
            return AT_ONCE
        each = self.longest * rows.bytes_a_token(self.model)
        return int(max(1, min(AT_ONCE, SHARE_OF_FREE * free // each)))

    def batch(self, batch: Sequence[int]) -> TaskResult:
        """The answers to one batch, at most `size` of them at once; that is halved where memory runs out."""
        began = time.perf_counter()
        answers: list[Answer] = []
        decoded: list[Decoded] = []
        before = self.size
        while len(decoded) < len(batch):
            part = batch[len(decoded) : len(decoded) + self.size]
            try:
                found = self.decode(part)
            except Exception as error:
                if len(part) == 1 or not memory.is_out_of_memory(error):
                    raise
                found = None
            if found is None:  # out here, where the exception no longer holds the frames of the failed attempt
                memory.free()
                self.size = len(part) // 2
                logging.getLogger(__name__).warning(
                    "out of memory with %d questions at once; going on with %d", len(part), self.size
                )
                continue
            decoded += found
            answers += [self.read(i, each) for i, each in zip(part, found, strict=True)]
        if self.size < before:
            self.kept.shrunk(before, self.size)
        agreement = self.agreement(batch, decoded)
        return TaskResult(self.task, tuple(answers), time.perf_counter() - began, agreement=agreement)

    def decode(self, part: Sequence[int]) -> list[Decoded]:
        """What follows some of the prompts."""
        if self.decoder is None:
            found = plain.generate(
                self.model, self.tokenizer, [self.prompts[i] for i in part], self.ends, self.task.phase
            )
            self.kept.answered([self.read(i, each) for i, each in zip(part, found, strict=True)], len(self.asked))
            return found

        def heard(done: Mapping[int, Decoded]) -> None:
            self.kept.answered([self.read(part[i], answer) for i, answer in done.items()], len(self.asked))

        drafts = [self.known[i].ids for i in part] if self.known else None
        return self.decoder.run([self.prompts[i] for i in part], drafts, heard)

    def agreement(self, batch: Sequence[int], decoded: Sequence[Decoded]) -> Agreement | None:
        """What the model thought of the baseline's answers to a batch."""
        if not self.known or self.against is None or any(answer.draft_logprob is None for answer in decoded):
            return None
        drafts = [self.known[i] for i in batch]
        if any(draft.logprob is None for draft in drafts):
            return None
        return Agreement(
            draft_id(self.against) or "",
            sum(len(draft.ids) for draft in drafts),
            sum(answer.agreed for answer in decoded),
            sum(answer.draft_logprob or 0.0 for answer in decoded),
            sum(draft.logprob or 0.0 for draft in drafts),
        )

    def read(self, i: int, decoded: Decoded) -> Answer:
        """What was decoded, as an answer to a question."""
        question: Question = self.asked[i].question
        style = self.prompter.style
        ids = [token for token in decoded.ids if token not in self.ends.tokens]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if self.prompter.chats:  # what was thought first is not the answer
            text = text.rpartition("</think>")[2].lstrip() if "</think>" in text else text
        text = extraction.cut_at_stop(text, style.stops)
        target = style.target(question.answer)
        strict, flexible = extraction.strict(text, style.strict), extraction.flexible(text)
        return Answer(
            question=question.index,
            text=text,
            strict=strict,
            flexible=flexible,
            strict_correct=extraction.same(strict, target),
            flexible_correct=extraction.same(flexible, target),
            cut_off=decoded.cut_off,
            tokens=len(ids),
            ids=tuple(decoded.ids),
            logprob=decoded.logprob,
            prompt=hashlib.sha256(self.texts[i].encode()).hexdigest()[:16],
            seconds=decoded.seconds,
        )


def _drafts(baseline: TaskResult | None, asked: Sequence[Asked]) -> list[Answer] | None:
    """The baseline's answers to these questions, where it has given all of them."""
    if baseline is None or [a.question for a in baseline.answers] != [each.question.index for each in asked]:
        return None
    return list(baseline.answers) if all(answer.ids for answer in baseline.answers) else None
