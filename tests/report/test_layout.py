"""Columns on terminals of any width: what goes first, and where the text of other languages stands."""

from __future__ import annotations

import pytest

from pytest_quantbudget.core.safetext import width
from pytest_quantbudget.report import layout
from pytest_quantbudget.report.layout import Cells

NAMES = Cells("method", ["fp32", "gptq-int4"])
WORTH = Cells("drop", ["-", "0.7"], 10)
RATIO = Cells("ratio", ["1.00x", "0.19x"], 6)
EXTRA = Cells("roofline", ["4.8 %", "0.50 %"], 1)
VERDICT = Cells("verdict", ["5 within, 1 skipped", "4 within"])
ALL = [NAMES, EXTRA, RATIO, WORTH, VERDICT]


def heads(columns: list[Cells]) -> list[str]:
    return [column.head for column in columns]


def test_columns_stand_side_by_side() -> None:
    assert list(layout.rows(ALL)) == [
        "method     roofline  ratio  drop  verdict",
        "fp32          4.8 %  1.00x     -  5 within, 1 skipped",
        "gptq-int4    0.50 %  0.19x   0.7  4 within",
    ]


@pytest.mark.parametrize(
    ("room", "gone"),
    [
        (200, []),
        (53, []),
        (52, ["roofline"]),
        (43, ["roofline"]),
        (42, ["roofline", "ratio"]),
        (35, ["roofline", "ratio", "drop"]),
        (5, ["roofline", "ratio", "drop"]),
    ],
)
def test_where_room_is_short_the_columns_that_stay_the_shortest_go_first(room: int, gone: list[str]) -> None:
    assert layout.total(ALL) == 53
    kept, left_out = layout.fit(ALL, room)
    assert heads(left_out) == gone
    assert heads(kept) == [column.head for column in ALL if column.head not in gone]
    assert room < 40 or max(map(width, layout.rows(kept))) <= room


def test_of_equal_columns_the_last_goes_first() -> None:
    tasks = [Cells(head, ["97.5 %"], 10) for head in ("a", "drop", "b", "drop_b")]
    assert heads(layout.fit([NAMES, *tasks], 28)[1]) == ["drop_b", "b"]


def test_a_long_head_is_clipped_before_a_column_goes() -> None:
    long = Cells("a_task_with_a_name_of_no_end", ["97.5 %", "96.8 %"], 1)
    kept, left_out = layout.fit([NAMES, long, VERDICT], 59)
    assert (heads(kept), left_out) == (["method", "a_task_with…", "verdict"], [])
    assert heads(layout.fit([NAMES, long, VERDICT], 200)[0]) == ["method", "a_task_with_a_name_of_no_end", "verdict"]


def test_columns_with_wide_characters_are_aligned() -> None:
    head, row, other = layout.rows([Cells("method", ["数学", "nf4"]), Cells("数学", ["1", "97.5 %"]), VERDICT])
    assert [head, row, other] == [
        "method    数学  verdict",
        "数学         1  5 within, 1 skipped",
        "nf4     97.5 %  4 within",
    ]
    assert layout.clipped("数学数学", 6) == "数学…"


def test_long_lines_are_cut_between_words_and_indented() -> None:
    assert layout.wrapped("short", 20) == ["short"]
    lines = layout.wrapped("skipped: fp32 max_vram (not measured: no GPU was found)", 30)
    assert lines == ["skipped: fp32 max_vram (not", "  measured: no GPU was found)"]
    assert all(width(line) <= 20 for line in layout.wrapped("数学 " * 20, 20))


@pytest.mark.parametrize(
    ("environ", "on_terminal", "columns"), [("", False, 100), ("150", False, 150), ("150", True, 150)]
)
def test_without_a_terminal_there_are_a_hundred_columns(
    monkeypatch: pytest.MonkeyPatch, environ: str, on_terminal: bool, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", environ)
    assert layout.room(on_terminal=on_terminal) == columns
