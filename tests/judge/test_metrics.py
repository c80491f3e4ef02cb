"""A metric is one object in one list: everything that a limit needs follows from it."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import H100

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Basis
from pytest_quantbudget.core.fields import TIME
from pytest_quantbudget.core.gpu_usage import GpuMemory, PhaseMemory
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.core.measurement import Measurement, Speed
from pytest_quantbudget.core.request import WORKLOAD, Part, Reply, Subject, Workload
from pytest_quantbudget.core.units import format_time
from pytest_quantbudget.core.verdict import OVER, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.judge.metrics.base import FACTOR, Case, Column, Figure, Metric, column
from pytest_quantbudget.judge.needs import request
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.report import table
from pytest_quantbudget.report.document import BudgetReport, MethodReport


class TimePerOutputToken(Metric):
    """A made-up metric: the slowest repeat's time per output token."""

    name = "tpot"
    margin = FACTOR
    limits = (LimitKind("max_tpot", "max", "tpot", "", "", TIME, "Time per output token."),)

    def parts(self, basis: Basis, kind: LimitKind) -> list[Part]:
        return [basis.workload]

    def absolute(self, case: Case) -> Figure:
        return Figure(max(case.need(case.record.speed(case.basis.workload), WORKLOAD).tpot_s))

    def columns(self, basis: Basis) -> list[Column]:
        return [column(self, "per token", "max_tpot", format_time)]


def test_a_metric_in_the_list_is_read_requested_judged_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\nmethods:\n  nf4: {budget: {max_tpot: 20 ms}}\n")
    monkeypatch.setattr(metrics, "METRICS", [*metrics.METRICS, TimePerOutputToken()])

    budget = load_budget(path)
    (method,) = budget.methods
    needed = request(budget, method, method.limits)
    assert {type(part) for part in needed.parts} == {Workload, Reply}

    speed = Speed(budget.workload, (0.05,), (127 * 0.025,), None, None)
    measured = Measurement(method.subject, device=H100, speeds=(speed,))
    verdict = judge(budget, method, method.limits[0], {"nf4": measured})
    assert (verdict.outcome, verdict.message) == (OVER, "nf4: max_tpot measured 25.0 ms, limit 20.0 ms")

    report = BudgetReport("b.yaml", "m", None, None, budget.workload, "", (), (MethodReport("nf4", measured, ()),))
    header, row, *_ = (line.text.split("  ") for line in table._table(report, 200))
    assert ("per token" in header, any("25.0 ms" in cell for cell in row)) == (True, True)


def test_no_metric_of_another_package_changes_what_a_limit_means(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Metric):
        name = "tpot"
        limits = (*TimePerOutputToken.limits, replace(TimePerOutputToken.limits[0], name="max_ttft"))

    before = metrics.limits()["max_ttft"]
    monkeypatch.setattr(metrics, "METRICS", [*metrics.METRICS, Other()])
    assert metrics.limits()["max_ttft"] == before
    assert metrics.limits()["max_tpot"].metric == "tpot"


def test_a_column_of_memory_beyond_the_tensors_is_shown_where_it_is_limited(tmp_path: Path) -> None:
    workload = Workload(8, 4, 1, 1)
    memory = PhaseMemory("decode", GpuMemory(2**30, 2 * 2**30, 3 * 2**30), {}, "pid 7")
    speed = Speed(workload, (0.05,), (1.0,), 2**30, 2 * 2**30, memory=(memory,))
    measured = Measurement(Subject("m", None, "nf4", None, {}, None), device=H100, speeds=(speed,))

    def header(*limits: str) -> tuple[str, str]:
        told = tuple(LimitReport(f"b.yaml::nf4::{name}", name, 1, Verdict(WITHIN, "within")) for name in limits)
        report = BudgetReport("b.yaml", "m", None, None, workload, "", (), (MethodReport("nf4", measured, told),))
        first, row, *_ = (line.text for line in table._table(report, 200))
        return first, row

    first, row = header("max_vram_reserved", "max_vram_process")
    assert [name in first for name in ("reserved", "process")] == [True, True]
    assert [size in row for size in ("1.00 GiB", "2.00 GiB", "3.00 GiB")] == [True, True, True]
    first, row = header("max_vram")
    assert [name in first for name in ("reserved", "process")] == [False, False]


def test_every_limit_has_one_metric_and_every_name_is_used_once() -> None:
    kinds = [kind for metric in metrics.METRICS for kind in (*metric.limits, *metric.limits_of("math"))]
    assert len({kind.name for kind in kinds}) == len(kinds) == len(metrics.limit_kinds(["math"]))
    assert all(metrics.metric_of(kind).name == kind.metric for kind in kinds)
