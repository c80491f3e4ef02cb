"""The Markdown of a report: what to act on first, hostile names and all, and no longer than there is room."""

from dataclasses import replace
from typing import Any

import pytest
from builders import REPORT
from gfm_pages import HOSTILE, page

from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.trend import Moved
from pytest_quantbudget.report import gfm, markdown
from pytest_quantbudget.report.document import MethodReport, Report

NO_GPU = "no GPU was found: device memory has no peak here"


def limit(
    name: str, outcome: str = WITHIN, why: str = "measured so much", method: str = "nf4", **more: object
) -> LimitReport:
    verdict = Verdict(outcome, f"{method}: {name} {why}", **more)  # type: ignore[arg-type]
    return LimitReport(f"b.yaml::{method}::{name}", name, 3, verdict)


def report(*limits: LimitReport, **more: object) -> Report:
    methods = tuple(
        MethodReport(name, None, tuple(each for each in limits if each.method == name))
        for name in dict.fromkeys(each.method for each in limits)
    )
    changes = {"methods": methods, "noise": None, "together": (), "uses": (), "advice": None, "changes": (), **more}
    budget = replace(REPORT.budgets[0], **{"machine": "", **changes})  # type: ignore[arg-type]
    return replace(REPORT, budgets=(budget,), judged_from=None, merged_from=(), notes=())


DROP: dict[str, Any] = {
    "measured": 5.1,
    "limit": 2.0,
    "unit": "points",
    "limit_text": "2.0",
    "low": 3.9,
    "high": 6.4,
    "n": 450,
}
MIXED = report(
    limit("max_weights", measured=0.5, limit=1.0, unit="x", limit_text="1.0"),
    limit("max_gsm8k_drop", OVER, "measured 5.1 points, limit 2.0", of="questions", decision=OVER, **DROP),
    limit("max_gsm8k_flips", WITHIN, "measured 1 %; about 900 questions would settle it", decision=UNDECIDED),
    limit("max_kl", FAILED, "not measured: it crashed", "int8"),
    limit("max_ttft", FAILED, "not measured: it crashed", "int8"),
    limit("max_vram", SKIPPED, f"not measured: {NO_GPU}"),
    limit("max_vram", SKIPPED, f"not measured: {NO_GPU}", "int8"),
)  # fmt: skip


def test_the_verdict_stands_first_and_what_to_act_on_worst_first_below_it() -> None:
    lines = markdown.text(MIXED).splitlines()
    assert lines[0] == "## \N{CROSS MARK} Quantization budget: 1 of 7 limits over, 2 failed"
    assert lines[4] == "7 limits: 1 over, 2 failed, 1 undecided, 1 within, 2 skipped"
    found = page(markdown.text(MIXED))
    assert [row[:2] + row[-1:] for row in found.cells[:5]] == [
        ["method", "limit", "verdict"],
        ["nf4", "max_gsm8k_drop", "over"],
        ["int8", "max_kl", "failed"],
        ["int8", "max_ttft", "failed"],
        ["nf4", "max_gsm8k_flips", "undecided, passed"],
    ]
    assert found.cells[1][2:6] == ["2.0 points", "5.1 points (3.9 to 6.4)", "-155.0 %", "450 questions"]


def test_why_is_said_once_for_those_that_share_it() -> None:
    text = markdown.text(MIXED)
    assert "- `nf4` `max_gsm8k_drop`: measured 5.1 points, limit 2.0\n" in text
    assert "- `int8` `max_kl`, `max_ttft`: it crashed\n" in text
    assert f"- skipped: `int8` `max_vram`; `nf4` `max_vram`: {NO_GPU}\n" in text
    assert "about 900 questions would settle it" in text


def test_what_is_within_is_folded_and_the_trade_off_and_the_machine_are_there() -> None:
    text = markdown.text(MIXED)
    before, behind = text.split("<details>\n<summary>1 limit within</summary>")
    assert "max_weights" in behind.partition("</details>")[0]
    assert "`max_weights`" not in before
    rows = [row for row in page(text).cells if row[0] in ("nf4", "int8")]
    assert [row[0] for row in rows if "SKIPPED" in row[-1].upper()] == ["nf4", "int8"]
    assert (
        "- a CPU, 4 cores, 16.0 GiB of memory\n- NVIDIA L4, 24.0 GiB, driver 580.1\n- Python 3.11.7, pytest 9.0" in text
    )
    assert f"commit `{'f' * 40}`, with changes" in text


def test_every_field_of_a_report_with_all_fields_is_put_into_a_page() -> None:
    found = page(markdown.text(REPORT))
    assert {"table", "details", "h2", "h3"} <= found.tags
    assert "edge: awq-int4, the only one that meets all its limits" in found.text
    assert "judged from old.json" in found.text


def moved(name: str, before: float, now: float, worse: bool, beyond: bool | None) -> Moved:
    return Moved("nf4", name, "x", before, now, 100 * (now / before - 1), "%", worse, beyond, "2025-12-31T00:00:00Z", 9)


