"""The table of a report: counts in it, names and reasons below it, and no wider than the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from builders import REPORT

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.safetext import width
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report import document, table
from pytest_quantbudget.report.document import MethodReport, Report

NO_GPU = "no GPU was found: device memory has no peak here"
CRASH = "RuntimeError: CUDA Setup failed despite GPU being available."


def limits(method: str, **outcomes: tuple[str, str] | tuple[str, str, str]) -> tuple[LimitReport, ...]:
    def of(name: str, outcome: str, why: str, decision: str = "") -> LimitReport:
        return LimitReport(
            f"b.yaml::{method}::{name}", name, 1, Verdict(outcome, f"{method}: {name} {why}", decision=decision)
        )

    return tuple(of(name, *outcome) for name, outcome in outcomes.items())


def report(*methods: MethodReport, **more: object) -> Report:
    of = {"methods": methods, "noise": None, "together": (), "machine": "", **more}
    budget = replace(REPORT.budgets[0], **of)  # type: ignore[arg-type]
    return replace(REPORT, budgets=(budget,), judged_from=None, merged_from=(), notes=())


def texts(found: Report, room: float = 200) -> list[str]:
    return [line.text for line in table.lines(found, room=room)]


MIXED = report(
    MethodReport(
        "fp16", None, limits("fp16", max_vram=(SKIPPED, f"not measured: {NO_GPU}"), min_gsm8k=(WITHIN, "measured 60 %"))
    ),
    MethodReport(
        "nf4",
        None,
        limits(
            "nf4",
            max_vram=(SKIPPED, f"not measured: {NO_GPU}"),
            max_gsm8k_drop=(WITHIN, "measured 1.0 points, limit 2.0", UNDECIDED),
            max_weights=(OVER, "measured 8.00 GiB, limit 7.00 GiB"),
            max_kl=(OVER, "measured 8 nats, limit 7 nats"),
        ),
    ),
    MethodReport(
        "int8",
        None,
        limits("int8", max_weights=(FAILED, f"not measured: {CRASH}"), max_ttft=(FAILED, f"not measured: {CRASH}")),
    ),
    MethodReport("awq-int4", None, limits("awq-int4", max_weights=(NOT_RUN, "selected and never judged"))),
    MethodReport("bf16", None, ()),
)


def test_the_table_counts_and_names_and_reasons_stand_below_it() -> None:
    lines = texts(MIXED)
    rows = {line.split()[0]: line for line in lines[2:7]}
    assert {name: row.rpartition("   ")[2].strip() for name, row in rows.items()} == {
        "fp16": "-  1 within, 1 skipped",
        "nf4": "-  1 within (1 undecided), 2 OVER, 1 skipped",
        "int8": "-  2 FAILED",
        "awq-int4": "-  1 NOT RUN",
        "bf16": "-  -",
    }
    assert lines[7:11] == [
        "over: nf4 max_weights, max_kl",
        f"failed: int8 max_weights, max_ttft ({CRASH})",
        "not run: awq-int4 max_weights",
        f"skipped: fp16 max_vram; nf4 max_vram ({NO_GPU})",
    ]


def test_without_a_baseline_nothing_is_said_to_be_against_it() -> None:
    (line,) = [line for line in texts(report(*REPORT.budgets[0].methods)) if line.startswith("on ")]
    assert f"against {REPORT.budgets[0].baseline}" in line
    (line,) = [line for line in texts(report(*REPORT.budgets[0].methods, baseline=None)) if line.startswith("on ")]
    assert "against" not in line


def test_a_reason_without_end_is_cut() -> None:
    (line,) = [
        line
        for line in texts(report(MethodReport("nf4", None, limits("nf4", a=(FAILED, "x" * 999)))))
        if "x" * 99 in line
    ]
    assert len(line) < 250


def rows(found: Report, room: float) -> Iterator[str]:
    lines = texts(found, room)
    ends = next(i for i, line in enumerate(lines) if line.startswith(("without ", "over: ", "on ")))
    return iter(lines[1:ends])


NAMES = ("gsm8k", "a_task_whose_name_is_much_longer_than_what_it_shows", "arc_easy")
TASKS = tuple(replace(REPORT.budgets[0].tasks[0], name=name) for name in NAMES)


@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS], ids=["one task", "three"])
@pytest.mark.parametrize("room", [60, 80, 100, 200])
def test_the_table_is_no_wider_than_the_terminal_and_says_what_it_leaves_out(
    tasks: tuple[Task, ...], room: int
) -> None:
    found = replace(MIXED, budgets=(replace(MIXED.budgets[0], tasks=tasks, text=None),))
    assert max(map(width, rows(found, room))) <= room
    told = [line for line in texts(found, room) if line.startswith("without ")]
    assert bool(told) == (room < 200)
    heads, shown = ([head for head in next(rows(found, many)).split("  ") if head] for many in (1000, room))
    left_out = told[0].removeprefix("without ").partition(":")[0].split(", ") if told else []
    assert len(heads) == len(shown) + len(left_out)
    assert "roofline" not in shown


def test_the_command_line_heeds_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    document.write(path, MIXED)
    for columns in (60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["table", str(path)]) == 0
        assert ("without " in capsys.readouterr().out) == (columns == 60)
