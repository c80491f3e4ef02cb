"""A published score: whether a method, most often the baseline, has on a task what others have measured of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_quantbudget.core import limits
from pytest_quantbudget.core.budget import Basis, Budget
from pytest_quantbudget.core.fields import Kind, number
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.request import Part
from pytest_quantbudget.core.units import digits_apart, format_value
from pytest_quantbudget.core.verdict import OVER, SKIPPED, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics.accuracy import Accuracy
from pytest_quantbudget.judge.metrics.base import Case, Metric, Unmeasured, tidy

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement

NUMBER = r"\d+(?:\.\d+)?"
TEXT = rf"({NUMBER})\s*%?\s*(?:±|\+/?-)\s*({NUMBER})\s*(?:%|points)?"
EXAMPLE = "89.5 ± 2"
SCORE, WITHIN_POINTS = number(0, 100, closed="low high"), number(0, 100)


@dataclass(frozen=True)
class Reference:
    """A published score in percent, and how many points a score may be from it."""

    score: float
    within: float

    @property
    def text(self) -> str:
        """As a budget says it."""
        return f"{self.score:.12g} ± {self.within:.12g}"

    @property
    def band(self) -> Interval:
        """The scores that fit to it."""
        return Interval(self.score - self.within, self.score + self.within)


def read_reference(value: object) -> Reference:
    """`89.5 ± 2`, `89.5 +- 2` or `{score: 89.5, within: 2}`. Raises ValueError, in words for the user."""
    if isinstance(value, dict):
        lacking = [key for key in ("score", "within") if key not in value]
        other = [str(key) for key in value if key not in ("score", "within")]
        if lacking or other:
            given = ", ".join(map(str, value))
            raise ValueError(f"takes the keys score and within, as in {{score: 89.5, within: 2}}, not {given}")
        found = value["score"], value["within"]
    else:
        match = re.fullmatch(TEXT, value.strip()) if isinstance(value, str) else None
        if match is None:
            why = f"must be a score and how far from it one may be, in points, as in {EXAMPLE}"
            raise ValueError(f"{why} (or {{score: 89.5, within: 2}}), not {value!r}")
        found = float(match[1]), float(match[2])
    try:
        return Reference(SCORE.read(found[0]), WITHIN_POINTS.read(found[1]))
    except ValueError as error:
        raise ValueError(f"{error} (in {value!r})") from None


class PublishedScore(Metric):
    """The accuracy on a task beside a published one; a score too far from it on either side is over."""

    name = "reference"
    quality = True
    numeric = False

    def limits_of(self, task: str) -> Sequence[LimitKind]:
        """The limit on one task."""
        kind = Kind(
            lambda value: read_reference(value).score,
            {"type": "string", "pattern": f"^{TEXT}$", "examples": [EXAMPLE]},
        )
        doc = f"Published accuracy on {task}, percent, and how many points a score may be from it."
        return (LimitKind(f"reference_{task}", "min", self.name, "", "%", kind, doc, task),)

    def parts(self, basis: Basis, kind: LimitKind) -> Sequence[Part]:
        """The task."""
        return (basis.tasks[kind.task],)

    def verdict(self, limit: Limit, name: str, case: Case) -> Verdict:
        """Within where the bounds of the score lie in the band, over where they lie outside. Raises Unmeasured."""
        device = case.record.device.name if case.record.device else ""
        target = limit.target(device)
        accuracy = Accuracy()
        score = replace(case, kind=accuracy.limits_of(limit.kind.task)[0])
        found = tidy(accuracy.figure(score), case.confidence)
        if target is None:
            known = ", ".join(repr(each.pattern) for each in limit.targets)
            return Verdict(
                SKIPPED, f"{name} has no score for {device!r} (only for {known})", for_want_of_gpu=device == "cpu"
            )
        wanted = read_reference(target.text)
        band, bounds = wanted.band, found.bounds
        assert bounds is not None
        inside = band.low <= found.value <= band.high
        decision = UNDECIDED
        if band.low <= bounds.low and bounds.high <= band.high:
            decision = WITHIN
        elif bounds.high < band.low or band.high < bounds.low:
            decision = OVER
        outcome = decision if decision != UNDECIDED else WITHIN if inside else OVER
        policy = limit.judging.undecided
        if decision == UNDECIDED and policy != limits.ESTIMATE:
            outcome = WITHIN if policy == limits.PASS else OVER
        nearest = band.low if found.value < wanted.score else band.high
        digits = digits_apart(nearest, [found.value], "%")
        measured = format_value(found.value, "%", digits)
        low, high = (format_value(end, "%", digits, show_unit=False) for end in (bounds.low, bounds.high))
        message = (
            f"{name} measured {measured}, published {wanted.text}, {100 * found.confidence:g} % bounds {low} to {high}"
        )
        message += f" ({'; '.join(filter(None, (found.detail, found.remark)))})"
        if decision == UNDECIDED:
            message += f"; undecided: the bounds reach across an end of the band, and {limits.FOR_UNDECIDED[policy]}"
        if outcome == OVER:
            message += f"; {APART}"
        return Verdict(
            outcome,
            message,
            found.value,
            limit_text=wanted.text,
            unit="%",
            decision=decision,
            low=bounds.low,
            high=bounds.high,
            confidence=found.confidence,
            n=found.n,
            of=found.of,
        )


APART = (
    "is it another model, or are prompt, chat template, worked examples or extraction others than those of that score?"
)


def doubt(budget: Budget, limit: Limit, measured: Mapping[str, Measurement]) -> str:
    """That the baseline of a drop is far from its published score, in words; nothing where it is not."""
    base = budget.base
    if base is None or limit.kind.relation not in ("drop", "recovery", "flips"):
        return ""
    for own in base.limits:
        if own.kind.metric == PublishedScore.name and own.kind.task == limit.kind.task:
            case = Case(budget.basis_of(base.name), own.kind, base.name, measured, own.judging.confidence)
            try:
                found = PublishedScore().verdict(own, base.name, case)
            except Unmeasured:
                return ""
            if found.outcome == OVER and found.measured is not None:
                score = (
                    f"{base.name} itself has {format_value(found.measured, '%')}, and {found.limit_text} is published"
                )
                return f"{score}: believe no drop before that is settled"
    return ""
