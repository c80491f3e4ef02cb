"""The history of runs: figures and verdicts of each, as JSON lines in a folder or below a URL that many runs share.

A run writes one small file, under a name that no other run takes, and changes none. So there is nothing to lock, a run
that is killed while it writes spoils itself alone, and object stores, which cannot append, hold a history like any
other place. (Appending to one file is not safe on NFS either: open(2), O_APPEND.) A reader takes every `.jsonl` in the
order of the runs' times, however many runs are in one; `cat *.jsonl` makes one of many.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_quantbudget.core import codec, places
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import Commit
from pytest_quantbudget.core.history import VERSION, MethodRun
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.judge import series, trend
from pytest_quantbudget.judge.trend import Moved

ENDING = ".jsonl"
MAX_FILES = 2_000  # that are read, the newest
MAX_FILE = 20_000_000  # bytes of one
MAX_TOTAL = 500_000_000  # bytes of all
MAX_LINE = 5_000_000  # bytes
MAX_NOTES = 10
TIME = "%Y-%m-%dT%H:%M:%SZ"
TIMES = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+00:00)")


@dataclass(frozen=True)
class Past:
    """The runs of a history, oldest first, and what of it could not be used, in words."""

    runs: tuple[MethodRun, ...] = ()
    notes: tuple[str, ...] = ()


def read(place: str) -> Past:
    """The history at a place, a directory or URL; an empty one where there is nothing yet.

    A line that is torn, of another release or no line of a history is noted and left out, and nothing else is lost.
    Raises OSError where the place cannot be read, and what fsspec raises for a URL that it does not know.
    """
    return _Reader(places.at(place)).read()


class _Reader:
    def __init__(self, place: places.Place) -> None:
        self.place = place
        self.notes: list[str] = []

    def read(self) -> Past:
        sizes = {name: size for name, size in self.place.sizes().items() if name.endswith(ENDING)}
        chosen = self._chosen(sizes)
        runs: dict[tuple[str, str, str, str], MethodRun] = {}
        for name, data in self.place.read_all(chosen).items():
            if data is None:
                self._note(f"{name} cannot be read")
                continue
            for run in self._lines(name, data):
                # A run that stands in two files is one.
                runs.setdefault((run.at, run.run, run.budget, run.method), run)
        more = len(self.notes) - MAX_NOTES
        notes = [*self.notes[:MAX_NOTES], *([f"and {more:,} more places in the history"] if more > 0 else [])]
        return Past(tuple(runs[key] for key in sorted(runs)), tuple(notes))

    def _chosen(self, sizes: dict[str, int]) -> list[str]:
        """The files that are read: names begin with the time, so the last ones are the newest."""
        small = []
        for name in sorted(sizes):
            if sizes[name] > MAX_FILE:
                self._note(f"{name} is {sizes[name]:,} bytes long, and a file of a history has at most {MAX_FILE:,}")
            else:
                small.append(name)
        chosen: list[str] = []
        total = 0
        for name in reversed(small):
            total += sizes[name]
            if len(chosen) == MAX_FILES or total > MAX_TOTAL:
                left = len(small) - len(chosen)
                self._note(f"only the newest {len(chosen):,} files are read; {left:,} older ones are left out")
                break
            chosen.append(name)
        return chosen[::-1]

    def _lines(self, name: str, data: bytes) -> Iterable[MethodRun]:
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                yield _run(line)
            except ValueError as error:
                torn = " (torn?)" if not data.endswith(b"\n") and number == data.count(b"\n") + 1 else ""
                self._note(f"{name}:{number} is left out{torn}: {error}")

    def _note(self, what: str) -> None:
        self.notes.append(safe(f"history: {what}"))


def _run(line: bytes) -> MethodRun:
    """A line as what a run kept. Raises ValueError in words."""
    if len(line) > MAX_LINE:
        raise ValueError(f"it is {len(line):,} bytes long")
    data = codec.read_json(line)
    if not isinstance(data, dict) or "run" not in data:
        raise ValueError("it is no line of a history")
    if data.get("version") != VERSION:
        raise ValueError(f"it is of version {data.get('version')!r:.20}, and this release reads version {VERSION}")
    run = codec.from_builtins(MethodRun, data)
    if not TIMES.fullmatch(run.at):
        raise ValueError(f"{run.at!r:.40} is no time")
    return run


def line(run: MethodRun) -> str:
    """What a run kept of a method, as one line of JSON."""
    return json.dumps(codec.to_builtins(run), allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def write(place: str, runs: Sequence[MethodRun]) -> bool:
    """Add a run to a history, in a file of its own; whether there was anything to add.

    Raises OSError where the place cannot be written.
    """
    if not runs:
        return False
    text = "".join(f"{line(run)}\n" for run in runs)
    try:
        places.at(place).write(f"{runs[0].run}{ENDING}", text.encode())
    except ValueError as error:  # a URL that is none
        raise OSError(str(error)) from None
    return True


def name_of(at: str) -> str:
    """A name for a run that ended `at` (ISO 8601), which no other run takes: the time, and twelve random digits."""
    return f"{at.replace(':', '').removesuffix('Z')}Z-{os.urandom(6).hex()}"


def runs_of(
    judged: Iterable[tuple[Budget, Sequence[LimitReport], str]],
    measurements: dict[str, Measurement],
    cpu: str,
    at: str,
    commit: Commit | None,
) -> list[MethodRun]:
    """What a run that ended `at` keeps of each method that was measured.

    `judged` are the budgets with their limits and the names that they are kept under; `measurements` are by subject;
    `cpu` is that of the machine that measured.
    """
    when = _utc(at)
    name = name_of(when)
    found = []
    for budget, limits, file in judged:
        measured = budget.measured(measurements)
        for method in budget.methods:
            if method.name in measured:
                mine = [limit for limit in limits if limit.method == method.name]
                kept = series.method_run(budget, method, series.all_kinds(budget, method), measured, cpu, mine)
                sha = f"{commit.sha}{' and changes' if commit.dirty else ''}" if commit is not None else ""
                found.append(replace(kept, run=name, at=when, budget=file, commit=sha))
    return found


def _utc(at: str) -> str:
    return datetime.datetime.fromisoformat(at).astimezone(datetime.UTC).strftime(TIME)


def new(past: Iterable[MethodRun], runs: Iterable[MethodRun]) -> list[MethodRun]:
    """Those of the runs that hold a figure which the history does not: of a report that is judged again, often none."""
    known = {_observed(run, name) for run in past for name in run.figures}
    return [run for run in runs if any(_observed(run, name) not in known for name in run.figures)]


def _observed(run: MethodRun, name: str) -> tuple[object, ...]:
    figure = run.figures[name]
    return name, figure.measured, figure.value, tuple(sorted(run.identity(name).items()))


def changes(past: Iterable[MethodRun], budget: Budget, now: Sequence[MethodRun]) -> list[Moved]:
    """What changed against the last comparable run: every figure of a budget's methods that has one.

    `now` is what this run keeps of the budget's methods. Methods are in the order of the file, and figures in that of
    the table of limits.
    """
    before = tuple(past)
    found = []
    for run in now:
        method = _method(budget, run.method)
        kinds = {kind.name: kind for kind in series.all_kinds(budget, method)}
        each = (trend.moved(before, run, kinds[name]) for name in run.figures)
        found += [one for one in each if one is not None]
    return found


def _method(budget: Budget, name: str) -> Method:
    return budget.method(name)
