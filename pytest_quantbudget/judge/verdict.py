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
from pytest_quantbudget.core.units import digits_apart, format_apart, format_value, time_unit
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge import sample_size
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics import figure, metric_of
from pytest_quantbudget.judge.metrics.base import Case, Figure, Unmeasured, check_cpu
from pytest_quantbudget.judge.metrics.reference import doubt
from pytest_quantbudget.judge.noise import Noise


def unjudged(subject: Subject, kind: LimitKind) -> str | None:
    """Why a limit is not judged, in words; None where it is."""
    if subject.load_format == DUMMY and metric_of(kind).quality:
        return "not measured: dummy weights say nothing about quality"
    return None


BY_CHANCE = 0.01  # of methods that are as good as the baseline, so many seem better than it beyond noise


def judge(
    budget: Budget,
    method: Method,
    limit: Limit,
    measured: Mapping[str, Measurement],
    noise: Noise | None = None,
    cpu: str = "",
) -> Verdict:
    """The verdict on one limit, from the measurements of its method and, for a relation, of the baseline.

    The noise changes no outcome; it is told beside it. `cpu` is that of the machine on which the method was measured.
    """
    own = measured[method.name]
    name = f"{method.name}: {limit.name}"
    device = own.device.name if own.device else ""
    target = limit.target(device) if device else limit.targets[0]
    try:
        basis = budget.basis_of(method.name)
        case = Case(basis, limit.kind, method.name, measured, limit.judging.confidence)
        verdict = metric_of(limit.kind).verdict(limit, name, case)
        if verdict is not None:
            return verdict
        if budget.stored is not None:
            check_cpu(case, metric_of(limit.kind), cpu, budget.stored.cpu)
        found = figure(basis, method.name, limit, measured)
        if found.more_of:
            # It may be over, and it is never certainly within.
            low = found.bounds.low if found.bounds is not None else -math.inf
            found = replace(found, bounds=Interval(low, math.inf), confidence=case.confidence)
    except Unmeasured as missing:
        return not_measured(name, method.name, missing, target)
    if (own.took_s or 0.0) > method.timeout_s < (own.allowed_s or 0.0):
        # Another budget of the run, with which the measurement is shared, has given it more time.
        took_s = own.took_s or 0.0
        limit_s, took = format_apart(method.timeout_s, took_s, unit=time_unit(method.timeout_s, took_s))
        why = f"not measured within the timeout of {limit_s} of {budget.path.name}: it took {took}"
        return Verdict(FAILED, f"{name} {why}", **_said(target))
    if target is None or target.value is None:
        unit = limit.targets[0].unit or limit.kind.unit_of(found.value)
        known = ", ".join(repr(t.pattern) for t in limit.targets)
        why = "has no number yet (`auto`): --quant-update writes one at the end of its run"
        if target is None:
            why = f"has no limit for {device!r} (only for {known})"
        message = f"{name} {why}; {_measured(found, unit)}"
        told = replace(Verdict(SKIPPED, message, found.value, unit=unit), **_bounded(found))
        return replace(told, for_want_of_gpu=target is None and device == "cpu")
    if limit.kind.bound == "max" and found.most <= target.value:
        digits = digits_apart(target.value, [found.most], "%")
        most, wanted = format_value(found.most, "%", digits), format_value(target.value, target.unit, digits)
        message = f"{name} cannot fail: {budget.baseline} itself answers {most} right, limit {wanted}{_made_of(found)}"
        return Verdict(FAILED, message, found.value, **_said(target), **_bounded(found))
    verdict = _anomalous(_judged(limit, name, target, target.value, found), limit, found, noise, budget.baseline)
    if doubted := doubt(budget, limit, measured):
        verdict = replace(verdict, message=f"{verdict.message}; {doubted}")
    return _beside_noise(verdict, limit, target.value, found.value, noise) if noise is not None else verdict


def _anomalous(verdict: Verdict, limit: Limit, found: Figure, noise: Noise | None, baseline: str | None) -> Verdict:
    """A verdict that says so where a method is better than the baseline beyond noise, of questions and of repeat runs.

    Quantizing takes something away, so a gain that chance does not explain has another cause.
    """
    if limit.kind.relation not in ("drop", "recovery") or found.paired is None or verdict.outcome != WITHIN:
        return verdict
    p = min(1.0, found.paired.p_gain() * _wider(found, limit.judging.confidence))
    known = noise.task(limit.kind.task) if noise is not None else None
    if p > BY_CHANCE or -found.paired.drop <= (known.drop if known is not None else 0.0):
        return verdict
    gain = format_value(-found.paired.drop, "points")
    why = f"{gain} better than {baseline} beyond noise (p {p:.2g}): were both asked in the same words and templates?"
    return replace(verdict, message=f"{verdict.message}; anomalous: {why}", anomalous=True)


