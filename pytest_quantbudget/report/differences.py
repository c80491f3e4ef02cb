"""What reports that are judged together say differently: contradictions, which are refused, and the rest, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.report.again import Stored
from pytest_quantbudget.report.merged import Merged, own, rank

SHORT = 12  # characters of a commit
REVISIONS = {
    "revision": "the model",
    "checkpoint_revision": "the checkpoint of {}",
    "adapter_revision": "the adapter of {}",
}


def contradictions(merged: Merged, budget: Budget) -> Iterator[str]:
    """Why reports cannot be judged together on a budget: other figures of one method, or of another model.

    One method on one kind of machine has one set of figures; which of two is meant, nobody can tell.
    """
    held = merged.held(budget)
    for machine, reports in merged.series.items():
        for name, of in held.items():
            first, *others = of.among(reports).asked or (None,)
            for other in others:
                apart = (
                    differing(record_of(budget, first, name), record_of(budget, other, name))
                    if first is not None
                    else []
                )
                if apart and first is not None:
                    where = f" on {machine}" if machine else ""
                    yield (
                        f"{first.name} and {other.name} hold different figures of {name}{where} ({', '.join(apart)}): "
                        "name the one that counts"
                    )
    yield from _revisions(held_by(merged, budget))


def held_by(merged: Merged, budget: Budget) -> list[tuple[Stored, str, Measurement]]:
    """All that reports hold of a budget's methods: report, method, figures."""
    found = []
    for name, held in merged.held(budget).items():
        for stored in (*held.asked, *held.beside):
            record = record_of(budget, stored, name)
            if record is not None:
                found.append((stored, name, record))
    return found


def record_of(budget: Budget, stored: Stored, name: str) -> Measurement | None:
    """What a report holds of a budget's method: in the budget of its path or file name, else in whichever."""
    found = sorted(stored.report.budgets, key=lambda each: rank(budget, each))
    records = (method.measurement for each in found for method in own(each) if method.name == name)
    return next((record for record in records if record is not None), None)


def parts_of(budget: Budget, stored: Stored, name: str) -> int:
    """How many parts a report holds of a method."""
    record = record_of(budget, stored, name)
    return sum(len(getattr(record, holder)) for holder in Measurement.holders) if record is not None else -1


def _revisions(held: Sequence[tuple[Stored, str, Measurement]]) -> Iterator[str]:
    for field, what in REVISIONS.items():
        known: dict[tuple[str, str], tuple[Stored, str]] = {}
        for stored, name, record in held:
            revision = getattr(record, field)
            if revision is None:
                continue
            of = what.format(name)
            first, seen = known.setdefault((of, Path(record.subject.model).name), (stored, revision))
            if seen != revision:
                told = f"{first.name} ({_short(seen)}) and {stored.name} ({_short(revision)})"
                yield f"{of} was not the same in {told}: a `revision` in the budget keeps it"
                break


def _short(revision: str) -> str:
    return revision.removeprefix("sha256:")[:SHORT]


def differing(one: Measurement | None, other: Measurement | None) -> list[str]:
    """The names of figures that two measurements of one method both have, and not the same.

    When something was measured, how long that took and whether it was reused are no figures. A failure is one: a method
    that failed in one run and not in the other is not the same.
    """
    if one is None or other is None:
        return [] if one is other else ["only one has any"]
    apart = [what for what, of in WHOLE.items() if of(one) != of(other)]
    for what, held in PARTS.items():
        ours, theirs = held(one), held(other)
        apart += [what.format(name) for name in ours if name in theirs and ours[name] != theirs[name]]
    return apart


def filled(record: Measurement, other: Measurement) -> Measurement:
    """A measurement with the parts of another one that it does not have."""
    for name in Measurement.holders:
        known = {result_part(result) for result in getattr(record, name)}
        more = tuple(result for result in getattr(other, name) if result_part(result) not in known)
        phases = {result_part(result).phase for result in more}
        failures = tuple(failure for failure in record.failures if failure.phase not in phases)
        results: dict[str, Any] = {name: (*getattr(record, name), *more)}
        record = replace(record, failures=failures, **results)
    return record


def result_part(result: Any) -> Any:
    """The part that a result is of."""
    return getattr(result, next(name for name in ("workload", "task", "text", "load") if hasattr(result, name)))


