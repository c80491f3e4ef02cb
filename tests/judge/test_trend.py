"""A change against earlier runs: what is compared, what is noise, and what a regression leaves behind."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from pytest_quantbudget.core.history import KeptFigure, MethodRun, packed, unpacked
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.judge import trend
from pytest_quantbudget.judge.metrics import limit_kinds
from pytest_quantbudget.judge.trend import Point, Rule, Scale

KINDS = limit_kinds(["gsm8k"])
SPEED, WEIGHTS, SCORE, TTFT = (KINDS[name] for name in ("min_tokens_per_s", "max_weights", "min_gsm8k", "max_ttft"))


def points(*values: float) -> list[Point]:
    return [Point(f"run {i}", f"2026-01-{i + 1:02}T00:00:00Z", value, str(i)) for i, value in enumerate(values)]


def rule(kind: LimitKind, percent: float, **more: object) -> Rule:
    return Rule(kind, Scale(kind).harm(percent), **more)  # type: ignore[arg-type]


def exceeding(values: list[float], asked: Rule) -> list[int]:
    """The numbers of the runs, from 1, of which the rule says that they are over: shown, and for long enough."""
    found = enumerate(trend.replay(points(*values), asked), 1)
    return [n for n, c in found if c is not None and c.exceeds and c.shown and c.row >= asked.in_a_row]


STEADY = [100.0, 101.0, 99.5, 100.5, 99.0, 100.2]


def test_a_regression_is_named_at_its_run_and_stays_named() -> None:
    values = [*STEADY, 80.0, 81.0, 79.5, 80.5]
    assert exceeding(values, rule(SPEED, 5)) == [7, 8, 9, 10]
    assert exceeding(values, rule(SPEED, 5, of=1)) == [7, 8, 9, 10], "what is over is no reference for the next"
    assert exceeding(values, rule(SPEED, 5, in_a_row=3)) == [9, 10]


def test_what_is_better_is_no_change_for_the_worse() -> None:
    assert exceeding([*STEADY, 130.0, 131.0], rule(SPEED, 5)) == []
    assert exceeding([*STEADY, 80.0, 81.0], rule(TTFT, 5)) == []
    assert exceeding([*STEADY, 130.0], rule(TTFT, 5)) == [7]


def test_one_bad_run_is_none_of_three_in_a_row_and_is_accepted_afterwards() -> None:
    values = [*STEADY, 80.0, 100.0, 100.5]
    assert exceeding(values, rule(SPEED, 5, in_a_row=3)) == []
    *_, last = trend.replay(points(*values), rule(SPEED, 5, in_a_row=3))
    assert last is not None
    assert last.row == 0
    assert last.before == 100.0, "the median of five, of which the bad one is one"


def test_within_the_spread_of_runs_nothing_is_shown() -> None:
    wide = [100.0, 80.0, 120.0, 95.0, 110.0, 90.0, 78.0]
    *_, last = trend.replay(points(*wide), rule(SPEED, 5))
    assert last is not None
    assert last.exceeds
    assert not last.shown
    assert last.bounds is not None
    assert last.bounds.low < 0 < last.harm


def test_fewer_than_four_runs_show_no_spread() -> None:
    found = list(trend.replay(points(100.0, 100.0, 100.0, 50.0, 50.0), rule(SPEED, 5)))
    assert found[0] is None
    assert [each.shown for each in found[1:] if each is not None] == [False] * 4
    assert found[3] is not None
    assert found[3].bounds == trend.NOTHING


def test_what_is_counted_has_no_noise() -> None:
    assert exceeding([1000.0, 1000.0, 1001.0], rule(WEIGHTS, 0)) == [3]
    assert exceeding([1000.0, 1001.0, 1001.0], rule(WEIGHTS, 0)) == [2, 3]
    assert exceeding([1000.0, 1000.0, 999.0], rule(WEIGHTS, 0)) == []


def test_scores_are_compared_question_by_question() -> None:
    before = [True] * 900 + [False] * 100
    lost = [True] * 860 + [False] * 140
    runs = [
        replace(p, outcomes=packed(right)) for p, right in zip(points(90, 90, 86), (before, before, lost), strict=True)
    ]
    *_, last = trend.replay(runs, rule(SCORE, 1))
    assert last is not None
    assert last.paired is not None
    assert (last.harm, last.paired.b, last.paired.c) == (4.0, 40, 0)
    assert last.shown
    assert last.exceeds
    # The same loss, with as many gains: the runs differ, and the score does not.
    other = [False] * 40 + [True] * 900 + [False] * 60
    *_, last = trend.replay([*runs[:2], replace(runs[2], outcomes=packed(other))], rule(SCORE, 1))
    assert last is not None
    assert last.harm == 0
    assert not last.exceeds


def test_most_of_the_earlier_runs_decide_what_was_right() -> None:
    told = [packed([a, True]) for a in (True, False, False)]
    runs = [replace(p, outcomes=each) for p, each in zip(points(100, 50, 50), told, strict=True)]
    *_, last = trend.replay([*runs, Point("now", "", 50.0, "n", packed([False, True]))], Rule(SCORE, 1.0))
    assert last is not None
    assert last.harm == 0


@pytest.mark.parametrize(("kind", "percent"), [(SPEED, 5.0), (TTFT, 5.0), (SPEED, 80.0), (SCORE, 1.5)])
def test_amounts_and_harms_are_each_others_inverse(kind: LimitKind, percent: float) -> None:
    scale = Scale(kind)
    assert scale.amount(scale.harm(percent)) == pytest.approx(percent)
    assert scale.amount(scale.harm(-percent)) == pytest.approx(-percent)


def test_what_is_a_share_changes_by_points() -> None:
    names = {name for name, kind in KINDS.items() if trend.in_points(kind)}
    assert {
        "min_gsm8k",
        "max_gsm8k_drop",
        "max_gsm8k_flips",
        "min_goodput",
        "max_error_rate",
        "min_token_agreement",
    } <= names
    assert not names & {"min_tokens_per_s", "max_vram", "max_vram_ratio", "max_kl", "max_ppl_ratio", "min_speedup"}
    assert Scale(KINDS["min_goodput"]).place(0.9) - Scale(KINDS["min_goodput"]).place(0.97) == pytest.approx(7)


def test_a_share_is_of_what_was_there_before() -> None:
    scale = Scale(SPEED)
    assert scale.amount(scale.place(90.0) - scale.place(100.0)) == pytest.approx(10)
    scale = Scale(TTFT)
    assert scale.amount(scale.place(110.0) - scale.place(100.0)) == pytest.approx(10)
    with pytest.raises(ValueError, match="a figure of 0 changes by no share"):
        scale.place(0.0)


def test_the_robust_spread_is_that_of_normal_values_and_outliers_widen_it_little() -> None:
    rng = random.Random(1)
    samples = [[rng.gauss(0, 1) for _ in range(12)] for _ in range(300)]
    found = [trend.spread(sample) for sample in samples]
    mean = statistics.fmean(each.deviation for each in found if each is not None)
    assert mean == pytest.approx(1, abs=0.05)
    with_outliers = [trend.spread([30.0, *sample[1:]]) for sample in samples]
    assert statistics.fmean(each.deviation for each in with_outliers if each is not None) < 1.35


@pytest.mark.parametrize("n", [4, 6, 8, 9, 12, 20, 40])
def test_a_bound_holds_as_often_as_it_says(n: int) -> None:
    rng = random.Random(n)
    beyond, tries = 0, 1500
    for _ in range(tries):
        *before, now = (rng.gauss(0, 1) for _ in range(n + 1))
        found = trend.spread(before)
        assert found is not None
        beyond += now - statistics.median(before[-5:]) > trend.reach(found, 1, min(n, 5), 0.95)
    assert beyond / tries < 0.05 + 3 * math.sqrt(0.05 * 0.95 / tries)
    assert beyond / tries > 0.02


def test_outcomes_are_packed_without_loss() -> None:
    for right in ([True], [False], [False, False, True, False, True], []):
        assert unpacked(packed(right)) == right


RUN = MethodRun(
    1, "a", "2026-01-01T00:00:00Z", "b.yaml", "nf4", {"model": "m", "revision": "r1", "device": "L4"},
    {"workload": {"new_tokens": "128"}}, {}, {"min_tokens_per_s": KeptFigure(100.0, "tokens/s", "t0", ("workload",))},
)  # fmt: skip


def run(number: int, value: float, measured: str = "", **subject: str) -> MethodRun:
    figure = replace(RUN.figures["min_tokens_per_s"], value=value, measured=measured or f"t{number}")
    at = f"2026-01-{number:02}T00:00:00Z"
    return replace(
        RUN, run=f"r{number}", at=at, figures={"min_tokens_per_s": figure}, subject={**RUN.subject, **subject}
    )


def test_only_like_is_compared_with_like_and_the_difference_is_named() -> None:
    past = [run(1, 50.0, device="T4"), run(2, 100.0), run(3, 51.0, device="T4"), run(4, 60.0, revision="r0")]
    found = trend.series(past, run(5, 99.0), "min_tokens_per_s")
    assert [each.value for each in found.points] == [100.0]
    assert found.unlike == ("2 runs: device was T4 and is L4", "1 run: revision was r0 and is r1")
    other = replace(run(6, 10.0), parts={"workload": {"new_tokens": "64"}})
    (told,) = trend.series([other], run(7, 99.0), "min_tokens_per_s").unlike
    assert told == "1 run: workload: new_tokens was 64 and is 128"


def test_of_relations_the_baseline_is_part_of_what_is_compared() -> None:
    def relative(number: int, base: str) -> MethodRun:
        found = run(number, 2.0)
        figure = replace(found.figures["min_tokens_per_s"], relative=True)
        return replace(found, figures={"min_tokens_per_s": figure}, baseline={"kind": base})

    assert len(trend.series([relative(1, "fp16")], relative(2, "fp16"), "min_tokens_per_s").points) == 1
    (told,) = trend.series([relative(1, "fp32")], relative(2, "fp16"), "min_tokens_per_s").unlike
    assert told == "1 run: baseline: kind was fp32 and is fp16"


def test_a_figure_that_is_reused_is_no_other_observation() -> None:
    past = [run(1, 100.0, "t1"), run(2, 100.0, "t1"), run(3, 98.0, "t3")]
    assert [p.value for p in trend.series(past, run(4, 97.0), "min_tokens_per_s").points] == [100.0, 98.0]
    # The rerun of a job, whose figures come from the cache, is compared with what its first run was.
    again = trend.series([*past, run(4, 97.0)], run(5, 97.0, "t4"), "min_tokens_per_s")
    assert [p.value for p in again.points] == [100.0, 98.0]


def test_what_moved_says_whether_it_is_more_than_noise() -> None:
    past = [run(i + 1, value) for i, value in enumerate(STEADY)]
    worse = trend.moved(past, run(10, 80.0), SPEED)
    assert worse is not None
    assert (worse.figure, worse.before, worse.now, worse.worse, worse.beyond_noise) == (
        "tokens_per_s", 100.2, 80.0, True, True,
    )  # fmt: skip
    assert worse.change == pytest.approx(-20.16, abs=0.01)
    assert worse.trend == (*STEADY, 80.0)
    slight = trend.moved(past, run(10, 99.0), SPEED)
    assert slight is not None
    assert slight.beyond_noise is False
    few = trend.moved(past[:2], run(10, 80.0), SPEED)
    assert few is not None
    assert few.beyond_noise is None
    assert trend.moved([], run(10, 80.0), SPEED) is None
