"""The history of runs as lines: a trend a figure, with sparklines. Runs that cannot be compared are trends apart."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.changes import MAX_CHANGE, figure_of
from pytest_quantbudget.core.history import MethodRun
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.core.units import format_apart, format_value
from pytest_quantbudget.core.verdict import OVER
from pytest_quantbudget.judge import trend
from pytest_quantbudget.judge.metrics import limit_kinds, percentile_limit
from pytest_quantbudget.judge.trend import Rule, Scale, in_points
from pytest_quantbudget.report.history import Past

BARS = "▁▂▃▄▅▆▇█"
PLAIN = "12345678"  # where the output knows no bars
LONGEST = 60  # bars in a line, of the newest runs
MOST_OVER = 5
SHARE_WORTH, POINTS_WORTH = 2.0, 0.5  # percent and points; a smaller step is not named
SHOWN_OF_A_COMMIT = 12


@dataclass(frozen=True)
class Trend:
    """A figure of comparable runs, the oldest first."""

    method: str
    name: str
    runs: tuple[MethodRun, ...]

    @property
    def values(self) -> list[float]:
        """The figure of each run, in base units."""
        return [run.figures[self.name].value for run in self.runs]

    @property
    def identity(self) -> dict[str, str]:
        """What they have in common."""
        return self.runs[-1].identity(self.name)

    @property
    def kind(self) -> LimitKind | None:
        """The limit on the figure; None for one of a package that is not here."""
        tasks = [part.removeprefix("task ") for part in self.runs[-1].parts if part.startswith("task ")]
        return limit_kinds(tasks).get(self.name) or percentile_limit(self.name)


def spark(values: Sequence[float], bars: str = BARS) -> str:
    """A bar for each value, between the least and the greatest; bars of the middle where all are the same."""
    low, high = min(values), max(values)
    top = len(bars) - 1
    return "".join(bars[round((v - low) / (high - low) * top) if high > low else top // 2] for v in values[-LONGEST:])


def trends(past: Past, budget: str = "*", method: str = "*", limit: str | None = None) -> list[Trend]:
    """The trends of the figures that had limits, or of those on which `limit` is, by the names of limits or figures.

    `budget`, `method` and `limit` may hold `*` and `?`; a budget is named by its path or by the last part of it. Of
    several trends of one figure, the one with the newest run comes first.
    """
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[tuple[str, float], MethodRun]] = {}
    for run in past.runs:
        names = (run.budget, run.budget.rpartition("/")[2])
        if not fnmatch.fnmatchcase(run.method, method) or not any(fnmatch.fnmatchcase(n, budget) for n in names):
            continue
        for name, figure in run.figures.items():
            key = run.method, name, tuple(sorted(run.identity(name).items()))
            # What a run reuses is no other observation.
            found.setdefault(key, {}).setdefault((figure.measured or run.at, figure.value), run)
    limited = {(run.method, name) for run in past.runs for name in _limited(run)}
    told = [Trend(key[0], key[1], tuple(runs.values())) for key, runs in found.items()]
    wanted = [each for each in told if _wanted(each, limit, limited)]
    newest: dict[tuple[str, str], str] = {}
    for each in wanted:
        newest[each.method, each.name] = max(newest.get((each.method, each.name), ""), each.runs[-1].at)
    order = list(newest)
    by_figure = sorted(wanted, key=lambda each: each.runs[-1].at, reverse=True)
    return sorted(by_figure, key=lambda each: order.index((each.method, each.name)))


def _limited(run: MethodRun) -> set[str]:
    """The figures of a run on which limits were, by the names under which they are kept."""
    changes = {name.removeprefix(f"{MAX_CHANGE}_") for name in run.verdicts if name.startswith(f"{MAX_CHANGE}_")}
    return {name for name in run.figures if name in run.verdicts or figure_of(name) in changes}


def _wanted(each: Trend, limit: str | None, limited: set[tuple[str, str]]) -> bool:
    if limit is None:
        return not limited or (each.method, each.name) in limited
    figure = figure_of(each.name)
    return any(fnmatch.fnmatchcase(name, limit) for name in (each.name, figure, f"{MAX_CHANGE}_{figure}"))


def lines(found: Sequence[Trend], last: int | None = None, bars: str = BARS) -> Iterator[str]:
    """Each trend in words, of its `last` runs where that is given."""
    newest: dict[tuple[str, str], Trend] = {}
    for each in found:
        main = newest.setdefault((each.method, each.name), each)
        for line in _lines(each, main, last, bars):
            # A history may come from anywhere.
            yield printable(line)


def _lines(each: Trend, main: Trend, last: int | None, bars: str) -> Iterator[str]:
    first = max(0, len(each.runs) - last) if last is not None else 0
    values, runs = each.values[first:], each.runs[first:]
    figures = [run.figures[each.name] for run in runs]
    unit = figures[-1].unit
    before, now = format_apart(values[0], values[-1], unit=unit) if len(values) > 1 else ("", "")
    ends = f"{before} to {now}" if before else format_value(values[-1], unit)
    count = f"{len(runs):,} run{'s' if len(runs) > 1 else ''}"
    verdict = runs[-1].verdicts.get(each.name)
    limit = f", limit {verdict.limit_text}" if verdict is not None and verdict.limit_text else ""
    yield f"{each.method} {each.name}  {spark(values, bars)}  {ends}, {count}{limit}"
    yield f"    {_where(each)}, {runs[0].at} to {runs[-1].at}"
    if each is not main:
        unlike = trend.differences(each.identity, main.identity)
        yield f"    not compared with the runs above: {'; '.join(unlike)}"
    yield from (f"    {line}" for line in _steps(each, first))
    yield from (f"    {line}" for line in _over(each, first))


def _where(each: Trend) -> str:
    """The machine and the model."""
    subject, newest = each.identity, each.runs[-1]
    machine = ", ".join(filter(None, [subject.get("CPU") or subject.get("device", ""), _threads(subject)]))
    revision = subject.get("revision", "")
    model = f"{subject.get('model', '')}{f' at {revision[:SHOWN_OF_A_COMMIT]}' if revision else ''}"
    return f"{machine or 'machine not known'}, {model}, {newest.budget}"


def _threads(subject: dict[str, str]) -> str:
    count = subject.get("threads", "")
    return f"{count} thread{'' if count == '1' else 's'}" if count else ""


def _steps(each: Trend, first: int) -> Iterator[str]:
    """Where the figure got worse beyond the noise, in words: the run at which it began, and whether it still is."""
    kind = each.kind
    if kind is None:
        return
    points = [trend.point(run, each.name) for run in each.runs]
    scale, worse = Scale(kind), "less" if kind.bound == "min" else "more"
    try:
        changes = list(trend.replay(points, Rule(kind, scale.harm(POINTS_WORTH if in_points(kind) else SHARE_WORTH))))
    except ValueError:  # a figure of 0 has no logarithm
        return
    began: int | None = None
    for i, change in enumerate(changes):
        shown = change is not None and change.exceeds and change.shown
        if not shown:
            began = None
        elif began is None and change is not None:
            began = i
            if i >= first:
                harm = scale.place(points[i].value) - scale.place(change.before)
                amount = format_value(scale.amount(harm), "points" if in_points(kind) else "%")
                run = each.runs[i]
                commit = f", commit {run.commit[:SHOWN_OF_A_COMMIT]}" if run.commit else ""
                told = _libraries(each.runs[i - 1], run)
                yield f"worse beyond the noise from run {i - first + 1} on ({run.at}{commit}): {amount} {worse}{told}"


def _libraries(before: MethodRun, now: MethodRun) -> str:
    names = [n for n in now.libraries if n in before.libraries and before.libraries[n] != now.libraries[n]]
    return "".join(f"; {name} {before.libraries[name]} is {now.libraries[name]}" for name in names[:MOST_OVER])


def _over(each: Trend, first: int) -> Iterator[str]:
    """The runs in which a limit on the figure, or on its change, was over."""
    for name in (each.name, f"{MAX_CHANGE}_{figure_of(each.name)}"):
        numbers = [
            (i - first + 1, run.at)
            for i, run in enumerate(each.runs)
            if i >= first and name in run.verdicts and run.verdicts[name].outcome == OVER
        ]
        if numbers:
            told = ", ".join(f"{number} ({at})" for number, at in numbers[:MOST_OVER])
            more = f" and {len(numbers) - MOST_OVER:,} more" if len(numbers) > MOST_OVER else ""
            yield f"{name} was over in run {told}{more}"
