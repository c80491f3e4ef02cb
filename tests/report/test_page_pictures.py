"""The page's pictures: where points, limits and bars stand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from builders import GIB, MEASUREMENT, MEMORY, REPORT
from stored_reports import furnish, read, report

from pytest_quantbudget.core.gpu_usage import GpuMemory
from pytest_quantbudget.core.verdict import OVER, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.metrics.memory import Weights
from pytest_quantbudget.models.estimate.memory import Estimate
from pytest_quantbudget.report.document import BudgetReport, MethodReport
from pytest_quantbudget.report.page import bars, points
from pytest_quantbudget.report.page.plot import HEIGHT, LEFT, WIDTH, plot
from pytest_quantbudget.report.page.points import Axis, Line, Place

BUDGET = """
model: org/model
baseline: fp16
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  sums: {file: sums.jsonl, questions: 10}
methods:
  fp16: {}
  nf4: {}
  int8: {}
"""


@pytest.fixture
def budget(tmp_path: Path) -> BudgetReport:
    """A report of fp16 with 5 GiB, nf4 with 2 and int8 with 3, of which the last two answer 9 of 10 right."""
    (found,) = report(read(furnish(tmp_path), BUDGET)).budgets
    return found


def limited(budget: BudgetReport, **limits: tuple[str, float, str]) -> BudgetReport:
    """The same with a limit for each method that is named."""
    methods = []
    for method in budget.methods:
        name, value, outcome = limits.get(method.name.replace("-", "_"), ("", 0.0, ""))
        verdict = Verdict(outcome, "", 1.0, value)
        methods.append(
            replace(method, limits=(LimitReport(f"b::{method.name}::{name}", name, 1, verdict),) if name else ())
        )
    return replace(budget, methods=tuple(methods))


def test_axes_have_the_figures_that_limits_are_judged_on(budget: BudgetReport) -> None:
    memory, speed = points.memory(budget), points.speed(budget)
    assert (memory.name, memory.unit, memory.better) == ("GPU memory", "GiB", "less")
    assert {name: place.value for name, place in memory.places.items()} == {"fp16": 5.0, "nf4": 2.0, "int8": 3.0}
    assert speed.places["nf4"].value == pytest.approx(52.5)
    (sums,) = points.qualities(budget)
    assert sums.places["fp16"].value == 100.0
    assert sums.places["nf4"].value == 90.0
    low, high = sums.places["nf4"].low, sums.places["nf4"].high
    assert low is not None
    assert high is not None
    assert 50 < low < 90 < high < 100
    assert memory.told("nf4") == "2.00 GiB"
    assert sums.told("nf4").startswith("90.0 % (")


def test_limits_stand_where_they_would_be_met(budget: BudgetReport) -> None:
    ratio = ("max_vram_ratio", 0.5, WITHIN)
    assert points.memory(limited(budget, nf4=ratio, int8=(ratio[0], 0.5, OVER))).lines == [
        Line(2.5, "max_vram_ratio", ("nf4", "int8"), ("int8",))
    ]
    drop = limited(budget, nf4=("max_sums_drop", 20.0, WITHIN), int8=("min_sums", 60.0, WITHIN))
    (sums,) = points.qualities(drop)
    assert [(line.value, line.methods) for line in sums.lines] == [(60.0, ("int8",)), (80.0, ("nf4",))]
    faster = limited(budget, nf4=("min_speedup", 2.0, OVER), int8=("min_tokens_per_s", 30.0, WITHIN))
    assert [round(line.value, 6) for line in points.speed(faster).lines] == [30.0, 105.0]


def test_a_limit_on_a_ratio_stands_at_the_baseline_of_the_methods_own_run(budget: BudgetReport) -> None:
    limited_budget = limited(budget, nf4=("max_weights_ratio", 0.5, WITHIN), int8=("max_weights_ratio", 0.5, WITHIN))
    (fp16, nf4, int8) = limited_budget.methods
    assert fp16.measurement is not None
    larger = replace(fp16.measurement, weights=8 * GIB)
    merged = replace(limited_budget, methods=(fp16, replace(nf4, against=larger), int8))
    kind = next(kind for kind in Weights.limits if kind.name == "max_weights")
    lines = points._lines(merged, kind, "max_weights_ratio", GIB)
    assert [(line.value, line.methods) for line in lines] == [(4.0, ("nf4",)), (2.0, ("int8",))]


def test_a_limit_on_the_ratio_of_perplexities_does_so_too(tmp_path: Path) -> None:
    text = f"perplexity: {{file: wiki.txt, window: 64, stride: 32}}\n{BUDGET}"
    (plain,) = report(read(furnish(tmp_path), text)).budgets
    fp16, nf4, int8 = limited(plain, nf4=("max_ppl_ratio", 1.5, OVER), int8=("max_ppl_ratio", 1.5, WITHIN)).methods
    assert fp16.measurement is not None
    (measured,) = fp16.measurement.perplexities
    own = replace(measured, nll=measured.nll + 10 * math.log(2), each_nll=())
    against = replace(fp16.measurement, perplexities=(own,))
    *_, axis = points.qualities(replace(plain, methods=(fp16, replace(nf4, against=against), int8)))
    assert axis.name == "perplexity"
    base = axis.places["fp16"].value
    assert [line.value for line in axis.lines] == pytest.approx([3 * base, 1.5 * base])
    assert [(line.methods, line.over) for line in axis.lines] == [(("nf4",), ("nf4",)), (("int8",), ())]
    # What that run did not measure of it is nothing to draw a limit at.
    without = replace(nf4, against=replace(against, perplexities=()))
    *_, axis = points.qualities(replace(plain, methods=(fp16, without, int8)))
    assert [line.methods for line in axis.lines] == [("int8",)]


def test_another_device_is_no_place_on_the_same_axis(budget: BudgetReport) -> None:
    assert MEASUREMENT.device is not None
    methods = list(budget.methods)
    assert methods[2].measurement is not None
    methods[2] = replace(methods[2], measurement=replace(methods[2].measurement, device=MEASUREMENT.device))
    other = replace(budget, methods=tuple(methods))
    assert "int8" not in points.memory(other).places
    assert "int8" in next(points.qualities(other)).places


def axis(better: str, *values: float, lines: tuple[float, ...] = ()) -> Axis:
    places = {f"method-{i}": Place(value, value - 1, value + 1) for i, value in enumerate(values)}
    return Axis("x", "%", better, places, [Line(value, "max_x", ("a",), ()) for value in lines])


def test_a_picture_holds_its_points_and_the_limits_near_them() -> None:
    found = plot(axis("less", 2.0, 4.0, lines=(5.0, 500.0)), axis("more", 90.0, 95.0, lines=(89.0, 10.0)))
    assert found is not None
    assert found.outside == 2
    assert [rule.line.value for rule in found.x_rules] == [5.0]
    assert [rule.line.value for rule in found.y_rules] == [89.0]
    first, second = found.points
    assert LEFT < first.x < second.x < WIDTH
    assert 0 < second.y < first.y < HEIGHT
    assert first.across is not None
    assert first.across[0] < first.x < first.across[1]
    assert [tick.text for tick in found.x_ticks] == ["0", "1", "2", "3", "4", "5"]


def test_a_single_method_and_equal_values_break_no_picture() -> None:
    assert plot(axis("less", 1.0), axis("more", 1.0)) is None
    same = Axis("x", "", "less", {"a": Place(0.0), "b": Place(0.0)}, [])
    found = plot(same, same)
    assert found is not None
    assert found.points[0].x == found.points[1].x


@pytest.mark.parametrize("values", [(1e-9, 3e-9), (1e12, 2e12), (0.1, 0.3), (-5.0, 5.0), (99.99, 100.0)])
def test_ticks_are_round_and_few(values: tuple[float, float]) -> None:
    same = Axis("x", "", "less", {"a": Place(values[0]), "b": Place(values[1])}, [])
    found = plot(same, same)
    assert found is not None
    for ticks in (found.x_ticks, found.y_ticks):
        assert 2 <= len(ticks) <= 7
        assert len({tick.text for tick in ticks}) == len(ticks)


def test_names_cover_no_point_where_there_is_room() -> None:
    found = plot(axis("less", 1, 1.05, 1.1, 5), axis("more", 90, 90.1, 90.05, 90))
    assert found is not None
    for point in found.points:
        assert point.label is not None
        wide = 7.2 * len(point.name)
        left = point.label.x - {"start": 0, "end": wide, "middle": wide / 2}[point.label.anchor]
        for other in found.points:
            inside = left < other.x < left + wide and point.label.y - 12 < other.y < point.label.y + 2
            assert not inside, (point, other)


def test_memory_of_each_phase_stands_beside_the_estimate() -> None:
    speed = replace(MEASUREMENT.speeds[0], memory=(replace(MEMORY, total=GpuMemory(7 * GIB, 8 * GIB, 9 * GIB)),))
    load = replace(MEMORY, phase="load", total=GpuMemory(6 * GIB, 6 * GIB, None, overhead=GIB))
    record = replace(MEASUREMENT, weights=6 * GIB, speeds=(speed,), load_memory=load)
    estimate = Estimate(1, 6 * GIB, (), GIB, GIB, 8 * GIB, 10 * GIB, at_least=True)
    budget = replace(REPORT.budgets[0], methods=(MethodReport("nf4", record, (), estimate),))
    (row,), parts = bars.memory(budget)
    told = [(bar.phase, bar.words, [(s.part, s.size, s.start, s.width) for s in bar.segments]) for bar in row.bars]
    assert told == [
        ("load", "7.00 GiB", [(bars.WEIGHTS, "6.00 GiB", 0, 60), (bars.OUTSIDE, "1.00 GiB", 60, 10)]),
        (
            "prefill",
            "9.00 GiB",
            [
                (bars.WEIGHTS, "6.00 GiB", 0, 60),
                (bars.WORKING, "1.00 GiB", 60, 10),
                (bars.RESERVED, "1.00 GiB", 70, 10),
                (bars.OUTSIDE, "1.00 GiB", 80, 10),
            ],
        ),
        (
            bars.ESTIMATE,
            "at least 10.0 GiB",
            [(bars.WEIGHTS, "6.00 GiB", 0, 60), (bars.WORKING, "2.00 GiB", 60, 20), (bars.OUTSIDE, "2.00 GiB", 80, 20)],
        ),
    ]
    assert parts == list(bars.PARTS)


def test_without_a_gpu_the_weights_stand_beside_their_estimate() -> None:
    speed = replace(MEASUREMENT.speeds[0], memory=(), peak_allocated=None, peak_reserved=None)
    record = replace(MEASUREMENT, weights=6 * GIB, speeds=(speed,), load_memory=None)
    estimate = Estimate(1, 5 * GIB, (), GIB, GIB, 8 * GIB, 10 * GIB)
    budget = replace(REPORT.budgets[0], methods=(MethodReport("nf4", record, (), estimate),))
    (row,), parts = bars.memory(budget)
    assert [(bar.phase, bar.words) for bar in row.bars] == [("loaded", "6.00 GiB"), ("estimate", "5.00 GiB")]
    assert parts == [bars.WEIGHTS]
    assert bars.memory(replace(budget, methods=(MethodReport("nf4", None, (), estimate),))) == ([], [])


def test_every_repeat_is_a_dot_on_one_scale(budget: BudgetReport) -> None:
    rate, first = bars.strips(budget)
    assert (rate.start, rate.end) == ("35.0", "70.0")
    assert next((dots.method, sorted(dots.at), dots.median, dots.words) for dots in rate.rows) == (
        "fp16",
        [2.0, 98.0],
        50.0,
        "52.5",
    )
    assert first.rows[0].range == "100 ms to 200 ms"
    assert bars.strips(replace(budget, methods=())) == []
