"""What limits say that they can tell is what simulated runs show."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import multinomial

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.judge.resolution import FlipRate, FlipRates, flip_key
from pytest_quantbudget.judge.telling import tells

Load = Callable[[str], Budget]


def told(budget: Budget, known: FlipRates | None = None) -> str:
    method = budget.method("nf4")
    more = [known] if known is not None else []
    return tells(budget, method, method.limits[0], *more)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("max_weights: 7 GiB", "is counted: the same in every run, so that any change is told"),
        ("max_vram: 7 GiB", "is a peak that is counted: repeats on one machine agree to the byte, or nearly"),
        ("kernel: Marlin*", "is read off the layers as loaded: the same in every run"),
        ("min_tokens_per_s: 7", "is a median of 5 repeats, with bounds at 95 %; how much runs differ, which is often"),
        ("max_load_time: 7 s", "is one time; how much runs differ, which is often more, `--quant-noise` tells"),
        ("max_energy_per_token: 1 J", "is a median of 5 repeats, with bounds at 95 %; how much runs differ, which is"),
        ("max_quantize_time: 1 h", "is one time, of when the checkpoint was made, which is kept: there are no bounds"),
        ("reference_gsm8k: 80 ± 2", "with 1,000 questions a share of 80.0 % has 95 % bounds of 77.8 to 82.1 %"),
        ("max_gsm8k_absent: 8", "with 1,000 questions a share of 8.0 % has 95 % bounds of 6.6 to 9.6 %"),
        ("min_gsm8k_recovery: 99", "has bounds by 1,000 questions: how wide they are is known once it is measured"),
        ("min_gsm8k: 80", "with 1,000 questions a share of 80.0 % has 95 % bounds of 77.8 to 82.1 %"),
        ("min_gsm8k: auto", "with 1,000 questions a share of half has 95 % bounds of 47.4 to 52.6 %"),
        ("max_gsm8k_flips: 8", "with 1,000 questions a share of 8.0 % has 95 % bounds of 6.6 to 9.6 %"),
        ("max_gsm8k_drop: 0", "with 1,000 questions nothing tells 0.0 points from more (at 5.0 % flips, assumed)"),
        ("max_gsm8k_drop: auto", "with 1,000 questions `auto` writes what is lost and a margin of about "),
        (
            "min_token_agreement: 98",
            "has bounds at 95 % by the answers that it is taken on: how wide they are is known",
        ),
    ],
)
def test_each_kind_of_limit_says_what_it_rests_on(load: Load, limit: str, said: str) -> None:
    budget = load(limit)
    assert budget.totals == {"gsm8k": 1000}
    assert told(budget).startswith(said)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("max_kl_p99: 1", "has bounds at 95 % by the answers that it is taken on: how wide they are is known"),
        ("max_ttft_p95: 1 s", "has bounds by 200 requests a level; how runs differ is not in them"),
    ],
)
def test_percentiles_rest_on_answers_or_on_requests(tmp_path: Path, limit: str, said: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(
        "model: m\nbaseline: fp16\nload: {requests: 200}\ntasks: {t: {file: builtin, divergence: true}}\nmethods:\n"
        "  fp16: {}\n"
        f"  nf4: {{engine: openai, server: {{url: 'http://127.0.0.1:1/v1'}}, budget: {{{limit}}}}}\n"
    )
    assert told(load_budget(path, permissions=Permissions(everything=True))).startswith(said)


def test_a_rate_of_flips_that_was_measured_is_taken(load: Load) -> None:
    budget = load("max_gsm8k_drop: 3")
    known = FlipRates({flip_key(budget.method("nf4"), budget.tasks["gsm8k"]): FlipRate(2.0, "2026-01-01T00:00:00Z")})
    assert "(at 2.0 % flips, as measured 2026-01-01T00:00:00Z)" in told(budget, known)


def failing(questions: int, drop: float, flips: float, limit: float) -> float:
    """The percent of simulated runs in which the measured drop is over the limit."""
    lost, won = (flips + drop) / 200, (flips - drop) / 200
    drawn = multinomial.rvs(questions, [lost, won, 1 - lost - won], size=20_000, random_state=1)
    return float(100 * (100 * (drawn[:, 0] - drawn[:, 1]) / questions > limit + 1e-9).mean())


def test_losses_fail_as_often_as_is_said(load: Load) -> None:
    said = told(load("max_gsm8k_drop: 3"))
    found = re.fullmatch(
        r"with 1,000 questions a method that loses 3.0 points fails ([\d.]+) %, "
        r"one that loses half of that ([\d.]+) %; a loss of ([\d.]+) points is found in 95 % of runs "
        r"\(at 5.0 % flips, assumed\)",
        said,
    )
    assert found is not None, said
    at, half, sure = map(float, found.groups())
    for drop, expected in ((3.0, at), (1.5, half), (min(sure, 4.99), 95.0)):
        assert failing(1000, drop, 5.0, 3.0) == pytest.approx(expected, abs=0.3, rel=0.03)


def test_a_task_of_unknown_size_says_so(tmp_path: Path) -> None:
    text = (
        "model: org/m\nbaseline: fp16\ntasks: {arc: {harness: arc_easy}}\nmethods:\n  fp16: {}\n  nf4: {budget: {%s}}\n"
    )
    path = tmp_path / "b.yaml"
    path.write_text(text % "max_arc_drop: 3")
    assert told(load_budget(path)) == "how many questions the task has is known once it is loaded"


def test_too_few_repeats_say_how_many_would_do(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: org/m\nworkload: {repeats: 2}\nmethods:\n  nf4: {budget: {min_tokens_per_s: 5}}\n")
    assert told(load_budget(path)) == "2 repeats give no bounds at 95 % (5 do): the estimate alone decides"
