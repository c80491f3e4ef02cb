"""A limit against a measurement: pure functions, whose result words itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytest_quantbudget.core import limits
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.limits import Limit, LimitKind, Target
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import DUMMY, Subject
from pytest_quantbudget.core.units import format_apart, format_time, format_value
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge import sample_size
from pytest_quantbudget.judge.metrics import figure, metric_of
from pytest_quantbudget.judge.metrics.base import Case, Figure, Unmeasured
from pytest_quantbudget.judge.noise import Noise


def unjudged(subject: Subject, kind: LimitKind) -> str | None:
    """Why a limit is not judged, in words; None where it is."""
    if subject.load_format == DUMMY and metric_of(kind).quality:
        return "not measured: dummy weights say nothing about quality"
    return None


FOR_UNDECIDED = {
    limits.ESTIMATE: "the estimate decides",
    limits.FAIL: "`undecided: fail` counts that as over",
    limits.PASS: "`undecided: pass` lets that through",
}


def judge(
    budget: Budget, method: Method, limit: Limit, measured: Mapping[str, Measurement], noise: Noise | None = None
) -> Verdict:
    """The verdict on one limit, from the measurements of its method and, for a relation, of the baseline.

    The noise changes no outcome; it is told beside it.
    """
    own = measured[method.name]
    name = f"{method.name}: {limit.name}"
    device = own.device.name if own.device else ""
    target = limit.target(device) if device else limit.targets[0]
    try:
        case = Case(budget.basis, limit.kind, method.name, measured, limit.judging.confidence)
        verdict = metric_of(limit.kind).verdict(limit, name, case)
        if verdict is not None:
            return verdict
        found = figure(budget.basis, method.name, limit, measured)
    except Unmeasured as missing:
        whose = "" if missing.method == method.name else f"the baseline {missing.method}: "
        kind = missing.failure.kind
        outcome = FAILED if kind == "error" else SKIPPED
        message = f"{name} not measured: {whose}{missing.failure.message}"
        wanting = kind in ("no-gpu", "skip")
        return Verdict(outcome, message, detail=missing.failure.detail, for_want_of_gpu=wanting, **_said(target))
    if (own.took_s or 0.0) > method.timeout_s < (own.allowed_s or 0.0):
        # Another budget of the run, with which the measurement is shared, has given it more time.
        limit_s, took = format_time(method.timeout_s), format_time(own.took_s or 0.0)
        why = f"not measured within the timeout of {limit_s} of {budget.path.name}: it took {took}"
        return Verdict(FAILED, f"{name} {why}", **_said(target))
    if target is None or target.value is None:
        unit = limit.targets[0].unit or limit.kind.unit_of(found.value)
        value = f"measured {_shown(found.value, limit, unit)}{_bounds(found, limit, unit)}{_bracketed(found)}"
        known = ", ".join(repr(t.pattern) for t in limit.targets)
        why = "has no number yet (`auto`): --quant-update writes one at the end of its run"
        if target is None:
            why = f"has no limit for {device!r} (only for {known})"
        told = replace(Verdict(SKIPPED, f"{name} {why}; {value}", found.value, unit=unit), **_bounded(found))
        return replace(told, for_want_of_gpu=target is None and device == "cpu")
    if limit.kind.bound == "max" and found.most <= target.value:
        base = f"{budget.baseline} itself answers {format_value(found.most, '%')} right"
        unit = "points" if limit.kind.relation == "drop" else "%"
        message = f"{name} {target.text} {unit} cannot fail: the baseline {base}{_bracketed(found)}"
        return Verdict(FAILED, message, found.value, **_said(target), **_bounded(found))
    verdict = _judged(limit, name, target, target.value, found)
    return _beside_noise(verdict, limit, target.value, found.value, noise) if noise is not None else verdict


def _beside_noise(verdict: Verdict, limit: Limit, value: float, measured: float, noise: Noise) -> Verdict:
    """A verdict with what repeat runs show; its message tells where that matters."""
    said, inside = noise.words(limit.kind), noise.inside(limit.kind, value, measured)
    message = verdict.message
    if inside:
        message += f"; inside the noise: {said}"
    elif said and (verdict.outcome != WITHIN or verdict.decision == UNDECIDED):
        message += f"; {said}"
    return replace(verdict, message=message, noise=said, inside_noise=inside)


def _judged(limit: Limit, name: str, target: Target, value: float, found: Figure) -> Verdict:
    policy, bound = limit.judging.undecided, limit.kind.bound
    decision = found.bounds.side(bound, value) if found.bounds is not None else ""
    inside = found.value <= value if bound == "max" else found.value >= value
    outcome = decision if decision in (WITHIN, OVER) else WITHIN if inside else OVER
    if decision == UNDECIDED and policy != limits.ESTIMATE:
        outcome = WITHIN if policy == limits.PASS else OVER
    message = f"{name} {_compared(target, value, found)}{_bounds(found, limit, target.unit)}{_bracketed(found)}"
    if decision == UNDECIDED:
        message += f"; undecided: {_how_far(limit, target, value, found)}, and {FOR_UNDECIDED[policy]}"
        message += _settling(value, found, limit)
    verdict = Verdict(outcome, message, found.value, decision=decision, **_said(target), **_bounded(found))
    if limit.kind.relation == "drop" and found.paired is not None:
        verdict = replace(verdict, p_over=_p_over(found, value, limit.judging.confidence))
    return verdict


def _said(target: Target | None) -> dict[str, Any]:
    return {"limit": target.value, "limit_text": target.text, "unit": target.unit} if target else {}


def _bounded(found: Figure) -> dict[str, Any]:
    if found.bounds is None:
        return {}
    low, high = (end if math.isfinite(end) else None for end in (found.bounds.low, found.bounds.high))
    return {"low": low, "high": high, "confidence": found.confidence}


def _p_over(found: Figure, value: float, confidence: float) -> float:
    """Of an answer that was looked at more than once, as much larger as its bounds are wider (planning)."""
    assert found.paired is not None
    share = (1 - confidence) / (1 - found.confidence) if found.confidence < 1 else 1.0
    return min(1.0, found.paired.p_over(value) * share)


def _bracketed(found: Figure) -> str:
    told = "; ".join(part for part in (found.detail, found.remark) if part)
    return f" ({told})" if told else ""


def _compared(target: Target, limit: float, found: Figure) -> str:
    """`1.0 points, measured 1.6`: both in the user's unit, with digits enough to see the difference."""
    wanted, value = format_apart(limit, found.value, target.unit)
    return f"{wanted}, measured {value.removesuffix(' ' + target.unit) if target.unit in ('points',) else value}"


