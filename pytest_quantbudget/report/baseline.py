"""A method of a stored report as the baseline of a budget: what of its figures can be compared, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, files
from pytest_quantbudget.core.answers import Origin
from pytest_quantbudget.core.budget import StoredBaseline
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.core.problems import nearest
from pytest_quantbudget.core.request import Part, Task
from pytest_quantbudget.report import again
from pytest_quantbudget.report.document import BudgetReport, MethodReport

# What answers depend on that their prompts do not tell.
BESIDE_PROMPTS = ("max_new_tokens", "style", "metric")


class Unnamed(ValueError):
    """A report holds no such budget or method, or several; `key` is that of the `baseline` which is to say more."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def read(path: Path, own: str, budget: str | None, method: str | None, parts: Sequence[Part]) -> StoredBaseline:
    """The baseline in the report at `path`: the figures that it holds of `parts`.

    `budget` and `method` are names in the report, where they are given; `own` is the name of the file that asks, which
    is looked for where the report holds several budgets. Raises Unnamed, and ValueError and OSError as `again.read`.
    """
    stored = again.read(path, path.name, None)
    found = _budget(stored, own, budget)
    chosen = _method(stored, found, method)
    assert chosen.measurement is not None
    source = _Source(stored.name, stored.report, None)
    name = f"{chosen.name} of {path.name}"
    # What is in the file tells two baselines of one name apart.
    against = codec.key_of([files.file_hash(path), found.file, chosen.name])
    subject = replace(chosen.measurement.subject, method=name, against=against)
    measured = replace(source.taken(parts, found, chosen.measurement), subject=subject)
    when = stored.origin.measured
    return StoredBaseline(name, path, found.file, chosen.name, when, stored.report.cpu_of(chosen), measured)


def _budget(stored: again.Stored, own: str, named: str | None) -> BudgetReport:
    """The budget of the report that is meant."""
    known = [budget for budget in stored.report.budgets if _candidates(budget)]
    if not known:
        raise Unnamed("report", f"{stored.name} holds no measurement")
    machines = sorted({budget.machine for budget in known})
    if len(machines) > 1:
        raise Unnamed("report", f"{stored.name} holds figures of {' and '.join(machines)}: name the report of one")
    if named is None:
        same = [budget for budget in known if Path(budget.file).name == own]
        if len(known) > 1 and len(same) != 1:
            raise Unnamed("report", f"{stored.name} holds several budgets: name one, as in `budget: {known[0].file}`")
        return known[0] if len(known) == 1 else same[0]
    meant = [b for b in known if b.file == named] or [b for b in known if Path(b.file).name == named]
    if len(meant) != 1:
        which = "no budget" if not meant else "several budgets"
        raise Unnamed("budget", f"{stored.name} holds {which} {named!r}{nearest(named, [b.file for b in known])}")
    return meant[0]


def _candidates(budget: BudgetReport) -> list[MethodReport]:
    """Its methods that were measured in its own run."""
    own = budget.methods if budget.stored is None else budget.methods[1:]
    return [method for method in own if method.measurement is not None]


def _method(stored: again.Stored, budget: BudgetReport, named: str | None) -> MethodReport:
    """The method of the report that is meant: its only one, else what its methods were compared with."""
    known = _candidates(budget)
    names = [method.name for method in known]
    if named is not None and named not in names:
        raise Unnamed("method", f"{stored.name} holds no measurement of {named!r}{nearest(named, names)}")
    wanted = named or (names[0] if len(names) == 1 else budget.baseline)
    if wanted not in names:
        raise Unnamed("report", f"{stored.name} holds {', '.join(names)}: name one, as in `method: {names[0]}`")
    return next(method for method in known if method.name == wanted)


@dataclass(frozen=True)
class _Source(again.Stored):
    """A report that gives a baseline: of its tasks, prompts tell what was asked."""

    def taken(self, parts: Sequence[Part], budget: BudgetReport, measured: Measurement) -> Measurement:
        """The measurement with the results of these parts alone, under the parts' names, all from an earlier run."""
        failures: list[Failure] = []
        notes: list[str] = []
        held: dict[str, list[Any]] = {name: [] for name in Measurement.holders}
        for part in parts:
            result = self._take(part, budget, measured, failures, notes)
            if result is not None:
                held[part.held_in].append(_earlier(replace(result, **{part.named: part})))
        # What was compared with another baseline says nothing here, and the names of answers follow from their tokens.
        alone = [replace(result, agreement=None, divergence=None, name=None) for result in held["tasks"]]
        results: dict[str, Any] = {name: tuple(found) for name, found in held.items()} | {"tasks": tuple(alone)}
        phases = {failure.phase for failure in failures}
        told = [failure for failure in measured.failures if failure.phase not in phases]
        loaded = replace(measured.loaded, reused=True) if measured.loaded is not None else None
        return replace(measured, failures=(*failures, *told), notes=tuple(notes), loaded=loaded, **results)

    def _part(self, ours: Part, theirs: Part, result: Any) -> again.Comparison:
        if not isinstance(ours, Task) or not isinstance(theirs, Task) or ours.name != theirs.name:
            return super()._part(ours, theirs, result)
        compared = again.Comparison(self)
        for name in BESIDE_PROMPTS:
            compared.value(name, getattr(ours, name), getattr(theirs, name))
        compared.value("harness", ours.harness is not None, theirs.harness is not None)
        return compared


def _earlier(result: Any) -> Any:
    origin = result.origin
    return replace(result, origin=Origin(origin.at, reused=True)) if origin is not None else result
