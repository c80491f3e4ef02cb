"""A figure against those of earlier runs: what is compared, by how much it differs, and what of that is noise.

Runs differ from each other by more than the repeats of one run do, and only a history of runs shows by how much. Pure
functions; docs/history.md says what they promise, and benchmarks/history.py measures it.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.changes import CONFIDENCE, MEDIAN_OF, figure_of
from pytest_quantbudget.core.history import MethodRun, unpacked
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.judge.distributions import t_quantile
from pytest_quantbudget.judge.intervals import Interval, Paired, pair
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.base import COUNTED, RANGE

FEWEST = 4  # earlier runs from which a spread is taken
ROBUST = 8  # from so many on, the spread is one that outliers do not widen
SPREAD_OF = 20  # runs, the newest, whose spread counts
POINTS, SHARE = "points", "%"
NOTHING = Interval(-math.inf, math.inf)


@dataclass(frozen=True)
class Point:
    """A figure of one run, and when that was; `outcomes` are those of a task's questions."""

    run: str
    at: str
    value: float
    measured: str = ""
    outcomes: str = ""


@dataclass(frozen=True)
class Series:
    """The earlier runs that a figure can be compared with, oldest first, and why others cannot, in words."""

    points: tuple[Point, ...]
    unlike: tuple[str, ...] = ()


def series(past: Iterable[MethodRun], now: MethodRun, name: str) -> Series:
    """The runs before `now` whose figure of this name is one of the same thing, measured in the same way.

    What `now` reuses of an earlier run is no other observation, and neither is a figure that was kept twice.
    """
    wanted = now.identity(name)
    seen = {_observation(point(now, name))}
    points: list[Point] = []
    unlike: dict[tuple[str, ...], int] = {}
    for run in sorted(past, key=lambda run: (run.at, run.run)):
        if run.method != now.method or name not in run.figures:
            continue
        differs = differences(run.identity(name), wanted)
        found = point(run, name)
        if differs:
            unlike[differs] = unlike.get(differs, 0) + 1
        elif _observation(found) not in seen:
            seen.add(_observation(found))
            points.append(found)
    nearest = sorted(unlike, key=len)
    told = (f"{_runs(unlike[each])}: {'; '.join(each[:MOST_TOLD])}" for each in nearest[:MOST_TOLD])
    return Series(tuple(points), tuple(told))


MOST_TOLD = 3


def _runs(count: int) -> str:
    return f"{count:,} run{'s' if count > 1 else ''}"


def point(run: MethodRun, name: str) -> Point:
    """A run's figure of this name."""
    figure = run.figures[name]
    return Point(run.run, run.at, figure.value, figure.measured or run.at, figure.outcomes)


def _observation(found: Point) -> tuple[str, float]:
    return found.measured, found.value


