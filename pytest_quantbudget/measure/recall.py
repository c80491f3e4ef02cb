"""The stored figures of a request that can be used again, and what is left to measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import Origin, TaskResult, draft_id
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import DivergenceOf, LoadTime, Part, Request, Task
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure.job import Drafts, References
from pytest_quantbudget.measure.keys import Keys
from pytest_quantbudget.measure.store import Key, Store


def recall(
    store: Store, request: Request, keys: Keys, drafts: Drafts, references: References, device: str
) -> tuple[list[Measurement], Request | None]:
    """The stored figures of a request, and a request for what is left to measure; None where nothing is.

    A timing must be young enough, and the answers to a growing task must decide what its limits need decided. Without
    the weights and layers as loaded, the subject is loaded again.
    """
    recalled: list[Measurement] = []
    missing: list[Part] = []
    load_time: list[Measurement] = []
    for part in dict.fromkeys((LoadTime(), *request.parts)):
        if isinstance(part, DivergenceOf):
            continue
        key = keys.of(part, draft_id(drafts.get(part)) if isinstance(part, Task) else None)
        figures = _stored(store, key, request, request.max_age_s if part.timing else None)
        if figures is None or (isinstance(part, Task) and not _decide(figures, part, request, drafts, device)):
            missing.append(part)
        else:
            (load_time if isinstance(part, LoadTime) else recalled).append(_under_its_name(figures, part, references))
    compared = {result.task for figures in recalled for result in figures.tasks if result.divergence is not None}
    missing += [part for part in request.of(DivergenceOf) if part.task not in compared]
    wanted = [part for part in missing if part in request.parts]
    # A baseline's logits are no figure of its own: they are kept when it is loaded anyway.
    needed = [part for part in wanted if not isinstance(part, DivergenceOf) or part.task in references]
    loaded = _stored(store, keys.load(), request)
    if loaded is not None and not needed:
        return [*recalled, loaded, *load_time], None
    return recalled, replace(request, parts=tuple(part for part in request.parts if part in wanted))


def _stored(store: Store, key: Key, request: Request, max_age_s: float | None = None) -> Measurement | None:
    """The figures under a key, marked as reused; None where there are none, or they are too old.

    An entry that cannot be read is set aside.
    """
    entry = store.get(key)
    if entry is None or (max_age_s is not None and not entry.younger_than(max_age_s)):
        return None
    try:
        figures = codec.from_builtins(Measurement, entry.payload)
    except ValueError as error:
        store.set_aside(key, str(error))
        return None
    origin = Origin(entry.at, reused=True)
    marked: dict[str, Any] = {}
    for name in Measurement.holders:
        marked[name] = tuple(replace(result, origin=origin) for result in getattr(figures, name))
    loaded = origin if figures.device is not None else None
    return replace(figures, subject=request.subject, loaded=loaded, **marked)


def _decide(figures: Measurement, task: Task, request: Request, drafts: Drafts, device: str) -> bool:
    """Whether stored answers decide what the request needs decided: a growing task's may have ended earlier.

    They are read as the task reads them now: under another name, or another extraction, they may decide less. Answers
    to other prompts than the baseline's, of a chat template that was told another time, decide nothing.
    """
    baseline = drafts.get(task)
    if baseline is not None and any(_other_prompts(result, baseline) for result in figures.tasks):
        return False
    return all(
        len(result.answers) == result.total or sequential.stopped(request, device, replace(result, task=task), baseline)
        for result in figures.tasks
    )


def _other_prompts(own: TaskResult, baseline: TaskResult) -> bool:
    """Whether a question was put to both in other words. In a report it may stand under another number."""
    theirs = {answer.question: answer.prompt for answer in baseline.answers}
    known = set(theirs.values())
    return any(answer.prompt not in known and answer.question in theirs for answer in own.answers)


def _under_its_name(figures: Measurement, part: Part, references: References) -> Measurement:
    """Stored results under the part as the request names it: figures do not depend on names and places of files."""
    if not part.held_in:
        return figures
    results = [replace(result, **{part.named: part}) for result in getattr(figures, part.held_in)]
    if isinstance(part, Task):
        results = [_compared(result, references.get(part)) for result in results]
    renamed: dict[str, Any] = {part.held_in: tuple(results)}
    return replace(figures, **renamed)


def _compared(result: Any, reference: Path | None) -> Any:
    """Answers without their divergence, unless it was taken from this file of the baseline's logits."""
    same = result.divergence is not None and reference is not None and result.divergence.against == reference.stem
    return result if same else replace(result, divergence=None)
