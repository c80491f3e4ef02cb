"""Where the methods of a budget stand: quality, memory and speed with their bounds, and where their limits are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.request import Text
from pytest_quantbudget.core.units import factor, format_value, size_unit
from pytest_quantbudget.core.verdict import OVER
from pytest_quantbudget.judge.metrics import metric_of, task_limits
from pytest_quantbudget.judge.metrics.base import Case, Unmeasured, exponential_mean, tidy
from pytest_quantbudget.judge.metrics.memory import Vram, Weights
from pytest_quantbudget.judge.metrics.speed import TokensPerS
from pytest_quantbudget.report.document import BudgetReport, MethodReport

CONFIDENCE = 0.95  # of the whiskers


@dataclass(frozen=True)
class Place:
    """A figure of one method in the unit of its axis; its bounds are None where there are none, or infinite ones."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """The value of an axis at which limits of some methods stand; `over` names the methods that are over theirs."""

    value: float
    limit: str
    methods: tuple[str, ...]
    over: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """What methods are drawn by: `places` by method, and the `lines` of limits. `better` is `less` or `more`."""

    name: str
    unit: str
    better: str
    places: Mapping[str, Place]
    lines: Sequence[Line]

    def told(self, name: str) -> str:
        """A method's figure in words, with its bounds."""
        place = self.places[name]
        unit = self.unit if self.unit != "tokens/s" else ""
        text = format_value(place.value * factor(unit), unit)
        ends = [
            None if end is None else format_value(end * factor(unit), unit, show_unit=False)
            for end in (place.low, place.high)
        ]
        if None in ends:
            return text
        return f"{text} ({ends[0]} to {ends[1]})"


def memory(budget: BudgetReport) -> Axis:
    """The peak of GPU memory, or the weights where those of more methods are known."""
    kinds = (Vram.limits[0], Weights.limits[0])
    kind, places = max(((kind, _figures(budget, kind)) for kind in kinds), key=lambda found: len(found[1]))
    unit = size_unit(*(place.value for place in places.values())) if places else "GiB"
    name = "GPU memory" if kind.metric == Vram.name else "Weights"
    ratio = kind.name + "_ratio"
    return Axis(name, unit, "less", _in_unit(places, unit), _lines(budget, kind, ratio, factor(unit)))


def speed(budget: BudgetReport) -> Axis:
    """Tokens/s while decoding: the median of the repeats."""
    kind, times = TokensPerS.limits
    places = _figures(budget, kind)
    return Axis("Speed", "tokens/s", "more", places, _lines(budget, kind, times.name))


def qualities(budget: BudgetReport) -> Iterator[Axis]:
    """The score of each task, and the perplexity of the text, as far as two methods have one."""
    for task in budget.tasks:
        score = next(kind for kind in task_limits(task.name) if kind.name == f"min_{task.name}")
        places = _figures(budget, score)
        lines = _lines(budget, score, "") + _drops(budget, score, f"max_{task.name}_drop")
        if places:
            yield Axis(task.name, "%", "more", places, lines)
    text = budget.text
    if text is None:
        return
    places = {}
    for name, record in budget.measured.items():
        found = record.perplexity(text)
        if found is not None:
            whole = 0 < len(found.each_tokens) == len(found.each_nll)
            bounds = exponential_mean(found.each_nll, found.each_tokens, CONFIDENCE) if whole else None
            places[name] = _place(found.value, *((bounds.low, bounds.high) if bounds else (-math.inf, math.inf)))
    if places:
        yield Axis("perplexity", "", "less", places, _of_text(budget, text))


def _figures(budget: BudgetReport, kind: LimitKind) -> dict[str, Place]:
    """What a metric has of each method, but for what was measured on another device than the first."""
    metric, measured = metric_of(kind), budget.measured
    device = next((record.device.name for record in measured.values() if record.device is not None), "")
    places: dict[str, Place] = {}
    for method in budget.methods:
        record = measured.get(method.name)
        if record is None or (not metric.quality and record.device is not None and record.device.name != device):
            continue
        place = _figure(budget, kind, method, method.name)
        if place is not None:
            places[method.name] = place
    return places


def _figure(budget: BudgetReport, kind: LimitKind, method: MethodReport, of: str) -> Place | None:
    """A figure of a method, or `of` the baseline that it is compared with; None where there is none."""
    measured = budget.measured_beside(method)
    if of not in measured:
        return None
    try:
        case = Case(budget.basis_of(method), kind, of, measured, CONFIDENCE)
        figure = tidy(metric_of(kind).figure(case), CONFIDENCE)
    except (Unmeasured, ValueError, ArithmeticError):
        # A report may contradict itself: then there is no such figure.
        return None
    bounds = figure.bounds
    low, high = (bounds.low, bounds.high) if bounds else (-math.inf, math.inf)
    return _place(figure.value, low, high) if math.isfinite(figure.value) else None


def _place(value: float, low: float, high: float) -> Place:
    ends = [end if math.isfinite(end) else None for end in (low, high)]
    return Place(value, *ends)


def _in_unit(places: Mapping[str, Place], unit: str) -> dict[str, Place]:
    return {name: Place(place.value / factor(unit)) for name, place in places.items()}


def _limits(budget: BudgetReport, name: str) -> Iterator[tuple[MethodReport, float, bool]]:
    """The limits of that name, as methods, values and whether they are over."""
    for method in budget.methods:
        for limit in method.limits:
            if limit.name == name and limit.verdict.limit is not None and math.isfinite(limit.verdict.limit):
                yield method, limit.verdict.limit, limit.verdict.outcome == OVER


def _lines(budget: BudgetReport, kind: LimitKind, relation: str, unit: float = 1.0) -> list[Line]:
    """Limits on a figure, and those on its ratio to that of the baseline that a method is compared with."""
    found = [(method.name, kind.name, value / unit, over) for method, value, over in _limits(budget, kind.name)]
    for method, value, over in _limits(budget, relation):
        base = _figure(budget, kind, method, budget.baseline or "")
        if base is not None:
            found.append((method.name, relation, value * base.value / unit, over))
    return _together(found)


def _drops(budget: BudgetReport, score: LimitKind, name: str) -> list[Line]:
    """Limits on the drop, from the score of the baseline that a method is compared with."""
    found = []
    for method, value, over in _limits(budget, name):
        base = _figure(budget, score, method, budget.baseline or "")
        if base is not None:
            found.append((method.name, name, base.value - value, over))
    return _together(found)


def _of_text(budget: BudgetReport, text: Text) -> list[Line]:
    """Limits on the perplexity over that of the baseline that a method is compared with."""
    found, name = [], "max_ppl_ratio"
    for method, value, over in _limits(budget, name):
        record = budget.measured_beside(method).get(budget.baseline or "")
        base = record.perplexity(text) if record is not None else None
        if base is not None:
            found.append((method.name, name, value * base.value, over))
    return _together(found)


def _together(found: Sequence[tuple[str, str, float, bool]]) -> list[Line]:
    """Limits of one name and value are one line."""
    lines: dict[tuple[str, float], list[tuple[str, bool]]] = {}
    for method, limit, value, over in found:
        lines.setdefault((limit, value), []).append((method, over))
    return [
        Line(value, limit, tuple(m for m, _ in of), tuple(m for m, over in of if over))
        for (limit, value), of in lines.items()
    ]
