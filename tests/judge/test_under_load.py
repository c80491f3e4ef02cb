"""Limits on figures under load: which level is judged, what failed requests do, and what their bounds are."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Origin
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import EngineFacts, Permissions
from pytest_quantbudget.core.load import Level, Load, LoadResult, Served
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.core.request import LoadTime
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, Verdict
from pytest_quantbudget.judge import intervals, needs, noise, resolution
from pytest_quantbudget.judge.margin import NoMargin, calibrated
from pytest_quantbudget.judge.verdict import judge

ALLOWED = Permissions(commands=True)
BUDGET = """model: m
confidence: 0.95
methods:
  prod:
    engine: openai
    server: {command: [serve, '{port}']}
    load: {concurrency: [1, 8], requests: 100, new_tokens: 3}
    budget: {%s}
"""


def load(folder: Path, limits: str, text: str = BUDGET) -> Budget:
    path = folder / "b.yaml"
    path.write_text(text % limits)
    return load_budget(path, permissions=ALLOWED)


def served(ttft: float, wait: float = 0.01, **more: object) -> Served:
    """A request of three tokens."""
    return Served(0.0, ttft, f"{wait * 1e6:.0f} {wait * 1e6:.0f}", 3, **more)  # type: ignore[arg-type]


def measured(budget: Budget, *levels: list[Served], seconds: float = 10.0, **more: object) -> Measurement:
    """What came of the load of `prod`."""
    method = budget.method("prod")
    assert method.load is not None
    made = (
        Level("concurrency", count, seconds, tuple(each))
        for count, each in zip(method.load.concurrency, levels, strict=True)
    )
    return Measurement(method.subject, loads=(LoadResult(method.load, tuple(made), **more),))  # type: ignore[arg-type]


def verdicts(budget: Budget, record: Measurement) -> dict[str, Verdict]:
    method = budget.method("prod")
    return {limit.name: judge(budget, method, limit, {"prod": record}) for limit in method.limits}


FAST, SLOW = [served(0.05 + i / 10_000) for i in range(100)], [served(0.2 + i / 1000, 0.02) for i in range(100)]


def test_the_worst_level_is_judged_on_latency_and_the_best_on_throughput(tmp_path: Path) -> None:
    limits = "max_ttft_p50: 100 ms, max_ttft_p90: 285 ms, max_tpot_p95: 21 ms, max_e2e_p99: 1 s, max_itl_p50: 30 ms"
    budget = load(tmp_path, f"{limits}, min_throughput: 31")
    found = verdicts(budget, measured(budget, FAST, SLOW))
    outcomes = {name: (verdict.outcome, verdict.decision) for name, verdict in found.items()}
    assert outcomes == {
        "max_ttft_p50": (OVER, OVER),
        "max_ttft_p90": (OVER, UNDECIDED),
        "max_tpot_p95": (WITHIN, WITHIN),
        "max_e2e_p99": (WITHIN, UNDECIDED),  # 100 requests do not bound it from above
        "max_itl_p50": (WITHIN, WITHIN),
        "min_throughput": (OVER, ""),
    }
    assert found["max_ttft_p50"].message == (
        "prod: max_ttft_p50 measured 250 ms, limit 100 ms, 95 % bounds 239 to 258 "
        "(percentile 50 of 100 requests at concurrency 8, the worst of 2 levels)"
    )
    assert found["min_throughput"].measured == 30.0
    assert found["max_e2e_p99"].message.endswith("; 100 requests give no bound at 95 %, 299 do")


def test_the_bounds_are_those_of_order_statistics(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p95: 10 s")
    verdict = verdicts(budget, measured(budget, FAST, SLOW))["max_ttft_p95"]
    times = [each.first_s for each in SLOW]
    assert verdict.high == intervals.quantile_interval(times, 0.95, 0.95).high == pytest.approx(0.2 + 0.098)
    # Of the two lower bounds, the higher one is a bound of the worst level only if both hold.
    assert verdict.low == intervals.quantile_interval(times, 0.95, 0.975).low
    assert verdict.measured == pytest.approx(0.2 + 0.09405)


def test_failed_requests_are_infinitely_late(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p50: 1 s, max_ttft_p95: 1 s, max_itl_p95: 1 s, max_error_rate: 0.05")
    broken = [*SLOW[:90], *[Served(0.0, error="timeout")] * 8, *[Served(0.0, 0.1, "", 1, error="status 500")] * 2]
    found = verdicts(budget, measured(budget, FAST, broken))
    words = "10 of 100 requests failed at concurrency 8 (8 timeout, 2 status 500)"
    assert found["max_ttft_p50"].outcome == WITHIN
    assert words in found["max_ttft_p50"].message
    for name in ("max_ttft_p95", "max_itl_p95"):
        assert (found[name].outcome, found[name].measured) == (FAILED, None)
        assert f"not measured: {words}: percentile 95 is one of them" in found[name].message
    rate = found["max_error_rate"]
    assert (rate.outcome, rate.decision, rate.measured) == (OVER, UNDECIDED, 0.1)
    bounds = intervals.proportion_interval(10, 100, 0.95)
    assert rate.high == pytest.approx(bounds.high / 100)
    assert rate.low == pytest.approx(intervals.proportion_interval(10, 100, 0.975).low / 100)


@pytest.mark.parametrize("rest", [[], [Served(0.0, 0.1, "", 1, error="timeout")]])
def test_a_level_at_which_no_request_is_answered_has_no_latency(rest: list[Served], tmp_path: Path) -> None:
    limits = "max_ttft_p95: 1 s, max_tpot_p95: 1 s, max_itl_p95: 1 s, max_itl_p50: 1 s, max_e2e_p95: 1 s"
    budget = load(tmp_path, limits)
    refused = [*rest, *[Served(0.0, error="status 429")] * (100 - len(rest))]
    for levels in ((FAST, refused), (refused, FAST), (refused, refused)):
        found = verdicts(budget, measured(budget, *levels))
        assert {verdict.outcome for verdict in found.values()} == {FAILED}


def test_answers_that_come_in_one_chunk_tell_no_wait_between_tokens(tmp_path: Path) -> None:
    limits = "max_ttft_p95: 1 s, max_tpot_p95: 1 s, max_itl_p95: 1 s, max_e2e_p95: 1 s, min_goodput: 0.9"
    budget = load(tmp_path, limits)
    whole = [Served(0.0, 0.3, "", 3)] * 100
    found = verdicts(budget, measured(budget, FAST, whole))
    assert [verdict.outcome for verdict in found.values()] == [WITHIN, SKIPPED, SKIPPED, WITHIN, SKIPPED]
    assert "every answer at concurrency 8 came in one chunk, so that no wait" in found["max_tpot_p95"].message
    one = [*whole[1:], served(0.3)]
    found = verdicts(budget, measured(budget, FAST, one))
    assert {verdict.outcome for verdict in found.values()} == {WITHIN}


def test_goodput_counts_the_requests_that_meet_every_limit_and_of_percentiles_the_highest(tmp_path: Path) -> None:
    limits = "max_ttft_p50: 1 ms, max_ttft_p90: 250 ms, max_tpot_p95: 30 ms, min_goodput: 0.4"
    budget = load(tmp_path, limits)
    tired = [*SLOW[:90], *[served(0.2, 0.04)] * 10]
    goodput = verdicts(budget, measured(budget, FAST, tired))["min_goodput"]
    assert (goodput.measured, goodput.outcome) == (0.51, WITHIN)
    assert "51 of 100 requests within ttft 250 ms and tpot 30.0 ms at concurrency 8" in goodput.message
    assert goodput.low == pytest.approx(intervals.proportion_interval(51, 100, 0.95).low / 100)


@pytest.mark.parametrize(
    ("limit", "wait", "share"), [("max_itl_p50: 15 ms", 0.02, 0.0), ("max_itl_p99: 15 ms", 0.01, 1.0)]
)
def test_goodput_takes_a_requests_own_percentile_of_waits(
    limit: str, wait: float, share: float, tmp_path: Path
) -> None:
    budget = load(tmp_path, f"{limit}, max_e2e_p90: 1 h, min_goodput: 0.5")
    record = measured(budget, [served(0.1, wait)] * 100, [served(0.1, wait)] * 100)
    assert verdicts(budget, record)["min_goodput"].measured == share


def test_goodput_without_a_number_to_meet_is_skipped_in_words(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p95: auto, min_goodput: 0.9")
    found = verdicts(budget, measured(budget, FAST, SLOW))
    assert found["min_goodput"].outcome == SKIPPED
    assert "needs a latency limit of the method with a number" in found["min_goodput"].message


def test_acceptance_length_counts_the_models_own_token_and_is_skipped_without_drafts(tmp_path: Path) -> None:
    budget = load(tmp_path, "min_acceptance_length: 2.0")
    found = verdicts(budget, measured(budget, FAST, SLOW, drafts=100, accepted=150))["min_acceptance_length"]
    assert (found.measured, found.outcome) == (2.5, WITHIN)
    assert "random prompts, which no draft foresees" in found.message
    none = measured(budget, FAST, SLOW, undrafted="no speculative decoding: the server counts no drafts")
    skipped = verdicts(budget, none)["min_acceptance_length"]
    assert (skipped.outcome, "the server counts no drafts" in skipped.message) == (SKIPPED, True)


def test_limits_on_single_waits_skip_where_a_tool_tells_none(tmp_path: Path) -> None:
    limits = "max_ttft_p95: 1 s, max_itl_p50: 1 s, min_goodput: 0.9"
    budget = load(tmp_path, limits)
    found = verdicts(budget, measured(budget, FAST, SLOW, tool="guidellm 0.8.1"))
    assert [verdict.outcome for verdict in found.values()] == [WITHIN, SKIPPED, SKIPPED]
    for name in ("max_itl_p50", "min_goodput"):
        assert "guidellm 0.8.1 tells only the mean wait of each request" in found[name].message


def test_what_came_from_a_prefix_cache_and_what_was_sent_late_is_said(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p95: 1 s")
    record = measured(budget, [served(0.1, cached=64)] * 100, SLOW)
    (result,) = record.loads
    late = replace(result, levels=(result.levels[0], replace(result.levels[1], behind_s=0.25)))
    message = verdicts(budget, replace(record, loads=(late,)))["max_ttft_p95"].message
    assert "6,400 tokens of 100 prompts came from a prefix cache" in message
    assert "requests were sent up to 250 ms late" in message


@pytest.mark.parametrize(
    ("facts", "outcome", "words"),
    [
        (EngineFacts("vllm", kv_tokens=300_000), WITHIN, "measured 300,000 tokens, limit 200,000"),
        (EngineFacts("vllm", kv_tokens=100_000), OVER, "measured 100,000 tokens, limit 200,000"),
        (EngineFacts("openai"), SKIPPED, "openai does not tell how many tokens its key-value cache holds"),
        (None, SKIPPED, "openai does not tell how many tokens its key-value cache holds"),
    ],
)
def test_the_key_value_cache_holds_what_the_engine_says(
    facts: EngineFacts | None, outcome: str, words: str, tmp_path: Path
) -> None:
    budget = load(tmp_path, "min_kv_tokens: 200000")
    verdict = verdicts(budget, replace(measured(budget, FAST, SLOW), engine=facts))["min_kv_tokens"]
    assert (verdict.outcome, words in verdict.message) == (outcome, True), verdict.message


def test_a_load_that_failed_costs_the_limits_on_it(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p95: 1 s, min_throughput: 1")
    failure = Failure("requests under load", "not offered", "transformers has no queue of requests", fatal=False)
    found = verdicts(budget, Measurement(budget.method("prod").subject, failures=(failure,)))
    assert [verdict.outcome for verdict in found.values()] == [SKIPPED, SKIPPED]
    assert all("transformers has no queue of requests" in verdict.message for verdict in found.values())


def test_only_limits_on_it_ask_for_the_load(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p95: 1 s, max_load_time: 1 min")
    method = budget.method("prod")
    ttft, load_time = method.limits
    assert needs.request(budget, method, [ttft]).of(Load) == (method.load,)
    assert needs.request(budget, method, [load_time]).of(Load) == ()
    assert needs.request(budget, method, [load_time]).of(LoadTime) == (LoadTime(),)


def test_percentiles_that_too_few_requests_bound_are_named_before_anything_is_measured(tmp_path: Path) -> None:
    budget = load(tmp_path, "max_ttft_p50: 1 s, max_ttft_p99: 2 s, max_e2e_p1: 1 s")
    assert [problem.message for problem in resolution.doubts(budget)] == [
        "prod: max_ttft_p99: 100 requests give no bounds at 95 % (299 do), so that the estimate alone decides",
        "prod: max_e2e_p1: 100 requests give no bounds at 95 % (368 do), so that the estimate alone decides",
    ]


def test_the_noise_of_throughput_is_that_of_the_baselines_own_load(tmp_path: Path) -> None:
    budget = load(tmp_path, "min_throughput: 31", BUDGET.replace("model: m", "model: m\nbaseline: prod"))
    loaded = Origin("2026-01-01T00:00:00Z")
    first, again = (replace(measured(budget, FAST, SLOW, seconds=s), loaded=loaded) for s in (10.0, 8.0))
    again = replace(again, subject=replace(again.subject, again=1))
    assert noise.of(budget, [first, again]).values["throughput"] == (30.0, 37.5)


def test_limits_that_read_auto_get_a_margin_that_keeps_what_was_measured(tmp_path: Path) -> None:
    limits = "max_ttft_p50: auto, max_error_rate: auto, max_e2e_p99: auto, min_throughput: auto"
    budget = load(tmp_path, limits)
    record = {"prod": measured(budget, FAST, SLOW)}
    ttft, errors, e2e, throughput = budget.method("prod").limits
    found = calibrated(budget, "prod", ttft, "ms", record)
    assert 0.2495 < found.value < 0.3
    assert "bound of 100 requests" in found.words
    none = calibrated(budget, "prod", errors, "", record)
    assert 0 < none.value < 0.2
    assert "measured 0.00, margin 0.0" in none.words
    with pytest.raises(NoMargin, match="100 requests give no bound at 99"):
        calibrated(budget, "prod", e2e, "ms", record)
    with pytest.raises(NoMargin, match="0 runs of the baseline do not show how much runs differ"):
        calibrated(budget, "prod", throughput, "", record)
