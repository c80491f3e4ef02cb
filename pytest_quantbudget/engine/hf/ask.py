"""Asking a loaded model: greedy answers to all questions of a task, kept as they come."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pytest_quantbudget.core.answers import Agreement, Answer, TaskResult, draft_id
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine.hf import memory, plain_generate, ragged_cache
from pytest_quantbudget.engine.hf.decoding import ALL, Decoded, Decoder, Ends, Techniques, shared_prefix
from pytest_quantbudget.engine.hf.speed import check_positions, end_tokens
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.tasks import extraction
from pytest_quantbudget.tasks.prompts import Asked, Prompter
from pytest_quantbudget.tasks.questions import Question

AT_ONCE = 256  # questions where the budget says `auto` and memory allows
SHARE_OF_FREE = 0.4  # of the free memory, for keys and values: a copy is made when rows leave or join
PART = 32  # answers that are kept together


class Kept(Protocol):
    """Where answers are kept and found again, and who hears of them."""

    def earlier(self) -> Iterable[TaskResult]:
        """The parts that an earlier run has kept."""

    def put(self, part: TaskResult) -> None:
        """Keep some answers."""

    def shrunk(self, asked: int, held: int) -> None:
        """Memory ran out with `asked` questions at once, and held `held`."""

    def slow(self, why: str) -> None:
        """The model cannot be run the fast way."""

    def answered(self, answers: Sequence[Answer], total: int) -> None:
        """So many more answers are there."""


class Nowhere:
    """Keeps nothing."""

    def earlier(self) -> Iterable[TaskResult]:
        """Nothing."""
        return ()

    def put(self, part: TaskResult) -> None:
        """Nothing."""

    def shrunk(self, asked: int, held: int) -> None:
        """Nothing."""

    def slow(self, why: str) -> None:
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
    enough: Callable[[TaskResult], str] | None = None,
) -> TaskResult:
    """Ask every question that an earlier run has not had answered; of a growing task, until what there is is `enough`.

    Longest prompts go first, so that memory runs out at once or not at all; then half as many are asked at once. The
    `baseline`'s answers to the same questions serve as drafts. `enough` says why nothing more needs to be asked, or
    nothing. Raises ValueError where a prompt and its answer need more positions than the model has, logits.NotFinite
    where its logits break down.
    """
    asking = _Asking(model, tokenizer, task, asked, kept or Nowhere(), baseline, techniques)
    asking.recall()
    resumed = len(asking.answers)
    for look in sequential.looks(task.start if enough else None, len(asked)):
        left = [i for i in range(look) if i not in asking.answers]
        asking.ask(sorted(left, key=lambda i: -len(asking.prompts[i])))
        result = asking.result(look, resumed)
        stopped = enough(result) if enough and look < len(asked) else ""
        if stopped:
            return replace(result, stopped=stopped)
    return result


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
        tuple(size for part in told for size in part.each_tokens),
        tuple(agreed for part in told for agreed in part.each_agreed),
        tuple(lost for part in told for lost in part.each_lost),
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
        self.answers: dict[int, Answer] = {}  # by place in `asked`
        self.parts: list[TaskResult] = []
        self.fresh: dict[int, Decoded] = {}  # complete, and not kept yet
        self.began = time.perf_counter()
        self.prompter = Prompter(tokenizer, task)
        self.texts = [self.prompter.text(each) for each in asked]
        self.prompts = self.prompter.tokens(self.texts)
        self.longest = max(map(len, self.prompts)) + task.max_new_tokens
        check_positions(model, self.longest, task.phase)
        self.known = _drafts(baseline, asked)
        self.against = baseline
        self.ends = Ends(tokenizer, end_tokens(model), self.prompter.style.stops, task.max_new_tokens)
        why = ragged_cache.unfit(model, self.longest)
        if why:
            kept.slow(why)
        self.size = task.batch_size or self.fitting(known=not why)
        prefix = shared_prefix(self.prompts)
        self.decoder = None if why else Decoder(model, self.ends, self.size, prefix, techniques, task.phase)

    def fitting(self, *, known: bool) -> int:
        """How many questions' keys and values find room at once, where their size is known."""
        free = memory.free_bytes(self.model)
        if free is None or not known:
            return AT_ONCE
        each = self.longest * ragged_cache.bytes_a_token(self.model)
        return int(max(1, min(AT_ONCE, SHARE_OF_FREE * free // each)))

    def result(self, count: int, resumed: int) -> TaskResult:
        """The answers to the first so many questions."""
        parts = self.parts
        return TaskResult(
            self.task,
            tuple(self.answers[i] for i in range(count)),
            sum(part.seconds for part in parts),
            resumed=min(resumed, count),
            agreement=_sum([part.agreement for part in parts]),
            planned=len(self.asked),
        )

    def recall(self) -> None:
        """Take over what an earlier run has kept."""
        where = {each.question.index: i for i, each in enumerate(self.asked)}
        for part in self.kept.earlier():
            if all(answer.question in where for answer in part.answers):
                self.parts.append(part)
                self.answers.update({where[answer.question]: answer for answer in part.answers})
                self.kept.answered(part.answers, len(self.asked))

    def ask(self, order: Sequence[int]) -> None:
        """Have some prompts answered; where memory runs out, what is not complete is tried again, half at once."""
        left = list(order)
        while left:
            self.began = time.perf_counter()
            short = False
            try:
                self.decode(left)
            except Exception as error:
                if self.size == 1 or not memory.is_out_of_memory(error):
                    raise
                short = True
            self.keep()
            left = [i for i in left if i not in self.answers]
            if short:  # out here, where the exception no longer holds the frames of the failed attempt
                self.shrink(len(left))

    def decode(self, some: Sequence[int]) -> None:
        """Have what follows some of the prompts `heard`."""
        if self.decoder is not None:
            drafts = [self.known[i].ids for i in some] if self.known else None
            self.decoder.run(
                [self.prompts[i] for i in some],
                drafts,
                lambda new: self.heard({some[i]: answer for i, answer in new.items()}),
            )
            return
        for start in range(0, len(some), self.size):
            part = some[start : start + self.size]
            found = plain_generate.generate(
                self.model, self.tokenizer, [self.prompts[i] for i in part], self.ends, self.task.phase
            )
            self.heard(dict(zip(part, found, strict=True)))

    def heard(self, new: Mapping[int, Decoded]) -> None:
        """Take in complete answers."""
        self.fresh.update(new)
        self.kept.answered([self.read(i, answer) for i, answer in new.items()], len(self.asked))
        if len(self.fresh) >= PART:
            self.keep()

    def keep(self) -> None:
        """Keep the answers that are not kept yet."""
        if not self.fresh:
            return
        part = self.part(self.fresh, time.perf_counter() - self.began)
        self.answers.update(zip(self.fresh, part.answers, strict=True))
        self.parts.append(part)
        self.kept.put(part)
        self.fresh, self.began = {}, time.perf_counter()

    def shrink(self, left: int) -> None:
        """Ask half as many at once."""
        memory.free()
        before = min(self.size, left)
        self.size = max(1, before // 2)
        if self.decoder is not None:
            self.decoder.size = self.size
        self.kept.shrunk(before, self.size)
        logging.getLogger(__name__).warning("out of memory with %d questions at once; now %d", before, self.size)

    def part(self, decoded: Mapping[int, Decoded], seconds: float) -> TaskResult:
        """Some answers as a result of their own."""
        answers = tuple(self.read(i, answer) for i, answer in decoded.items())
        return TaskResult(self.task, answers, seconds, agreement=self.agreement(decoded))

    def agreement(self, decoded: Mapping[int, Decoded]) -> Agreement | None:
        """What the model thought of the baseline's answers to some questions."""
        if not self.known or self.against is None:
            return None
        pairs = [(answer, self.known[i]) for i, answer in decoded.items()]
        if any(answer.draft_logprob is None or draft.logprob is None for answer, draft in pairs):
            return None
        return Agreement(
            draft_id(self.against) or "",
            sum(len(draft.ids) for _, draft in pairs),
            sum(answer.agreed for answer, _ in pairs),
            sum(answer.draft_logprob or 0.0 for answer, _ in pairs),
            sum(draft.logprob or 0.0 for _, draft in pairs),
            tuple(len(draft.ids) for _, draft in pairs),
            tuple(answer.agreed for answer, _ in pairs),
            tuple((draft.logprob or 0.0) - (answer.draft_logprob or 0.0) for answer, draft in pairs),
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
