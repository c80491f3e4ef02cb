"""Reads `reference`: published scores, each of which is a limit of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_quantbudget.budget.tasks import Declared
from pytest_quantbudget.core.limits import Judging, Limit, Target
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.judge.metrics.reference import PublishedScore, read_reference

KEY = "reference"


def of_method(
    root: Marked,
    name: str,
    node: Marked | None,
    tasks: Mapping[str, Declared],
    judging: Mapping[str, Judging],
    problems: Problems,
) -> Sequence[Limit]:
    """The published scores of a method: those of its own `node`, and for the baseline those of the file.

    Its own hold before the file's. Mistakes are added to `problems`.
    """
    found = {limit.name: limit for limit in _read(node, tasks, judging, problems)}
    baseline = root.entries.get("baseline")
    if baseline is not None and baseline.value == name:
        found = {limit.name: limit for limit in _read(root.entries.get(KEY), tasks, judging, problems)} | found
    return list(found.values())


def check(root: Marked, problems: Problems, *, stored: bool) -> None:
    """Note published scores of the file that are those of no method: it has no baseline, or a `stored` one."""
    if KEY in root.entries and (stored or "baseline" not in root.entries):
        why = "which is that of a report" if stored else "and the file has no `baseline`"
        more = f"a method takes `{KEY}` of its own"
        problems.add(root.entries[KEY], f"{KEY} of the file is for the baseline, {why}; {more}")


def _read(
    node: Marked | None, tasks: Mapping[str, Declared], judging: Mapping[str, Judging], problems: Problems
) -> Iterator[Limit]:
    if node is None or node.value is None:
        return
    if not isinstance(node.value, dict):
        problems.add(node, f"{KEY} takes a score for each task, as in {{gsm8k: 89.5 ± 2}}, not {node.plain!r}")
        return
    for task, entry in node.entries.items():
        if task not in tasks:
            problems.add(entry, f"{KEY}: no task {task!r} is declared{nearest(task, tasks)}")
            continue
        try:
            found = read_reference(entry.plain)
        except ValueError as error:
            problems.add(entry, f"{KEY}: {task} {error}")
            continue
        (kind,) = PublishedScore().limits_of(task)
        target = Target("*", found.score, found.text, "%")
        yield Limit(kind, (target,), entry.file, entry.line, judging[task], entry.columns)