def not_measured(name: str, method: str, missing: Unmeasured, target: Target | None = None) -> Verdict:
    """The verdict on a limit of a method, both in `name`, whose figure is missing."""
    whose = "" if missing.method == method else f"the baseline {missing.method}: "
    kind = missing.failure.kind
    outcome = FAILED if kind == "error" else SKIPPED
    message = f"{name} not measured: {whose}{missing.failure.message}"
    wanting = kind in ("no-gpu", "skip")
    return Verdict(outcome, message, detail=missing.failure.detail, for_want_of_gpu=wanting, **_said(target))


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
    message = f"{name} {_measured(found, target.unit, value)}"
    if decision == UNDECIDED:
        message += f"; undecided: {_how_far(target, value, found)}, and {limits.FOR_UNDECIDED[policy]}"
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
    return {"low": low, "high": high, "confidence": found.confidence, "n": found.n or None, "of": found.of}


def _p_over(found: Figure, value: float, confidence: float) -> float:
    """Of an answer that was looked at more than once, as much larger as its bounds are wider (planning)."""
    assert found.paired is not None
    return min(1.0, found.paired.p_over(value) * _wider(found, confidence))


def _wider(found: Figure, confidence: float) -> float:
    """By how much more may go wrong with a confidence than with that of a figure's bounds."""
    return (1 - confidence) / (1 - found.confidence) if found.confidence < 1 else 1.0


def _measured(found: Figure, unit: str, limit: float | None = None) -> str:
    """`measured 1.6 points, limit 1.0, 95 % bounds 0.5 to 2.8 (...)`: all in one unit.

    The digits are as many as it takes to see on which side of the limit each value is. Bounds are left out where all
    observations agree, and where they bound nothing.
    """
    bounds = found.bounds or Interval(found.value, found.value)
    ends = [bounds.low, bounds.high] if bounds.low < bounds.high and math.isfinite(bounds.high - bounds.low) else []
    digits = 3
    if limit is not None:
        # Of sums of floats, the last digits say nothing.
        unlike = [end for end in ends if not math.isclose(end, limit, rel_tol=1e-9)]
        digits = digits_apart(limit, [found.value, *unlike], unit)
    parts = [f"measured {format_value(found.value, unit, digits)}"]
    if limit is not None:
        parts.append(f"limit {format_value(limit, unit, digits, show_unit=unit != 'points')}")
    if ends:
        low, high = (format_value(end, unit, digits, show_unit=False) for end in ends)
        parts.append(f"{100 * found.confidence:g} % bounds {low} to {high}")
    return ", ".join(parts) + _made_of(found, unit, digits)


def _made_of(found: Figure, unit: str = "", digits: int = 3) -> str:
    """What a figure is made of, in brackets: ` (40.0 to 80.0 in 5 repeats)`."""
    detail = found.detail
    if found.range is not None:
        low, high = (format_value(end, unit, digits, show_unit=False) for end in found.range)
        detail = f"{low} to {high} {detail}"
    told = "; ".join(part for part in (detail, found.remark) if part)
    return f" ({told})" if told else ""


def _how_far(target: Target, value: float, found: Figure) -> str:
    """How far the limit is from the estimate, in the user's unit."""
    if found.value == value:
        return "the estimate is at the limit"
    gap, _ = format_apart(abs(found.value - value), 0.0, unit=target.unit)
    return f"the limit is {gap} from the estimate"


def _settling(value: float, found: Figure, limit: Limit) -> str:
    """What would settle an undecided limit, if what more observations show is the same."""
    assert found.bounds is not None
    if found.more_of:
        return f"; {found.more_of} would settle it"
    if not math.isfinite(found.bounds.high - found.bounds.low):
        alpha = 1 - limit.judging.confidence
        need = found.enough or 2
        if found.of == "repeats":
            need = sample_size.fewest_repeats(alpha, paired=bool(limit.kind.relation))
        if need <= found.n:  # what failed has no bound
            return f"; more {found.of} may settle it"
        return f"; {found.n} {found.of} give no bound at {100 * limit.judging.confidence:g} %, {need} do"
    if found.more is None:
        return f"; more {found.of} may settle it"
    at_limit = found.value == value
    needed = None if at_limit else sample_size.settled_by(found.n, found.more, limit.kind.bound, value)
    return f"; about {needed:,} {found.of} would settle it" if needed else f"; no number of {found.of} would settle it"
