"""Reads the limits of a method, and finds those that contradict each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pytest_quantbudget.budget.tasks import TASK_NAME
from pytest_quantbudget.core import units
from pytest_quantbudget.core.gpus import covers
from pytest_quantbudget.core.limits import AUTO, Judging, Limit, LimitKind, Target
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.judge.metrics import limits, metric_of, percentile_limit
from pytest_quantbudget.tasks.questions import HUB_SETS

MAX_PATTERNS = 100  # what is checked pair by pair must stay few
ANY_TASK = "?"  # stands for a task in the names of its limits
# So alike are names of which one may be the other misspelt.
NEARLY, NEARLY_TASK = 0.75, 0.6


def read_limit(
    kinds: Mapping[str, LimitKind],
    name: str,
    node: Marked,
    judging: Judging,
    of_tasks: Mapping[str, Judging],
    problems: Problems,
) -> Limit | None:
    """The limit on one line; None, and a problem noted, where it is none.

    Limits on a task are judged as `of_tasks` says, all others by `judging`.
    """
    kind = kinds.get(name) or percentile_limit(name)
    if kind is None:
        unusable = "".join(f"; metric {one}: {words}" for one, words in metrics.others().unusable.items())
        problems.add(node, f"there is no limit {name!r}{_hint(name, kinds, of_tasks)}{unusable}")
        return None
    by_name = node.entries or {"*": node}
    if len(by_name) > MAX_PATTERNS:
        problems.add(node, f"{name} names {len(by_name):,} devices, and at most {MAX_PATTERNS} are allowed")
        return None
    targets: list[Target] = []
    for pattern, value in by_name.items():
        for earlier in targets:
            if covers(earlier.pattern, pattern):
                problems.add(value, f"{pattern!r} is never reached: {earlier.pattern!r} above matches all of it")
                break
        if value.value == AUTO and metric_of(kind).numeric:
            targets.append(Target(pattern, None, AUTO, kind.unit))
            continue
        if value.value == AUTO:
            example = next(iter(kind.kind.schema.get("examples", ())))  # type: ignore[call-overload]
            problems.add(value, f"{name} takes no `auto`; name what is allowed, as in `{name}: {example}`")
            continue
        try:
            base = kind.kind.read(value.plain)
        except ValueError as error:
            problems.add(value, f"{name}: {error}")
            continue
        unit = kind.unit or units.QUANTITY.fullmatch(str(value.plain).strip())[2]  # type: ignore[index]
        targets.append(Target(pattern, float(base), str(value.plain), unit))
    if not targets:
        return None
    return Limit(kind, tuple(targets), node.file, node.line, of_tasks.get(kind.task, judging), node.columns)


def _hint(name: str, kinds: Mapping[str, LimitKind], tasks: Iterable[str]) -> str:
    """What may be meant by a name that is no limit's: a limit or a task of nearly that name, or one to be declared."""
    task = _task_in(name)
    if not task:
        return nearest(name, kinds)
    plain = [known for known, kind in kinds.items() if not kind.task]
    near = difflib.get_close_matches(task, tasks, n=1, cutoff=NEARLY_TASK)
    # The name with the other task: the rest of it is no typing mistake.
    meant = [name.replace(task, near[0], 1)] if near else difflib.get_close_matches(name, plain, n=1, cutoff=NEARLY)
    missing = f", and no task {task!r} is declared"
    if meant:
        return f"{missing}; did you mean {meant[0]!r}?"
    settings = "{}" if task in HUB_SETS else "{file: QUESTIONS.jsonl}"
    return f"{missing}; `tasks: {{{task}: {settings}}}` at the top of the file declares it"


def _task_in(name: str) -> str:
    """The task that a limit of this name would be on; empty where no limit on a task is named so."""
    forms = (kind.name.partition(ANY_TASK) for kind in metrics.task_limits(ANY_TASK))
    found = [
        name[len(before) : len(name) - len(after)]
        for before, _, after in forms
        if name.startswith(before) and name.endswith(after)
    ]
    # `min_sums_recovery` is on `sums`, where there is such a limit.
    return min((task for task in found if TASK_NAME.fullmatch(task)), key=len, default="")


def check_contradictions(of_method: Sequence[Limit], problems: Problems) -> None:
    """Note limits of one method that another limit of it makes redundant: they can never be the one that fails."""
    for inner, _, message in contradictions(of_method):
        problems.add(inner, message)


def contradictions(of_method: Sequence[Limit]) -> list[tuple[Limit, Limit, str]]:
    """Limits on a part that are higher than the limit on the whole and so can never fail, with that limit and why."""
    plain = {limit.name: limit for limit in of_method if limit.targets[0].pattern == "*"}
    pairs = []
    for inner in plain.values():
        for whole, why in _wholes(inner.kind):
            if whole not in plain:
                continue
            low, high = plain[whole].targets[0], inner.targets[0]
            if low.value is not None and high.value is not None and high.value > low.value:
                pairs.append((inner, plain[whole], f"{inner.name} {high.text} contradicts {whole} {low.text}: {why}"))
    return pairs


def _wholes(kind: LimitKind) -> Iterator[tuple[str, str]]:
    """The limits whose figures hold that of a kind, each inside the next, and why."""
    if kind.percentile is not None:
        for higher in range(kind.percentile + 1, 100):
            name = f"{kind.name.rpartition('_p')[0]}_p{higher}"
            yield name, f"percentile {kind.percentile} is at most percentile {higher}"
    known, step = limits(), kind.part_of
    why = step[1] if step else ""
    while step:
        yield step[0], why
        step = known[step[0]].part_of if step[0] in known else None