def _failures(record: Measurement) -> set[tuple[str, str]]:
    return {(failure.phase, failure.message) for failure in record.failures}


def _answers(record: Measurement) -> dict[str, Any]:
    found = {}
    for result in record.tasks:
        answers = tuple(replace(answer, seconds=0.0) for answer in result.answers)
        found[result.task.name] = (result.task, answers, result.agreement, result.divergence)
    return found


# The figures that every measurement has, and those of its parts.
WHOLE: dict[str, Callable[[Measurement], Any]] = {
    "what failed": _failures,
    "the device": lambda record: record.device and record.device.name,
    "the weights": lambda record: (record.weights, record.disk, record.receipt),
    "the load time": lambda record: record.load_time_s,
}
PARTS: dict[str, Callable[[Measurement], dict[Any, Any]]] = {
    "memory and speed": lambda record: {each.workload: replace(each, origin=None) for each in record.speeds},
    "the load": lambda record: {each.load: replace(each, origin=None) for each in record.loads},
    "the perplexity": lambda record: {each.text: replace(each, origin=None) for each in record.perplexities},
    "the answers to {}": _answers,
}


def notes(merged: Merged) -> tuple[str, ...]:
    """What is not the same in all reports and costs no figure: commits, versions, machines."""
    if len(merged.reports) < 2:
        return ()
    whole: dict[str, Callable[[Stored], str | None]] = {
        "the commit": lambda stored: _commit(stored),
        "Python": lambda stored: stored.report.machine.python,
        "the CPU": lambda stored: stored.report.machine.cpu,
        "the number of cores": lambda stored: str(stored.report.machine.cores),
        "the GPU driver": lambda stored: next((gpu.driver for gpu in stored.report.machine.gpus), None),
    }
    libraries = dict.fromkeys(name for stored in merged.reports for name in stored.report.machine.libraries)
    versions = {name: _version(name) for name in libraries}
    return tuple(text for what, of in {**whole, **versions}.items() if (text := _unlike(what, of, merged.reports)))


def _version(name: str) -> Callable[[Stored], str | None]:
    # Each job may have installed what its own method needs.
    return lambda stored: stored.report.machine.libraries.get(name)


def _commit(stored: Stored) -> str | None:
    commit = stored.report.commit
    return f"{commit.sha[:SHORT]}{' with changes' if commit.dirty else ''}" if commit is not None else None


def _unlike(what: str, of: Callable[[Stored], str | None], reports: Sequence[Stored]) -> str:
    """`torch is 2.13.0 in fp16.json and int8.json, 2.12.0 in nf4.json`; nothing where all have the same."""
    found: dict[str, list[str]] = {}
    for stored in reports:
        value = of(stored)
        if value is not None:
            found.setdefault(value, []).append(stored.name)
    if len(found) < 2:
        return ""
    return f"{what} is {'; '.join(f'{value} in {_listed(names)}' for value, names in found.items())}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def unlike_baselines(merged: Merged, budget: Budget) -> tuple[str, ...]:
    """Where reports from one kind of machine hold unlike answers of the baseline, how many are."""
    name = budget.baseline
    held = merged.held(budget).get(name) if name is not None and len(merged.reports) > 1 else None
    told: list[str] = []
    if name is not None and held is not None:
        for reports in merged.series.values():
            of = held.among(reports)
            found = [*of.asked, *of.beside]
            for other in found[1:]:
                told += _other_answers(budget, name, found[0], other)
    return tuple(told)


def _other_answers(budget: Budget, name: str, first: Stored, other: Stored) -> Iterator[str]:
    one, two = record_of(budget, first, name), record_of(budget, other, name)
    for result in one.tasks if one is not None else ():
        same = [theirs for theirs in (two.tasks if two is not None else ()) if theirs.task.name == result.task.name]
        texts = {answer.question: answer.text for theirs in same for answer in theirs.answers}
        apart = sum(texts.get(answer.question, answer.text) != answer.text for answer in result.answers)
        if apart:
            yield (
                f"{name} answered {apart:,} of {len(result.answers):,} questions of {result.task.name} otherwise in "
                f"{other.name} than in {first.name}: each method is compared with the baseline of its own report"
            )