def differences(then: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    """What two runs differ in, in words: `device was NVIDIA L4 and is NVIDIA H100`."""
    names = (name for name in {**now, **then} if then.get(name) != now.get(name))
    return tuple(f"{name} was {_said(then.get(name))} and is {_said(now.get(name))}" for name in names)


def _said(value: str | None) -> str:
    return "not given" if value is None else value if len(value) < 80 else f"{value[:79]}\N{HORIZONTAL ELLIPSIS}"


def in_points(kind: LimitKind) -> bool:
    """Whether a change of such a figure is told in percentage points; otherwise in percent of what it was."""
    return kind.unit in ("%", POINTS) or 1 in (
        kind.kind.schema.get("maximum"),
        kind.kind.schema.get("exclusiveMaximum"),
    )


@dataclass(frozen=True)
class Scale:
    """How figures of a kind are compared: as logarithms, whose differences are factors, or in percentage points.

    What is worse is larger: `harm` of a throughput rises when that falls.
    """

    kind: LimitKind

    @property
    def sign(self) -> int:
        """1 where more is worse."""
        return 1 if self.kind.bound == "max" else -1

    def place(self, value: float) -> float:
        """Where a figure lies, the worse the higher. Raises ValueError for one that no share can be taken of."""
        if in_points(self.kind):
            return self.sign * value * (1 if self.kind.unit in ("%", POINTS) else 100)
        if value <= 0:
            raise ValueError("a figure of 0 changes by no share")
        return self.sign * math.log(value)

    def amount(self, harm: float) -> float:
        """A difference of places in percent of what was there before, or in points; positive where it is worse."""
        if in_points(self.kind) or not math.isfinite(harm):
            return harm
        return self.sign * 100 * (math.exp(min(self.sign * harm, 700.0)) - 1)

    def harm(self, amount: float) -> float:
        """The inverse of `amount`; infinite for a loss of all."""
        if in_points(self.kind):
            return amount
        left = 1 + self.sign * amount / 100
        return self.sign * math.log(left) if left > 0 else math.inf


@dataclass(frozen=True)
class Spread:
    """How much single runs vary: a standard deviation on the scale of a kind, known as well as `freedom` says."""

    deviation: float
    freedom: float
    runs: int


def spread(places: Sequence[float]) -> Spread | None:
    """The spread of the newest runs; None of fewer than FEWEST.

    From ROBUST runs on it is Qn, a quantile of all differences between two, which a quarter of outliers leaves alone
    and an old step widens little: Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation", Journal
    of the American Statistical Association 88, 1273-1283. Its degrees of freedom are those of a t quantile that keeps
    its confidence (n - 2, by simulation: benchmarks/history.py). Of fewer runs, Qn says too little.
    """
    newest = places[-SPREAD_OF:]
    n = len(newest)
    if n < FEWEST:
        return None
    if n < ROBUST:
        return Spread(statistics.stdev(newest), n - 1, n)
    half = n // 2 + 1
    apart = sorted(abs(x - y) for i, x in enumerate(newest) for y in newest[:i])
    # For small samples: Croux and Rousseeuw 1992, "Time-Efficient Algorithms for Two Highly Robust Estimators".
    small = {8: 0.669, 9: 0.872}.get(n, n / (n + (1.4 if n % 2 else 3.8)))
    return Spread(2.2219 * small * apart[half * (half - 1) // 2 - 1], n - 2, n)


_t = functools.cache(t_quantile)  # the same few are asked for in every run of a history


def reach(found: Spread, now: int, before: int, confidence: float) -> float:
    """How far a bound is from the difference between the mean of `now` runs and the median of `before` others.

    A prediction interval (Hahn and Meeker 1991, "Statistical Intervals", chapter 4). The variance of a median of
    normal values is at most pi / 2 times that of their mean.
    """
    median = 1 / before if before < 3 else math.pi / 2 / before
    return _t(confidence, found.freedom) * found.deviation * math.sqrt(1 / now + median)


@dataclass(frozen=True)
class Rule:
    """What is asked of a change: at most `harm` (on the scale of the kind) against the median of the last `of` runs.

    It is over once that has been so for `in_a_row` runs.
    """

    kind: LimitKind
    harm: float
    of: int = MEDIAN_OF
    in_a_row: int = 1
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Change:
    """How a run's figure differs from those before: `harm` and its `bounds`, on the scale of the kind.

    `before` is the figure that it is compared with, a median of `compared` runs. `exceeds` says that it is more than
    the rule allows, in so many runs in a `row`, of which `harm` is the mean; `shown` that it is more than noise. The
    bounds rest on `runs`, or on the questions that are `paired`; they are infinite where these are too few, and None
    where the figure does not vary.
    """

    harm: float
    before: float
    compared: int
    bounds: Interval | None
    runs: int
    exceeds: bool
    row: int
    shown: bool
    paired: Paired | None = None


@dataclass
class _Replay:
    """The runs in their order: which of them the next is compared with.

    A run that exceeds the rule is no reference for the next: a job that failed would pass when it is run again. It
    becomes one where the runs after it show that it was noise, and at once where too few runs show what noise is.
    """

    rule: Rule
    accepted: list[Point]
    pending: list[Point]
    over: bool = False

    def take(self, now: Point) -> Change | None:
        """How the next run differs; None where there is nothing to compare it with."""
        change = self.compare(now)
        learning = change is not None and not change.shown and len(self.accepted) < FEWEST
        if change is None or not change.exceeds or learning:
            if not self.over:
                self.accepted += self.pending
            self.pending, self.over = [], False
            self.accepted.append(now)
            return change
        self.pending.append(now)
        self.over = self.over or (change.shown and change.row >= self.rule.in_a_row)
        return change

    def compare(self, now: Point) -> Change | None:
        """How a run differs from the ones accepted before it; None where there are none."""
        if not self.accepted:
            return None
        last = self.accepted[-self.rule.of :]
        paired = _paired(last, now) if all(each.outcomes for each in (*last, now)) else None
        return self._by_question(now, paired, len(last)) if paired is not None else self._by_runs(now, last)

    def _by_question(self, now: Point, paired: Paired, compared: int) -> Change:
        bounds = paired.drop_interval(self.rule.confidence)
        exceeds = paired.drop > self.rule.harm
        row = len(self.pending) + 1 if exceeds else 0
        before, shown = now.value + paired.drop, bounds.low > 0
        return Change(paired.drop, before, compared, bounds, paired.n, exceeds, row, shown, paired)

    def _by_runs(self, now: Point, last: Sequence[Point]) -> Change:
        rule, scale = self.rule, Scale(self.rule.kind)
        before = statistics.median(each.value for each in last)
        reference = scale.place(before)
        exceeds = scale.place(now.value) - reference > rule.harm
        together = [*self.pending, now] if exceeds else [now]
        harm = statistics.fmean(scale.place(each.value) for each in together) - reference
        found = spread([scale.place(each.value) for each in self.accepted])
        margin = metric_of(rule.kind).margin
        bounds: Interval | None = NOTHING
        if margin == COUNTED or (margin == RANGE and found is None):
            # Counted to the byte: whatever differs is a change.
            bounds = None
        elif found is not None:
            far = reach(found, len(together), len(last), rule.confidence)
            bounds = Interval(harm - far, harm + far)
        shown = bounds is None or bounds.low > 0
        runs = found.runs if found is not None else len(self.accepted)
        return Change(harm, before, len(last), bounds, runs, exceeds, len(together) if exceeds else 0, shown)


def replay(points: Sequence[Point], rule: Rule) -> Iterator[Change | None]:
    """How each run differs from those before it, in order; None for the first."""
    state = _Replay(rule, [], [])
    for each in points:
        yield state.take(each)


def change(points: Sequence[Point], now: Point, rule: Rule) -> Change | None:
    """How a run differs from the earlier `points`; None where there are none."""
    *_, last = replay([*points, now], rule)
    return last


def _paired(before: Sequence[Point], now: Point) -> Paired | None:
    """The outcomes of each question now against those of most runs before, as far as both were asked.

    Where the runs are divided, the newest decides.
    """
    votes = [unpacked(each.outcomes) for each in before]
    after = unpacked(now.outcomes)
    n = min(len(after), *map(len, votes))
    if not n:
        return None
    newest = votes[-1]
    mostly = [2 * sum(vote[i] for vote in votes) + newest[i] > len(votes) for i in range(n)]
    return pair(mostly, after[:n])


@dataclass(frozen=True)
class Moved:
    """A figure of a method against the last comparable run, for a reader of this run's report.

    `name` is that of the limit on the figure (`min_tokens_per_s`), `before` and `now` are in base units, written in
    `unit`. `change` is what was added, in percent of what it was before or in percentage points (`of` says which);
    None where it was 0. `worse` says whether that is the harmful direction, and `beyond_noise` whether it is more than
    runs differ by; None where too few of them show that. `at` is when the run before ended, and `trend` has the figures
    of all comparable runs, the oldest first and this one last (of very many, the newest).
    """

    method: str
    name: str
    unit: str
    before: float
    now: float
    change: float | None
    of: str
    worse: bool
    beyond_noise: bool | None
    at: str
    runs: int
    trend: tuple[float, ...] = ()

    @property
    def figure(self) -> str:
        """The figure's name, without the bound of the limit on it."""
        return figure_of(self.name)


LONGEST_TREND = 60


def moved(past: Iterable[MethodRun], now: MethodRun, kind: LimitKind) -> Moved | None:
    """A figure against the last comparable run; None where there is none."""
    own = point(now, kind.name)
    points = series(past, now, kind.name).points
    if not points:
        return None
    last, scale = points[-1], Scale(kind)
    beyond: bool | None = False
    amount: float | None = 0.0
    if own.value != last.value:
        amount, beyond = None, None
        try:
            harm = scale.place(own.value) - scale.place(last.value)
            amount = scale.sign * scale.amount(harm)
            # Of a run that is compared with the last one alone: the spread of all, this one left out.
            found = change(points, own, Rule(kind, math.inf, of=1))
            beyond = _beyond(found)
        except ValueError:
            pass
    trend = (*(each.value for each in points), own.value)[-LONGEST_TREND:]
    worse = own.value != last.value and (own.value > last.value) == (kind.bound == "max")
    of = POINTS if in_points(kind) else SHARE
    figure = now.figures[kind.name]
    return Moved(
        now.method,
        kind.name,
        figure.unit,
        last.value,
        own.value,
        amount,
        of,
        worse,
        beyond,
        last.at,
        len(points),
        trend,
    )


def _beyond(found: Change | None) -> bool | None:
    if found is None or found.bounds is None:
        return None if found is None else True
    if not math.isfinite(found.bounds.high - found.bounds.low):
        return None
    return found.bounds.low > 0 or found.bounds.high < 0
