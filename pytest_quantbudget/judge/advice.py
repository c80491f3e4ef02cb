"""Which method to take, from a run's own numbers: who meets every limit, who is dominated, and what fits which use.

The rules stand in docs/advice.md. A difference within bounds is none, and a figure that is missing is not a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quantbudget.core.budget import DEVELOPMENT, EDGE, PRODUCTION, QLORA, USES, Budget, Method
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict, happened
from pytest_quantbudget.judge.axes import Axis, axes

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement
    from pytest_quantbudget.judge.noise import Noise

# Whether a method meets its limits, and whether another one is better in every way.
MEETS, MISSES, UNKNOWN = "meets", "misses", "unknown"
FRONT, DOMINATED = "front", "dominated"

Limits = Mapping[str, Sequence[LimitReport]]


@dataclass(frozen=True)
class Standing:
    """What is said of one method.

    `limits` is MEETS, MISSES or UNKNOWN, and `why` names the limits. `place` is FRONT, DOMINATED (by the method `by`)
    or UNKNOWN, and `because` says why.
    """

    method: str
    limits: str
    why: str
    place: str
    by: str | None
    because: str


@dataclass(frozen=True)
class Fit:
    """The method that fits a use, and why; None where none does, and why not."""

    use: str
    method: str | None
    why: str


@dataclass(frozen=True)
class Advice:
    """What a run's numbers advise.

    `axes` are the figures that its methods are compared by, and `without` says which are left out, because most methods
    have none.
    """

    axes: tuple[str, ...]
    without: tuple[str, ...]
    methods: tuple[Standing, ...]
    fits: tuple[Fit, ...]

    def fit(self, use: str) -> Fit:
        """What fits a use."""
        return next(fit for fit in self.fits if fit.use == use)


@dataclass(frozen=True)
class _Rule:
    """What a use takes: those methods that `may`, or `lack` what is said; first, by the axes in this `order`."""

    order: tuple[str, ...]
    may: Callable[[Method], bool]
    lack: str = ""


# Axes by their best.
LEAST, FASTEST, BEST = "the least memory", "the fastest", "the best answers"
RULES: Mapping[str, _Rule] = {
    DEVELOPMENT: _Rule((LEAST, BEST, FASTEST), lambda method: method.traits.ready, "needs no file made beforehand"),
    QLORA: _Rule((LEAST, BEST, FASTEST), lambda method: method.traits.trains, "can carry an adapter in training"),
    PRODUCTION: _Rule((FASTEST, LEAST, BEST), lambda method: True),
    EDGE: _Rule((LEAST, FASTEST, BEST), lambda method: True),
}


def advise(
    budget: Budget, limits: Limits, measured: Mapping[str, Measurement], noise: Noise | None = None
) -> Advice | None:
    """What the numbers of a run advise; None where they cannot, because fewer than two methods were measured.

    `limits` are the judged ones, and `measured` the measurements, by the names of methods. A budget that names a use
    gets advice in any case.
    """
    names = [method.name for method in budget.methods if method.name in measured]
    if len(names) < 2 and not budget.uses:
        return None
    found, others = axes(budget, measured, noise)
    standings = {method.name: _standing(method, limits.get(method.name, ())) for method in budget.methods}
    places = _places(found, names)
    methods = []
    for name, (meets, why) in standings.items():
        place, by, because = places.get(name, (UNKNOWN, None, "it was not measured"))
        methods.append(Standing(name, meets, why, place, by, because))
    meeting = [method for method in budget.methods if standings[method.name][0] == MEETS]
    fits = tuple(_fit(use, meeting, budget, found) for use in USES)
    without = tuple(f"{axis.of} of {len(axis.values)} of {len(names)} methods" for axis in others)
    return Advice(tuple(axis.of for axis in found), without, tuple(methods), fits)


def _standing(method: Method, judged: Sequence[LimitReport]) -> tuple[str, str]:
    """Whether a method meets its limits, and which ones say so."""
    if not method.limits:
        return UNKNOWN, "it has no limits"
    # How it has changed since earlier runs says nothing about what it is good for.
    own = {limit.name for limit in method.limits}
    judged = [limit for limit in judged if limit.name in own]
    over = [limit.name for limit in judged if limit.verdict.outcome == OVER]
    if over:
        return MISSES, ", ".join(over)
    others = [limit for limit in judged if limit.verdict.outcome != WITHIN]
    if others:
        first = others[0]
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        said = happened(method.name, first.name, first.verdict.message)
        return UNKNOWN, f"{first.name} {first.verdict.outcome}{more}: {said}"
    left = len(method.limits) - len(judged)
    if left > 0:
        return UNKNOWN, f"{left} of {len(method.limits)} limits were not selected"
    unsure = [limit.name for limit in judged if limit.verdict.decision == UNDECIDED]
    return MEETS, f"{', '.join(unsure)} undecided" if unsure else ""


def _places(found: Sequence[Axis], names: Sequence[str]) -> dict[str, tuple[str, str | None, str]]:
    """Of each method whether it is on the Pareto front, which method dominates it, and why.

    Differences that are not told apart may make methods dominate each other in a circle: none of them is dominated
    then, unless one outside of the circle does it.
    """
    places: dict[str, tuple[str, str | None, str]] = {}
    for name in names:
        lacks = [axis.missing[name] for axis in found if name not in axis.values]
        if lacks or not found:
            places[name] = (UNKNOWN, None, lacks[0] if lacks else "nothing was measured that methods are compared by")
    known = [name for name in names if name not in places]
    beats = {name: [other for other in known if other != name and _dominates(found, name, other)] for name in known}
    reached = {name: _reached(beats, name) for name in known}
    for name in known:
        above = [other for other in known if name in beats[other] and other not in reached[name]]
        if not above:
            places[name] = (FRONT, None, "")
            continue
        first = [other for other in above if not any(other in reached[k] and k not in reached[other] for k in known)]
        by = (first or above)[0]
        places[name] = (DOMINATED, by, _because(found, by, name))
    return places


def _reached(beats: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """All that a method dominates, or that is dominated by one of these, and so on."""
    found: set[str] = set()
    left = list(beats[name])
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += beats[each]
    return found


def _dominates(found: Sequence[Axis], one: str, other: str) -> bool:
    """Whether a method is better than another in some way, and worse in none."""
    sides = set().union(*(axis.apart(one, other) for axis in found))
    return sides == {1}


def _because(found: Sequence[Axis], by: str, name: str) -> str:
    """In which ways a method is better than another, and in which no difference is told."""
    better = [f"{axis.better} ({axis.told(by)}, {axis.told(name)})" for axis in found if 1 in axis.apart(by, name)]
    alike = [axis.of for axis in found if not axis.apart(by, name)]
    return ", ".join(better) + (f", no difference told in {' and '.join(alike)}" if alike else "")


def _fit(use: str, meeting: Sequence[Method], budget: Budget, found: Sequence[Axis]) -> Fit:
    """The method that fits a use, of those that meet all their limits."""
    rule = RULES[use]
    left = [method.name for method in meeting if rule.may(method)]
    if not left:
        if any(map(rule.may, budget.methods)) or not rule.lack:
            what = f" of those that are known to meet all their limits {rule.lack}" if rule.lack and meeting else ""
            return Fit(use, None, f"none{what}" if what else "none is known to meet all its limits")
        return Fit(use, None, f"none {rule.lack}")
    group = f"{len(left)} that meet all their limits" + (
        f" and {rule.lack.replace('needs', 'need')}" if rule.lack else ""
    )
    if len(left) == 1:
        only = "the only one that meets all its limits"
        return Fit(use, left[0], f"{only} and {rule.lack}" if rule.lack else only)
    words: list[str] = []
    for axis in (axis for best in rule.order for axis in found if axis.best == best):
        known = [name for name in left if name in axis.values]
        if not known or len(left) == 1:
            continue
        top = max(known, key=lambda name: (axis.values[name], -known.index(name)))
        alike = [name for name in known if name == top or axis.apart(top, name) != {1}]
        # Of several that are alike another may be taken in the end: the figure is that of the first.
        whose = f"{top}: " if len(alike) > 1 else ""
        told = f"{axis.best} of {f'the {group}' if not words else 'these'} ({whose}{axis.told(top)})"
        more = [f"{len(alike) - 1} more within bounds"] if len(alike) > 1 else []
        words.append(", ".join([told, *more, *unknown([name for name in left if name not in known])]))
        left = [top, *(name for name in alike if name != top)]
    return Fit(use, left[0], "; ".join(words) or f"the first of {group}: nothing tells them apart")


def unknown(names: Sequence[str]) -> list[str]:
    """Words for methods of which something is not known; none for none."""
    told = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return [f"{told} {'are' if len(names) > 1 else 'is'} unknown"] if names else []


def on_use(use: str, budget: Budget, limits: Limits, advice: Advice) -> Verdict:
    """The verdict on a use: within where a method that may be taken for it meets all its limits.

    It is skipped where none does, and some could not be judged here.
    """
    fit = advice.fit(use)
    if fit.method is not None:
        return Verdict(WITHIN, f"use: {use}: {fit.method}, {fit.why}")
    may = [method for method in budget.methods if RULES[use].may(method) and method.limits]
    states = {standing.method: standing for standing in advice.methods}
    told = "; ".join(f"{method.name} {_state(states[method.name])}" for method in may)
    message = f"use: {use}: no method that may be taken is known to meet all its limits: {told or fit.why}"
    outcomes = {method.name: {limit.verdict.outcome for limit in limits.get(method.name, ())} for method in may}
    open_ = [name for name, found in outcomes.items() if SKIPPED in found and not found & {OVER, FAILED}]
    if open_:
        skipped = [each.verdict for name in open_ for each in limits[name] if each.verdict.outcome == SKIPPED]
        return Verdict(SKIPPED, message, for_want_of_gpu=any(verdict.for_want_of_gpu for verdict in skipped))
    missed = any(OVER in found for found in outcomes.values())
    return Verdict(OVER if missed else FAILED, message)


def _state(standing: Standing) -> str:
    return f"misses {standing.why}" if standing.limits == MISSES else f"is unknown ({standing.why})"