def _bounds(found: Figure, limit: Limit, unit: str) -> str:
    """`, 95 % bounds 0.5 to 2.8`; nothing where all observations agree, or where they bound nothing."""
    if found.bounds is None or found.bounds.low == found.bounds.high:
        return ""
    low, high = found.bounds.low, found.bounds.high
    if not math.isfinite(low) or not math.isfinite(high):
        return ""
    shown = [format_value(end, unit or limit.kind.unit, show_unit=False) for end in (low, high)]
    return f", {100 * found.confidence:g} % bounds {shown[0]} to {shown[1]}"


def _shown(value: float, limit: Limit, unit: str) -> str:
    return format_value(value, unit or limit.kind.unit)


def _how_far(limit: Limit, target: Target, value: float, found: Figure) -> str:
    """How far the limit is from the estimate, in the user's unit."""
    if found.value == value:
        return "the estimate is at the limit"
    gap, _ = format_apart(abs(found.value - value), 0.0, target.unit or limit.kind.unit)
    return f"the limit is {gap} from the estimate"


def _settling(value: float, found: Figure, limit: Limit) -> str:
    """What would settle an undecided limit, if what more observations show is the same."""
    assert found.bounds is not None
    if not math.isfinite(found.bounds.high - found.bounds.low):
        alpha = 1 - limit.judging.confidence
        need = sample_size.fewest_repeats(alpha, paired=bool(limit.kind.relation)) if found.of == "repeats" else 2
        return f"; {found.n} {found.of} give no bound at {100 * limit.judging.confidence:g} %, {need} do"
    if found.more is None:
        return f"; more {found.of} may settle it"
    at_limit = found.value == value
    needed = None if at_limit else sample_size.settled_by(found.n, found.more, limit.kind.bound, value)
    return f"; about {needed:,} {found.of} would settle it" if needed else f"; no number of {found.of} would settle it"
