"""Reads the limits of a method, and finds those that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pytest_quantbudget.core import units
from pytest_quantbudget.core.gpus import covers
from pytest_quantbudget.core.limits import AUTO, Judging, Limit, LimitKind, Target
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.judge.metrics import limits, metric_of, percentile_limit

OF_TASK = re.compile(r"min_(?P<min>[a-z]\w*?)(?:_recovery)?|max_(?P<max>\w+)_(?:drop|flips|absent|tokens_ratio)")
MAX_PATTERNS = 100  # what is checked pair by pair must stay few


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
        of_task = OF_TASK.fullmatch(name)
        why = f", and no task {of_task['min'] or of_task['max']!r} is declared" if of_task else ""
        unusable = "".join(f"; metric {one}: {words}" for one, words in metrics.others().unusable.items())
        problems.add(node, f"there is no limit {name!r}{why}{nearest(name, kinds)}{unusable}")
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
            problems.add(value, f"{name} takes no `auto`; name what is allowed, as in `{name}: Marlin*`")
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
