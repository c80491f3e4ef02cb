"""The order in which limits are read: over, failed, not run, undecided, then what is within by what is left."""

from dataclasses import replace

import pytest
from builders import REPORT

from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report.document import MethodReport
from pytest_quantbudget.report.ranked import Ranked, ranked

GIB = 2**30


def of(*limits: LimitReport, uses: tuple[LimitReport, ...] = ()) -> list[Ranked]:
    methods = (MethodReport("nf4", None, limits),)
    return ranked(replace(REPORT.budgets[0], methods=methods, uses=uses))


def limit(name: str, outcome: str = WITHIN, measured: float | None = None, **more: object) -> LimitReport:
    verdict = Verdict(outcome, f"nf4: {name} measured so much", measured, **more)  # type: ignore[arg-type]
    return LimitReport(f"b.yaml::nf4::{name}", name, 3, verdict)


def test_what_a_reader_must_act_on_stands_first() -> None:
    found = of(
        limit("max_vram", SKIPPED),
        limit("max_weights", WITHIN, 4.0 * GIB, limit=5.0 * GIB, unit="GiB"),
        limit("min_speedup", WITHIN, 0.99, limit=0.9, unit="x"),
        limit("max_gsm8k_drop", WITHIN, 1.0, limit=2.0, unit="points", decision=UNDECIDED),
        limit("max_kl", NOT_RUN),
        limit("max_ttft", FAILED),
        limit("min_gsm8k", OVER, 50.0, limit=60.0, unit="%"),
        limit("max_ppl_ratio", OVER, 2.0, limit=1.0, unit="x"),
    )
    assert [(each.limit.name, each.state) for each in found] == [
        ("max_ppl_ratio", OVER),
        ("min_gsm8k", OVER),
        ("max_ttft", FAILED),
        ("max_kl", NOT_RUN),
        ("max_gsm8k_drop", UNDECIDED),
        ("min_speedup", WITHIN),
        ("max_weights", WITHIN),
        ("max_vram", SKIPPED),
    ]
    assert [each.margin for each in found[:2]] == [-1.0, pytest.approx(-1 / 6)]
    assert [each.passed for each in found] == [False] * 4 + [True] * 3 + [False]


def test_figures_are_told_in_the_units_of_the_limit_and_apart_from_it() -> None:
    (size,) = of(limit("max_weights", WITHIN, 4.9996 * GIB, limit=5.0 * GIB, unit="GiB"))
    assert (size.measured, size.allowed, size.why) == ("4.9996 GiB", "5 GiB", "measured so much")
    more = {"low": 0.5, "high": 2.8, "confidence": 0.95, "n": 1300, "of": "questions"}
    (drop,) = of(limit("max_gsm8k_drop", OVER, 1.6, limit=1.0, unit="points", **more))
    assert (drop.measured, drop.bounds, drop.observations) == ("1.6 points", "0.5 to 2.8", "1,300 questions")
    assert drop.margin_text == "-60.0 %"


@pytest.mark.parametrize(
    ("low", "high", "text"), [(None, None, ""), (2.0, None, "at least 2.0"), (None, 3.0, "at most 3.0")]
)
def test_a_bound_without_an_end_says_which(low: float | None, high: float | None, text: str) -> None:
    (found,) = of(limit("max_gsm8k_drop", OVER, 2.5, limit=1.0, unit="points", low=low, high=high))
    assert found.bounds == text


def test_a_limit_of_zero_and_one_without_a_number_have_no_margin() -> None:
    found = of(limit("max_gsm8k_drop", OVER, 1.0, limit=0.0, unit="points"), limit("kernel", OVER, limit_text="marlin"))
    assert [(each.margin, each.margin_text, each.measured) for each in found] == [
        (None, "", ""),
        (None, "", "1.0 points"),
    ]
    assert found[0].allowed == "marlin"


def test_what_a_method_is_wanted_for_is_among_them() -> None:
    use = LimitReport("b.yaml::use::production", "production", 9, Verdict(OVER, "no method meets all its limits"))
    assert [each.limit.name for each in of(limit("max_kl"), uses=(use,))] == ["production", "max_kl"]


def test_an_outcome_that_there_is_not_is_no_pass() -> None:
    assert [each.state for each in of(limit("max_vram", "splendid"), limit("max_kl"))] == [FAILED, WITHIN]
