"""Reads `max_change`: how much the figures of a method may change for the worse from run to run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core.changes import CONFIDENCE, MAX_CHANGE, MEDIAN_OF, ChangeLimit, figure_of
from pytest_quantbudget.core.fields import Field, Kind, mapping_schema, number, whole
from pytest_quantbudget.core.limits import AUTO, Judging, Limit, LimitKind
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.judge.metrics import metric_of, percentile_limit
from pytest_quantbudget.judge.trend import POINTS, SHARE, in_points

AMOUNT = re.compile(r"([+-]?)\s*(\d{1,12}(?:\.\d{1,12})?|\.\d{1,12})\s*(%|points?)")
AGAINST = re.compile(r"last|median of ([1-9]\d?)")
DAY = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?(?:\.0+)?(?:Z|\+00:00)?)?")


def _against(value: object) -> int:
    found = AGAINST.fullmatch(" ".join(str(value).split()))
    if found is None:
        raise ValueError(f"must be `last`, or `median of N` with at most 99 runs, not {value!r}")
    return int(found[1] or 1)


def _since(value: object) -> str:
    found = DAY.fullmatch(str(value))
    if found is None:
        raise ValueError(f"must be a day, or a time in UTC, such as 2026-12-01 or 2026-12-01T14:30Z, not {value!s:.60}")
    year, month, day, hour, minute, second = (part or "00" for part in found.groups())
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z"


FIELDS: Sequence[Field] = (
    Field(
        "against",
        Kind(_against, {"type": "string", "pattern": r"^(last|median of [1-9]\d?)$"}),
        "What a run is compared with: the `last` comparable run, or the `median of` so many (5 where not given).",
    ),
    Field("in_a_row", whole(1, 20), "A change is over once it has been so in so many runs in a row.", 1),
    Field(
        "since",
        Kind(_since, {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d"}),
        "Runs before this day or time (UTC) are not compared with: where a new level was accepted.",
    ),
    Field("confidence", number(0.5, 1), "Confidence of each bound, one-sided.", CONFIDENCE),
)
OF_FIGURES = {
    "anyOf": [{"type": "string", "pattern": r"^[+-]?\s*(\d+(\.\d+)?|\.\d+)\s*(%|points?)$"}, {"type": "null"}],
    "description": "How much a figure may get worse, with its sign: `-5 %` of what it was, or `-1 points`.",
}


def schema() -> dict[str, object]:
    """`max_change` as JSON Schema describes it. Which figures there are, the tasks of a file decide."""
    names = "|".join(field.name for field in FIELDS)
    entries = {**mapping_schema(FIELDS), "patternProperties": {f"^(?!({names})$)[a-z][a-z0-9_]*$": OF_FIGURES}}
    return {
        "description": "How much figures may change for the worse against earlier runs (--quant-history).",
        "anyOf": [entries, {"type": "null"}],
    }


def read_changes(
    node: Marked | None,
    kinds: Mapping[str, LimitKind],
    judging: Judging,
    of_tasks: Mapping[str, Judging],
    taken: Iterable[str],
    problems: Problems,
) -> tuple[ChangeLimit, ...]:
    """The entries of a method's `max_change`; mistakes are added to `problems`.

    `kinds` are the limits that the file may use, and `taken` the names of the method's others.
    """
    if node is None or node.value is None:
        return ()
    known = {field.name for field in FIELDS}
    figures = _figures(kinds)
    if not isinstance(node.value, dict) or not node.entries.keys() - known:
        why = f"{MAX_CHANGE} takes figures and how much they may get worse, as in {{tokens_per_s: -5 %}}"
        problems.add(node, why)
        return ()
    own = replace(node, value={name: entry for name, entry in node.entries.items() if name in known})
    values = keys.read_fields(own, FIELDS, MAX_CHANGE, problems)
    names, found = set(taken), []
    for name, entry in node.entries.items():
        if name in known or entry.value is None:
            continue
        limit = _figure(name, entry, figures, problems)
        amount = _amount(name, entry, limit.kind, problems) if limit is not None else None
        if limit is None or amount is None:
            continue
        judged = replace(of_tasks.get(limit.kind.task, judging), confidence=values["confidence"])
        change = ChangeLimit(
            replace(limit, judging=judged),
            *amount,
            median_of=values["against"] or MEDIAN_OF,
            in_a_row=values["in_a_row"],
            since=values["since"] or "",
        )
        if change.name in names:
            problems.add(entry, f"another limit of the method is called {change.name}: name the task otherwise")
            continue
        names.add(change.name)
        found.append(change)
    return tuple(found)


def _figures(kinds: Mapping[str, LimitKind]) -> dict[str, list[LimitKind]]:
    found: dict[str, list[LimitKind]] = {}
    for name, kind in kinds.items():
        if metric_of(kind).numeric:
            found.setdefault(figure_of(name), []).append(kind)
    return found


def _figure(name: str, entry: Marked, figures: Mapping[str, list[LimitKind]], problems: Problems) -> Limit | None:
    """A limit without a value on the figure of that name."""
    kinds = figures.get(name, [])
    percentile = percentile_limit(f"max_{name}")
    if not kinds and percentile is not None:
        kinds = [percentile]
    if not kinds and figure_of(name) in figures:
        problems.add(entry, f"{MAX_CHANGE} names figures, not limits on them: write {figure_of(name)} for {name}")
        return None
    if not kinds:
        words = [*figures, *(field.name for field in FIELDS)]
        problems.add(entry, f"{MAX_CHANGE}: no limit is on a figure {name!r}{nearest(name, words)}")
        return None
    if len(kinds) > 1:
        told = " and ".join(kind.name for kind in kinds)
        problems.add(entry, f"{MAX_CHANGE}: {name} may be the figure of {told}: name the task otherwise")
        return None
    return Limit(kinds[0], (), entry.file, entry.line, columns=entry.columns)


def _amount(name: str, entry: Marked, kind: LimitKind, problems: Problems) -> tuple[float, str, str] | None:
    """How much a figure may get worse, as the user wrote it, and in which unit; None, and a problem, where not."""
    unit, way, other = (POINTS if in_points(kind) else SHARE), *(("-", "+") if kind.bound == "min" else ("+", "-"))
    worse = "less" if kind.bound == "min" else "more"
    example = f"{way}5 %" if unit == SHARE else f"{way}1 points"
    text = " ".join(str(entry.value).split())
    found = AMOUNT.fullmatch(text) if isinstance(entry.value, str) else None
    why = ""
    if entry.value == AUTO:
        why = "takes no `auto`: what runs differ by is in its bounds, and how much worse is still good, you decide"
    elif isinstance(entry.value, dict):
        why = "takes one value: it is a share of what the same machine had before"
    elif found is None:
        why = f"must be how much it may change, such as {example}, not {entry.plain!r}"
    elif (found[3] == "%") != (unit == SHARE):
        share = "of what?" if unit == POINTS else "it is no percentage"
        why = f"changes by {'points' if unit == POINTS else '%'}, as in {example}: {text} is ambiguous, {share}"
    elif found[1] == other or (not found[1] and way == "-" and float(found[2])):
        why = f"gets worse when it is {worse}: write {way}{text.lstrip('+-').strip()}"
    elif unit == SHARE and way == "-" and float(found[2]) >= 100:
        why = f"can never be exceeded: nothing loses more than all of it, and {text} is all"
    if why or found is None:
        problems.add(entry, f"{MAX_CHANGE}: {name} {why}")
        return None
    return float(found[2]), text, unit