def test_what_changed_against_the_last_run_is_told_and_what_differs_as_runs_do_is_counted() -> None:
    changes = (
        moved("min_speedup", 1.0, 0.9, True, False),
        moved("max_ttft_ratio", 2.0, 1.0, False, True),
        moved("max_vram_ratio", 1.0, 2.0, True, True),
        moved("max_weights_ratio", 1.0, 1.5, True, None),
        moved("max_kl", 1.0, 1.0, False, None),
    )
    text = markdown.text(report(limit("max_kl"), changes=changes))
    shown, folded = ([row for row in page(part).cells if len(row) == 6] for part in text.split("<details>", 1))
    assert [row[1] for row in shown] == ["figure", "vram_ratio", "ttft_ratio"]
    assert shown[1][2:] == ["1.00x", "2.00x", "+100 %", "worse"]
    assert [row[1] for row in folded] == ["figure", "weights_ratio"]
    assert "<summary>1 figure differs, and too few runs tell how much runs do</summary>" in text
    assert "\n\n2 figures differ no more than runs do\n" in text
    assert "**Changed** against the last comparable run (2025-12-31T00:00:00Z)\n" in text
    calm = markdown.text(report(limit("max_kl"), changes=changes[:1]))
    assert "(2025-12-31T00:00:00Z): nothing by more than runs do\n\n1 figure differs no more than runs do\n" in calm


def test_without_a_history_nothing_is_said_of_changes() -> None:
    assert "Changed" not in markdown.text(MIXED)


def test_a_gain_beyond_noise_passes_and_is_not_folded_away() -> None:
    text = markdown.text(report(limit("max_gsm8k_drop", why="gains 9 points", anomalous=True), limit("max_kl")))
    before, _, folded = text.partition("<details>")
    assert before.startswith("## \N{WARNING SIGN} Quantization budget: 2 of 2 limits within, 1 anomalous\n")
    assert "within, anomalous |" in before
    assert "`max_gsm8k_drop`: gains 9 points" in before
    assert "max_gsm8k_drop" not in folded.partition("</details>")[0]


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([WITHIN, WITHIN], "\N{WHITE HEAVY CHECK MARK} Quantization budget: 2 of 2 limits within"),
        ([WITHIN, SKIPPED], "\N{WHITE HEAVY CHECK MARK} Quantization budget: 1 of 2 limits within, 1 skipped"),
        ([SKIPPED], "\N{WHITE CIRCLE} Quantization budget: nothing was judged: 1 limit skipped"),
        ([NOT_RUN, WITHIN], "\N{CROSS MARK} Quantization budget: 1 of 2 limits not run"),
        ([OVER, NOT_RUN], "\N{CROSS MARK} Quantization budget: 1 of 2 limits over, 1 not run"),
    ],
)
def test_the_verdict_in_a_line(outcomes: list[str], words: str) -> None:
    found = report(*(limit(f"max_{i}", outcome) for i, outcome in enumerate(outcomes)))
    assert markdown.text(found).splitlines()[0] == f"## {words}"


def test_what_passed_undecided_is_no_clean_pass() -> None:
    found = report(limit("max_kl", decision=UNDECIDED), limit("max_ttft"))
    expected = "## \N{WARNING SIGN} Quantization budget: 1 of 2 limits within, 1 undecided"
    assert markdown.text(found).splitlines()[0] == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_messages_add_nothing_to_the_page(text: str) -> None:
    def of(name: str) -> Report:
        limits = [
            limit(name, OVER, name, name, measured=2.0, limit=1.0, unit=name, limit_text=name, low=1.0, of=name, n=1),
            limit(name, SKIPPED, name, "nf4"),
            limit(name, WITHIN, name, "nf4", limit_text=name, decision=UNDECIDED),
        ]
        machine = replace(REPORT.machine, cpu=name, libraries={name: name}, platform=name)
        machine = replace(machine, gpus=tuple(replace(gpu, name=name, driver=name) for gpu in machine.gpus))
        change = replace(
            moved("min_x", 1.0, 2.0, True, True), method=name, name=f"min_{name}", unit=name, of=name, at=name
        )
        more = {"changes": (change,), "machine": name, "advice": REPORT.budgets[0].advice}
        found = report(*limits, file=name, model=name, revision=name, **more)
        budget = replace(found.budgets[0], uses=(limit("edge", FAILED, name, "use"),))
        return replace(found, machine=machine, created=name, budgets=(budget,), commit=None)

    expected, found = page(markdown.text(of("x"))), page(markdown.text(of(text)))
    plain = {"code"}  # a name that would end a span of code is none
    assert [tag for tag in found.opened if tag not in plain] == [tag for tag in expected.opened if tag not in plain]
    assert found.attributes == set()
    assert found.references == []


def test_where_there_is_no_room_the_least_goes_first_and_is_named() -> None:
    whole = markdown.text(MIXED)
    size = len(whole.encode())
    assert markdown.text(MIXED, size) == whole
    shorter = markdown.text(MIXED, size - 1)
    assert "Machine and versions" not in shorter
    assert "Left out, because there is room for" in shorter
    assert shorter.rstrip().endswith("machine and versions.")
    for room in range(0, size, 37):
        text = markdown.text(MIXED, room)
        assert len(text.encode()) <= room
        assert not text or text.startswith("## \N{CROSS MARK} Quantization budget: 1 of 7")
    tight = markdown.text(MIXED, 900)
    assert "| `nf4` | `max_gsm8k_drop` |" in tight
    assert "limits of `budgets/q.yaml` that are within" in tight


def test_a_report_of_very_many_limits_fits_into_a_comment() -> None:
    why = "it crashed " + "x" * 5000
    many = [limit(f"max_{i}", OVER, f"{i} {why}", f"method{i % 90}") for i in range(1000)]
    many += [limit(f"min_{i}", WITHIN, why, f"method{i % 90}") for i in range(1000)]
    text = markdown.text(report(*many))
    assert len(text.encode()) <= markdown.COMMENT
    assert "1,000 of 2,000 limits over" in text
    assert "and 900 limits more" in text
    assert "and 980 more reasons" in text
    assert text.count(gfm.inline("x" * 300)) <= markdown.MOST_REASONS
