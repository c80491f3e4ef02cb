"""Two axes as a picture: where points, whiskers, lines and labels stand, on the picture's own grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_quantbudget.report.page.points import Axis, Line

WIDTH, HEIGHT = 440, 330
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 28, 46
CHARACTER, TALL = 7.2, 15  # of a label
STRETCH = 2.0  # times the points' own range, up to which lines outside of it are shown
STEPS = (1, 2, 2.5, 5, 10)
MANY = 24  # so many names have no room


# A whisker's two ends, and left, top, right and bottom of what takes room.
Ends = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tick:
    """A mark at an axis, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Rule:
    """A limit as a line through the picture, at one place of an axis."""

    at: float
    line: Line


@dataclass(frozen=True)
class Label:
    """The name of a point, at the place of its `anchor`; empty where it has no room."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Point:
    """A method; whiskers are the ends of its bounds, None where there are none."""

    name: str
    x: float
    y: float
    across: Ends | None
    upright: Ends | None
    label: Label | None


@dataclass(frozen=True)
class Plot:
    """A picture, and how many limits lie outside of it."""

    x: Axis
    y: Axis
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_rules: Sequence[Rule]
    y_rules: Sequence[Rule]
    points: Sequence[Point]
    outside: int


def plot(x: Axis, y: Axis) -> Plot | None:
    """The picture of all methods that have both figures; None where fewer than two have."""
    names = [name for name in x.places if name in y.places]
    if len(names) < 2:
        return None
    across = _Scale(x, names, LEFT, WIDTH - RIGHT, from_zero=True)
    upright = _Scale(y, names, HEIGHT - BOTTOM, TOP, from_zero=False)
    places = {name: (across.at(x.places[name].value), upright.at(y.places[name].value)) for name in names}
    whiskers = {name: (across.ends(name), upright.ends(name)) for name in names}
    labels = _labels(places, whiskers)
    points = [Point(name, *places[name], *whiskers[name], labels.get(name)) for name in names]
    rules = across.rules(), upright.rules()
    outside = len(x.lines) + len(y.lines) - len(rules[0]) - len(rules[1])
    return Plot(x, y, across.ticks(), upright.ticks(), *rules, points, outside)


class _Scale:
    """Values of an axis to places from `start` to `end`."""

    def __init__(self, axis: Axis, names: Sequence[str], start: float, end: float, *, from_zero: bool) -> None:
        self.axis, self.start, self.end = axis, start, end
        ends = [
            value for n in names for p in (axis.places[n],) for value in (p.value, p.low, p.high) if value is not None
        ]
        low, high = (0.0 if from_zero else min(ends)), max(ends)
        most = STRETCH * (high - low)
        for line in sorted(axis.lines, key=lambda line: abs(line.value - (low + high) / 2)):
            if max(high, line.value) - min(low, line.value) <= most:
                low, high = min(low, line.value), max(high, line.value)
        room = 0.06 * (high - low) or abs(high) or 1.0
        self.low, self.high = (low if from_zero and low >= 0 else low - room), high + room

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ends(self, name: str) -> Ends | None:
        place = self.axis.places[name]
        return None if place.low is None or place.high is None else (self.at(place.low), self.at(place.high))

    def rules(self) -> list[Rule]:
        return [Rule(self.at(line.value), line) for line in self.axis.lines if self.low <= line.value <= self.high]

    def ticks(self) -> list[Tick]:
        """Round values, about five of them."""
        rough = (self.high - self.low) / 6
        power = 10 ** math.floor(math.log10(rough))
        step = next(step * power for step in STEPS if step * power >= rough)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9), 1 if step / power == 2.5 and power <= 1 else 0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(n * step), f"{n * step:,.{decimals}f}") for n in range(first, last + 1)]


def _labels(
    places: Mapping[str, tuple[float, float]], whiskers: Mapping[str, tuple[Ends | None, Ends | None]]
) -> dict[str, Label]:
    """A place beside each point where its name covers no point, name or whisker, as far as there is one."""
    if len(places) > MANY:
        return {}
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    for name, (x, y) in places.items():
        across, upright = whiskers[name]
        taken += [(across[0], y - 1, across[1], y + 1)] if across else []
        taken += [(x - 1, upright[1], x + 1, upright[0])] if upright else []
    labels: dict[str, Label] = {}
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        wide = CHARACTER * min(len(name), 24)
        options = [
            (Label(x + 11, y + 4, "start"), (x + 9, y - 9, x + 11 + wide, y + 7)),
            (Label(x - 11, y + 4, "end"), (x - 11 - wide, y - 9, x - 9, y + 7)),
            (Label(x, y - 12, "middle"), (x - wide / 2, y - 12 - TALL, x + wide / 2, y - 9)),
            (Label(x, y + 22, "middle"), (x - wide / 2, y + 9, x + wide / 2, y + 9 + TALL)),
            (Label(x + 11, y - 9, "start"), (x + 9, y - 9 - TALL, x + 11 + wide, y - 6)),
            (Label(x + 11, y + 19, "start"), (x + 9, y + 6, x + 11 + wide, y + 8 + TALL)),
            (Label(x - 11, y - 9, "end"), (x - 11 - wide, y - 9 - TALL, x - 9, y - 6)),
            (Label(x - 11, y + 19, "end"), (x - 11 - wide, y + 6, x - 9, y + 8 + TALL)),
        ]  # fmt: skip
        own = (x - 7, y - 7, x + 7, y + 7)
        others = [box for box in taken if box != own]
        label, box = min(options, key=lambda option: _cost(option[1], others))
        labels[name] = label
        taken.append(box)
    return labels


def _cost(box: Box, others: Sequence[Box]) -> float:
    """How much of other things a box covers; outside of the picture is worst."""
    left, top, right, bottom = box
    cost = sum(max(0.0, min(right, r) - max(left, x)) * max(0.0, min(bottom, b) - max(top, t)) for x, t, r, b in others)
    return cost + 1e4 * (left < LEFT or right > WIDTH or top < TOP - 8 or bottom > HEIGHT - BOTTOM)
