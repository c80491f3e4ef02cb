"""The questions of a task, asked of a loaded model: answers are kept as they come, and stop once they decide."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_quantbudget.core.answers import Agreement, Answer, TaskResult, by_prompt, draft_id
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine.base import Decoded, Ends, Engine
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.tasks import extraction, tokenizers
from pytest_quantbudget.tasks.prompts import Asked, Prompter, prompt_hash
from pytest_quantbudget.tasks.questions import reference

# Answers that are kept together.
PART = 32


def run(
    engine: Engine,
    task: Task,
    asked: Sequence[Asked],
    kept: KeptAnswers,
    baseline: TaskResult | None = None,
    enough: Callable[[TaskResult], str] | None = None,
    clock: str = "",
) -> tuple[TaskResult, list[str]]:
    """Ask every question that no earlier run has answered; of a growing task, until the answers are `enough`.

    Longest prompts go first, so that memory runs out at once or not at all. The `baseline`'s answers to the same
    questions serve as drafts. `enough` says why nothing more needs to be asked, or nothing. `clock` is the time that a
    chat template is told (ISO 8601, UTC) unless the baseline was told another. Returns the answers, and notes on how
    they were made. Raises ValueError where a prompt and its answer need more positions than the model
    has, NotFinite where its logits break down.
    """
    asking = _Asking(engine, task, asked, kept, baseline, clock)
    resumed = len(asking.answers)
    for look in sequential.looks(task.start if enough else None, len(asked)):
        left = [i for i in range(look) if i not in asking.answers]
        asking.ask(sorted(left, key=lambda i: -len(asking.prompts[i])))
        result = asking.result(look, resumed)
        stopped = enough(result) if enough and look < len(asked) else ""
        if stopped:
            return replace(result, stopped=stopped), notes(asking.batching, task)
    return result, notes(asking.batching, task)


def notes(batching: Batching, task: Task) -> list[str]:
    """What was noticed while the questions of a task were answered."""
    found = []
    if batching.slow:
        found.append(f"answers to {task.name} {batching.slow}")
    if batching.tried is not None:
        what = f"{batching.tried:,} questions of {task.name} at once"
        found.append(f"out of memory with {what}; {batching.size:,} were answered at once")
    return found


def _sum(parts: Sequence[Agreement | None]) -> Agreement | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return Agreement(
        known[0].against,
        sum(part.tokens for part in known),
        sum(part.agreed for part in known),
        sum(part.logprob for part in known),
        sum(part.baseline_logprob for part in known),
        tuple(size for part in known for size in part.each_tokens),
        tuple(agreed for part in known for agreed in part.each_agreed),
        tuple(lost for part in known for lost in part.each_lost),
    )


class _Asking:
    """One task asked of one model."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        asked: Sequence[Asked],
        kept: KeptAnswers,
        baseline: TaskResult | None,
        clock: str,
    ) -> None:
        self.engine, self.task, self.asked, self.kept, self.baseline = engine, task, asked, kept, baseline
        self.answers: dict[int, Answer] = {}  # by place in `asked`
        self.parts: list[TaskResult] = []
        self.fresh: dict[int, Decoded] = {}  # complete, and not kept yet
        self.began = time.perf_counter()
        earlier = list(kept.earlier())
        # A template that reads the clock shows all methods the same time, and the answers that are kept already.
        self.clock = next((part.clock for part in (baseline, *earlier) if part is not None and part.clock), clock)
        self.prompter = Prompter(engine.tokenizer, task, self.clock)
        self.texts = [self.prompter.text(each) for each in asked]
        tokens = engine.describe().end_tokens
        self.prompts = self.prompter.tokens(self.texts, tokens)
        engine.check_positions(max(map(len, self.prompts)) + task.max_new_tokens, task.phase)
        self.tokenizer = tokenizers.state(engine.tokenizer)
        self.drafts = _drafts(baseline, self.texts, self.tokenizer)
        self.ends = Ends(engine.tokenizer, tokens, self.prompter.style.stops, task.max_new_tokens)
        self.batching = Batching(task.batch_size or 0)
        self.recall(earlier)

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
            clock=self.prompter.told_time,
            tokenizer=self.tokenizer,
        )

    def recall(self, earlier: Sequence[TaskResult]) -> None:
        """Take over what earlier runs have kept, of answers to the same prompts."""
        where = {each.question.index: i for i, each in enumerate(self.asked)}
        for part in earlier:
            places = [where.get(answer.question) for answer in part.answers]
            asked = [prompt_hash(self.texts[i]) if i is not None else "" for i in places]
            if [answer.prompt for answer in part.answers] == asked:
                self.parts.append(part)
                self.answers.update({where[answer.question]: answer for answer in part.answers})
                self.kept.report(len(part.answers), len(self.asked))

    def ask(self, order: Sequence[int]) -> None:
        """Have some prompts answered."""
        if not order:
            return
        self.began = time.perf_counter()
        self.engine.answer(
            [self.prompts[i] for i in order],
            self.ends,
            lambda new: self.hear({order[i]: decoded for i, decoded in new.items()}),
            self.batching,
            [self.drafts[i].ids for i in order] if self.drafts else None,
            self.task.phase,
        )
        self.keep()

    def hear(self, new: Mapping[int, Decoded]) -> None:
        """Take in complete answers."""
        self.fresh.update(new)
        self.kept.report(len(new), len(self.asked))
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

    def part(self, decoded: Mapping[int, Decoded], seconds: float) -> TaskResult:
        """Some answers as a result of their own."""
        answers = tuple(self.answer(i, each) for i, each in decoded.items())
        told = self.prompter.told_time
        return TaskResult(self.task, answers, seconds, agreement=self.agreement(decoded), clock=told)

    def agreement(self, decoded: Mapping[int, Decoded]) -> Agreement | None:
        """Teacher-forced greedy match and log-probability on the baseline's answers to some questions."""
        if not self.drafts or self.baseline is None:
            return None
        pairs = [(answer, self.drafts[i]) for i, answer in decoded.items()]
        if any(answer.draft_logprob is None or draft.logprob is None for answer, draft in pairs):
            return None
        return Agreement(
            draft_id(self.baseline) or "",
            sum(len(draft.ids) for _, draft in pairs),
            sum(answer.agreed for answer, _ in pairs),
            sum(answer.draft_logprob or 0.0 for answer, _ in pairs),
            sum(draft.logprob or 0.0 for _, draft in pairs),
            tuple(len(draft.ids) for _, draft in pairs),
            tuple(answer.agreed for answer, _ in pairs),
            tuple((draft.logprob or 0.0) - (answer.draft_logprob or 0.0) for answer, draft in pairs),
        )

    def answer(self, i: int, decoded: Decoded) -> Answer:
        """What was decoded, as an answer to a question."""
        question = self.asked[i].question
        style = self.prompter.style
        ids = [token for token in decoded.ids if token not in self.ends.tokens]
        text = self.engine.tokenizer.decode(ids, skip_special_tokens=True)
        if self.prompter.chats:
            text = extraction.after_thinking(text)
        text = extraction.cut_at_stop(text, style.stops)
        target = reference(question.answer)
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
            prompt=prompt_hash(self.texts[i]),
            seconds=decoded.seconds,
            cluster=question.cluster,
        )


def _drafts(baseline: TaskResult | None, texts: Sequence[str], tokenizer: str) -> list[Answer] | None:
    """The baseline's answers to these prompts, where it has answered all of them, in tokens of this tokenizer."""
    if baseline is None or baseline.tokenizer not in (None, tokenizer):
        return None
    found = [answer for answer in by_prompt(baseline.answers, map(prompt_hash, texts)) if answer is not None]
    return found if len(found) == len(texts) and all(answer.ids for answer in found) else None
