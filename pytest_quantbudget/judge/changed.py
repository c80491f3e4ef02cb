"""The verdict on a change: a method's figure against those of earlier runs. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pytest_quantbudget.core import limits
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.history import MethodRun
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.units import digits_apart, format_apart, format_value
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge import series, trend
from pytest_quantbudget.judge.metrics import figure
from pytest_quantbudget.judge.metrics.base import Unmeasured
from pytest_quantbudget.judge.trend import Change, Point, Rule, Scale
from pytest_quantbudget.judge.verdict import not_measured

MOST_LIBRARIES = 5


def judge_change(
    budget: Budget,
    method: Method,
    asked: ChangeLimit,
    measured: Mapping[str, Measurement],
    past: Sequence[MethodRun],
    cpu: str,
) -> Verdict:
    """The verdict on how a figure has changed since the `past` runs, the oldest first.

    `measured` are the measurements of the method and, for a relation, of the baseline; `cpu` is that of their machine.
    """
    name, kind = f"{method.name}: {asked.name}", asked.limit.kind
    try:
        figure(budget.basis_of(method.name), method.name, asked.limit, measured)
    except Unmeasured as missing:
        return not_measured(name, method.name, missing)
    now = series.method_run(budget, method, [kind], measured, cpu)
    if kind.name not in now.figures:
        return Verdict(
            FAILED, f"{name} not judged: its figure has no bound, or is of another machine than its baseline"
        )
    found = trend.series([run for run in past if run.at >= asked.since], now, kind.name)
    own = trend.point(now, kind.name)
    if not found.points:
        return Verdict(SKIPPED, f"{name} has nothing to compare with: {_alone(method, asked, past, found.unlike)}")
    scale = Scale(kind)
    rule = Rule(kind, scale.harm(asked.allowed), asked.median_of, asked.in_a_row, asked.limit.judging.confidence)
    try:
        change = trend.change(found.points, own, rule)
    except ValueError as error:
        return Verdict(SKIPPED, f"{name} cannot be judged: {error}; it was so in an earlier run, or is now")
    assert change is not None
    return _verdict(name, asked, change, rule, own, _since_then(past, found.points[-1], now))


def _alone(method: Method, asked: ChangeLimit, past: Sequence[MethodRun], unlike: Sequence[str]) -> str:
    """Why there is no run to compare with."""
    after = f" since {asked.since}" if asked.since else ""
    if unlike:
        return f"the history holds no comparable run{after}: {'. '.join(unlike)}"
    others = ", ".join(dict.fromkeys(run.method for run in past if run.at >= asked.since))
    return f"the history holds no earlier run of {method.name}{after}" + (f" (only of {others})" if others else "")


def _verdict(name: str, asked: ChangeLimit, change: Change, rule: Rule, own: Point, told: str) -> Verdict:
    policy = asked.limit.judging.undecided
    decision = change.bounds.side("max", rule.harm) if change.bounds is not None else ""
    over = change.exceeds
    if decision == UNDECIDED:
        # Under `estimate`, what runs differ by anyway is no change: the best guess is that there was none.
        over = policy == limits.FAIL or (policy == limits.ESTIMATE and change.exceeds and change.shown)
    held = change.row >= asked.in_a_row or not change.exceeds
    waits = over and not held
    message = f"{name} measured {_measured(asked, change, rule, own)}"
    if waits:
        row = f"{change.row} run{'s' if change.row > 1 else ''} of {asked.in_a_row} in a row"
        message += f"; undecided: it has been so in {row}, and passes until then"
        decision = UNDECIDED
    elif decision == UNDECIDED:
        message += f"; undecided: {_why(change)}, and {_policy(policy, over=over, within=not change.exceeds)}"
    outcome = OVER if over and held else WITHIN
    if (outcome == OVER or waits) and told:
        message += f"; since {told}"
    low, high = _ends(change, rule)
    return Verdict(
        outcome,
        message,
        Scale(rule.kind).amount(change.harm),
        asked.allowed,
        asked.text,
        asked.unit,
        decision=decision,
        low=low,
        high=high,
        confidence=rule.confidence if change.bounds is not None else None,
        n=change.runs if change.bounds is not None else None,
        of="questions" if change.paired is not None else "runs",
    )


def _ends(change: Change, rule: Rule) -> tuple[float | None, float | None]:
    """The bounds of the change in percent or points; None for those that are infinite."""
    if change.bounds is None:
        return None, None
    scale = Scale(rule.kind)
    # Harm of 100 % is all that a throughput has: as a logarithm that has no end.
    low, high = (scale.amount(end) if math.isfinite(end) else None for end in (change.bounds.low, change.bounds.high))
    return low, high


def _why(change: Change) -> str:
    assert change.bounds is not None
    if not math.isfinite(change.bounds.high - change.bounds.low):
        runs = f"{change.runs} earlier run{'s show' if change.runs > 1 else ' shows'}"
        return f"{runs} no noise, {trend.FEWEST} do"
    return "it is more than noise" if change.shown else "it is within the noise"


def _policy(policy: str, *, over: bool, within: bool) -> str:
    if policy == limits.FAIL:
        return "`undecided: fail` counts that as over"
    if policy == limits.PASS:
        return "`undecided: pass` lets that through"
    return "the estimate decides" if over or within else "that counts as no change"


def _measured(asked: ChangeLimit, change: Change, rule: Rule, own: Point) -> str:
    """`20.2 % less, limit 5.0 %, 99 % bounds 15.1 to 25.0 (80.0 tokens/s, 100 in the median of 5 runs)`.

    Of a change for the better, the bounds are those of the gain.
    """
    amount, unit = Scale(rule.kind).amount(change.harm), asked.unit
    ends = [end for end in _ends(change, rule) if end is not None]
    digits = digits_apart(asked.allowed, [amount, *ends], unit)
    worse, better = ("less", "more") if rule.kind.bound == "min" else ("more", "less")
    gained = amount < 0
    parts = [f"{format_value(abs(amount), unit, digits)} {better if gained else worse}"]
    parts.append(f"limit {format_value(asked.allowed, unit, digits)}{f' {worse}' if gained else ''}")
    if len(ends) == 2 and ends[0] < ends[1]:
        shown = sorted(-end for end in ends) if gained else ends
        low, high = (format_value(end, unit, digits, show_unit=False) for end in shown)
        parts.append(f"{100 * rule.confidence:g} % bounds {low} to {high}")
    return f"{', '.join(parts)} ({'; '.join(_made_of(change, rule, own))})"


def _made_of(change: Change, rule: Rule, own: Point) -> list[str]:
    unit = rule.kind.unit_of(max(own.value, change.before))
    now, before = format_apart(own.value, change.before, unit=unit)
    of = "the last run" if change.compared == 1 else f"the median of the last {change.compared} runs"
    told = [f"{now}, {before} in {of}"]
    if change.row > 1:
        told[0] = f"in the mean of {change.row} runs in a row, this one {told[0]}"
    if change.paired is not None:
        lost, won, n = change.paired.b, change.paired.c, change.paired.n
        told.append(f"{lost:,} newly wrong, {won:,} newly right of {n:,}")
    elif change.bounds is not None and math.isfinite(change.bounds.low):
        told.append(f"by the spread of {change.runs} runs")
    return told


def _since_then(past: Sequence[MethodRun], last: Point, now: MethodRun) -> str:
    """Which versions of libraries are others since the last comparable run: what a change may come from."""
    before = next((run.libraries for run in past if (run.run, run.method) == (last.run, now.method)), {})
    names = [name for name in now.libraries if name in before and before[name] != now.libraries[name]]
    told = [f"{name} {before[name]} is {now.libraries[name]}" for name in names[:MOST_LIBRARIES]]
    return f"{last.at}, {', '.join(told)}" if told else ""
