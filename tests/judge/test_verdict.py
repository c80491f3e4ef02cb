"""Judging hand-made measurements: which side of the limit, and in which words."""

from dataclasses import replace
from pathlib import Path

import pytest
from judged import CPU, GIB, Load, answers, measured, verdict

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import INVALID, Answer, TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Failure, Measurement, Speed
from pytest_quantbudget.core.request import COMPILED_WORKLOAD, LOAD, WORKLOAD
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN
from pytest_quantbudget.judge import intervals


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        ("max_vram: 7 GiB", WITHIN, "max_vram measured 7.00 GiB, limit 7.00 GiB"),
        ("max_vram: 7167.9999 MiB", OVER, "max_vram measured 7,168 MiB, limit 7,167.9999 MiB"),
        ("max_vram: 7.5 GB", OVER, "max_vram measured 7.52 GB, limit 7.50 GB"),
        ("max_weights: 6 GiB", WITHIN, "max_weights measured 6.00 GiB, limit 6.00 GiB"),
        ("max_weights: 6 GB", OVER, "max_weights measured 6.44 GB, limit 6.00 GB"),
        (
            "max_ttft: 80 ms",
            WITHIN,
            "max_ttft measured 50.0 ms, limit 80.0 ms, 95 % bounds 40.0 to 80.0 (40.0 to 80.0 in 5 repeats)",
        ),
        (
            "max_ttft: 0.03 s",
            OVER,
            "max_ttft measured 0.05 s, limit 0.03 s, 95 % bounds 0.04 to 0.08 (0.04 to 0.08 in 5 repeats)",
        ),
        ("max_load_time: 2.5 s", WITHIN, "max_load_time measured 2.50 s, limit 2.50 s"),
        ("max_load_time: 2 s", OVER, "max_load_time measured 2.50 s, limit 2.00 s"),
        (
            "min_tokens_per_s: 50",
            WITHIN,
            "min_tokens_per_s measured 100 tokens/s, limit 50.0 tokens/s, 95 % bounds 50.0 to 200 (50.0 to 200 in 5",
        ),
        (
            "min_tokens_per_s: 201",
            OVER,
            "min_tokens_per_s measured 100 tokens/s, limit 201 tokens/s, 95 % bounds 50.0 to 200 (50.0 to 200 in 5",
        ),
        (
            "min_gsm8k: 55",
            WITHIN,
            "min_gsm8k measured 57.9 %, limit 55.0 %, 95 % bounds 55.3 to 60.5 "
            "(579 of 1,000 right, 421 truncated, 421 absent)",
        ),
        (
            "min_gsm8k: 61",
            OVER,
            "min_gsm8k measured 57.9 %, limit 61.0 %, 95 % bounds 55.3 to 60.5 "
            "(579 of 1,000 right, 421 truncated, 421 absent)",
        ),
        (
            "max_vram_ratio: 1",
            WITHIN,
            "max_vram_ratio measured 1.00, limit 1.00 (7.00 GiB against fp16's 7.00 GiB)",
        ),
    ],
)
def test_a_figure_at_the_limit_is_within_and_one_beyond_is_over(
    load: Load, limit: str, outcome: str, words: str
) -> None:
    budget = load(limit)
    found = verdict(budget, measured(budget, "nf4"))
    assert found.outcome == outcome
    assert found.message.startswith(f"nf4: {words}")


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        ("max_weights_ratio: 0.45", WITHIN, "max_weights_ratio measured 0.375, limit 0.45 (6.00 GiB against fp16's 16"),
        ("max_weights_ratio: 0.375", WITHIN, "max_weights_ratio measured 0.375, limit 0.375 (6.00 GiB against fp16's "),
        ("max_weights_ratio: 0.3", OVER, "max_weights_ratio measured 0.375, limit 0.3 (6.00 GiB against fp16's 16.0"),
        ("min_speedup: 1", WITHIN, "min_speedup measured 2.00x, limit 1.00x, 95 % bounds 1.00 to 4.00 (100"),
        ("min_speedup: 4.001", OVER, "min_speedup measured 2x, limit 4.001x, 95 % bounds 1 to 4 ("),
        ("max_ttft_ratio: 0.8", WITHIN, "max_ttft_ratio measured 0.5, limit 0.8, 95 % bounds 0.4 to 0.8 ("),
        ("max_ttft_ratio: 0.39", OVER, "max_ttft_ratio measured 0.5, limit 0.39, 95 % bounds 0.4 to 0.8 ("),
    ],
)  # fmt: skip
def test_ratios_and_speedups_name_both_sides(load: Load, limit: str, outcome: str, words: str) -> None:
    budget = load(limit)
    speed = Speed(budget.workload, (0.1,) * 5, (4.0,) * 5, 16 * GIB, None)
    base = measured(budget, "fp16", weights=16 * GIB, speeds=(speed,))
    found = verdict(budget, measured(budget, "nf4"), base)
    assert found.outcome == outcome
    assert found.message.startswith(f"nf4: {words}")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max_ttft: 10 s", "measured 0.05 s, limit 10.0 s, 95 % bounds 0.04 to 0.08 (0.04 to 0.08 in 5 repeats)"),
        ("max_ttft: 80.0001 ms", "measured 50 ms, limit 80.0001 ms, 95 % bounds 40 to 80 (40 to 80 in 5 repeats)"),
        ("min_tokens_per_s: 199.9", "measured 100.0 tokens/s, limit 199.9 tokens/s, 95 % bounds 50.00 to 200.0 ("),
        ("max_vram_ratio: 0.5", "measured 0.0625, limit 0.5 (0.438 GiB against fp16's 7.00 GiB)"),
        ("max_vram: 0.4 GiB", "measured 0.438 GiB, limit 0.4 GiB"),
    ],
)
def test_limit_value_bounds_and_what_they_are_made_of_are_in_one_unit_and_told_apart(
    load: Load, limit: str, words: str
) -> None:
    budget = load(limit)
    own = measured(budget, "nf4")
    own = replace(own, speeds=(replace(own.speeds[0], peak_allocated=7 * GIB // 16),))
    assert verdict(budget, own).message.partition(": ")[2].partition(" ")[2].startswith(words)


@pytest.mark.parametrize(
    ("limit", "right", "words"),
    [
        ("min_gsm8k: 100", 9999, "measured 99.99 %, limit 100.0 %, 95 % bounds 99.95 to 99.999 (9,999 of 10,000 "),
        ("min_gsm8k: 99.999", 9999, "measured 99.9900 %, limit 99.9990 %, 95 % bounds 99.9526 to 99.9995 ("),
    ],
)
def test_nearly_all_is_not_all(load: Load, limit: str, right: int, words: str) -> None:
    budget = load(limit)
    task = TaskResult(budget.tasks["gsm8k"], answers((right, True), (10000 - right, False)), 1.0)
    assert verdict(budget, measured(budget, "nf4", tasks=(task,))).message.startswith(f"nf4: min_gsm8k {words}")


FLIPPED = "(32 newly wrong, 16 newly right of 1,000)"
BOUNDS = f"95 % bounds 0.5 to 2.8 {FLIPPED}"


def flipped(budget: Budget) -> tuple[Measurement, Measurement]:
    """A baseline and a method of 1,000 answers, of which 32 turned wrong and 16 turned right."""
    task = budget.tasks["gsm8k"]
    before = answers((532, True), (468, False))
    after = answers((500, True), (32, False), (16, True), (452, False))
    return (
        measured(budget, "fp16", tasks=(TaskResult(task, before, 1.0),)),
        measured(budget, "nf4", tasks=(TaskResult(task, after, 1.0),)),
    )


@pytest.mark.parametrize(
    ("limit", "outcome", "words"),
    [
        ("max_gsm8k_drop: 0.4", OVER, f"max_gsm8k_drop measured 1.6 points, limit 0.4, {BOUNDS}"),
        ("max_gsm8k_drop: 2.9", WITHIN, f"max_gsm8k_drop measured 1.6 points, limit 2.9, {BOUNDS}"),
        (
            "max_gsm8k_drop: 2.8",
            WITHIN,
            f"max_gsm8k_drop measured 1.6000 points, limit 2.8000, 95 % bounds 0.4736 to 2.7996 {FLIPPED}",
        ),
        (
            "max_gsm8k_drop: 1.0",
            OVER,
            f"max_gsm8k_drop measured 1.6 points, limit 1.0, {BOUNDS}; undecided: the limit is 0.6 points from the "
            "estimate, and the estimate decides; about 3,600 questions would settle it",
        ),
        (
            "max_gsm8k_drop: 1.6",
            WITHIN,
            f"max_gsm8k_drop measured 1.6 points, limit 1.6, {BOUNDS}; undecided: the estimate is at the limit, and "
            "the estimate decides; no number of questions would settle it",
        ),
        (
            "max_gsm8k_drop: 1.59",
            OVER,
            f"max_gsm8k_drop measured 1.60 points, limit 1.59, 95 % bounds 0.47 to 2.80 {FLIPPED}; undecided: the "
            "limit is 0.01 points from the estimate, and the estimate decides; no number of questions would settle it",
        ),
        (
            "max_gsm8k_flips: 3.6",
            OVER,
            "max_gsm8k_flips measured 4.8 %, limit 3.6 %, 95 % bounds 3.7 to 6.1 (32 newly wrong, 16 newly right of",
        ),
        (
            "max_gsm8k_flips: 6.2",
            WITHIN,
            "max_gsm8k_flips measured 4.8 %, limit 6.2 %, 95 % bounds 3.7 to 6.1 (32 newly wrong, 16 newly right of",
        ),
    ],
)
def test_drops_and_flips_are_paired_question_by_question(load: Load, limit: str, outcome: str, words: str) -> None:
    budget = load(limit)
    before, after = flipped(budget)
    found = verdict(budget, after, before)
    assert found.outcome == outcome
    assert found.message.startswith(f"nf4: {words}")
    assert found.decision == (UNDECIDED if "undecided" in words else outcome)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.measured < found.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("limit", "policy", "outcome", "words"),
    [
        ("max_gsm8k_drop: 2.0", "fail", OVER, "limit 2.0, {} and `undecided: fail` counts that as over; about 8,400 "),
        ("max_gsm8k_drop: 1.2", "pass", WITHIN, "limit 1.2, {} and `undecided: pass` lets that through; about 8,000 "),
        ("max_gsm8k_drop: 2.9", "fail", WITHIN, "limit 2.9, "),
        ("max_gsm8k_drop: 0.4", "pass", OVER, "limit 0.4, "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["file", "method", "task"])
def test_what_the_data_leave_open_is_decided_as_the_budget_says(
    tmp_path: Path, where: str, limit: str, policy: str, outcome: str, words: str
) -> None:
    # What stands nearer to the limit holds: each place is asked with the opposite one step further away.
    said = dict.fromkeys(("file", "method", "task")[: ("file", "method", "task").index(where)], "estimate")
    said[where] = policy
    path = tmp_path / "b.yaml"
    path.write_text(
        f"model: m\nbaseline: fp16\nundecided: {said['file']}\n"
        f"tasks: {{gsm8k: {{questions: 1000, max_truncated: 100, undecided: {said.get('task')}}}}}\n"
        f"methods:\n  fp16: {{}}\n  nf4: {{undecided: {said.get('method')}, budget: {{{limit}}}}}\n".replace(
            ", undecided: None", ""
        ).replace("undecided: None, ", "")
    )
    budget = load_budget(path)
    before, after = flipped(budget)
    found = verdict(budget, after, before)
    assert found.outcome == outcome
    near = f"{BOUNDS}; undecided: the limit is 0.4 points from the estimate,"
    assert f"max_gsm8k_drop measured 1.6 points, {words.format(near)}" in found.message


def test_more_confidence_decides_less(load: Load) -> None:
    budget = load("max_gsm8k_drop: 0.4")
    before, after = flipped(budget)
    assert verdict(budget, after, before).decision == OVER
    path = budget.path
    path.write_text("confidence: 0.999\n" + path.read_text())
    sure = verdict(load_budget(path), after, before)
    assert (sure.decision, sure.outcome, sure.confidence) == (UNDECIDED, OVER, 0.999)
    assert "99.9 % bounds -0.6 to 4.0" in sure.message


def test_a_drop_equal_to_its_limit_is_never_over() -> None:
    over = [b for b in range(1000) if intervals.Paired(1000, b, 0).drop > float(f"{b // 10}.{b % 10}")]
    assert over == []


def test_a_better_method_has_a_negative_drop(load: Load) -> None:
    budget = load("max_gsm8k_drop: 0")
    better = TaskResult(budget.tasks["gsm8k"], answers((600, True), (400, False)), 1.0)
    found = verdict(budget, measured(budget, "nf4", tasks=(better,)))
    assert (found.outcome, found.measured) == (WITHIN, -2.1)


@pytest.mark.parametrize(("before", "after"), [([True], [True, False]), ([], [])])
def test_unequal_or_no_outcomes_cannot_be_paired(before: list[bool], after: list[bool]) -> None:
    with pytest.raises(ValueError, match="outcomes cannot be paired"):
        intervals.pair(before, after)


def test_the_flexible_extraction_counts_where_the_task_says_so(load: Load) -> None:
    budget = load("min_gsm8k: 50")
    task = replace(budget.tasks["gsm8k"], extract="flexible")
    budget = replace(budget, tasks={"gsm8k": task})
    mixed = (Answer(0, "", INVALID, "7", False, True, False, 5), Answer(1, "", "8", "9", True, False, False, 5))
    found = verdict(budget, measured(budget, "nf4", tasks=(TaskResult(task, (*mixed, mixed[0]), 1.0),)))
    assert "2 of 3 right, 0 truncated, 0 absent" in found.message


def test_the_verdict_carries_figure_limit_text_and_unit(load: Load) -> None:
    budget = load("max_vram: 7.5 GB")
    found = verdict(budget, measured(budget, "nf4"))
    assert (found.measured, found.limit, found.limit_text, found.unit) == (7 * GIB, 7.5e9, "7.5 GB", "GB")


def test_a_limit_by_gpu_is_taken_from_the_entry_of_this_gpu(load: Load) -> None:
    budget = load('min_tokens_per_s: {"NVIDIA A100*": 40, "NVIDIA H100*": 120}')
    found = verdict(budget, measured(budget, "nf4"))
    assert (found.outcome, found.limit) == (OVER, 120)


def test_no_limit_for_this_gpu_is_skipped_with_the_figure(load: Load) -> None:
    budget = load('min_tokens_per_s: {"NVIDIA A100*": 40, "NVIDIA L4": 9}')
    found = verdict(budget, measured(budget, "nf4"))
    assert (found.outcome, found.measured, found.limit) == (SKIPPED, 100, None)
    assert found.message == (
        "nf4: min_tokens_per_s has no limit for 'NVIDIA H100 80GB HBM3' (only for 'NVIDIA A100*', 'NVIDIA L4'); "
        "measured 100 tokens/s, 95 % bounds 50.0 to 200 (50.0 to 200 in 5 repeats)"
    )


def test_device_memory_without_a_gpu_is_skipped(load: Load) -> None:
    budget = load("max_vram: 7 GiB")
    found = verdict(budget, measured(budget, "nf4", CPU))
    assert (found.outcome, found.for_want_of_gpu, found.limit_text) == (SKIPPED, True, "7 GiB")
    assert found.message == "nf4: max_vram not measured: no GPU was found: device memory has no peak here"


def test_compiled_decoding_that_failed_costs_the_limits_on_it_and_no_others(load: Load) -> None:
    why = "NotCompiled: the workload says `compile: true`, and torch needs a C++ compiler"
    failed = Failure(COMPILED_WORKLOAD, "error", why, fatal=False)
    eager = load("min_tokens_per_s: 1")
    own = measured(eager, "nf4", failures=(failed,))
    assert verdict(eager, own).outcome == WITHIN
    compiled = replace(eager, workload=replace(eager.workload, compile=True))
    told = verdict(compiled, own)
    assert (told.outcome, told.message) == (FAILED, f"nf4: min_tokens_per_s not measured: {why}")


MISSING = Failure(LOAD, "skip", "nf4 needs bitsandbytes: pip install 'pytest-quantbudget[bitsandbytes]'")
CRASHED = Failure(WORKLOAD, "error", "the process ended with signal 11", "last line of its log", fatal=False)


@pytest.mark.parametrize(
    ("limit", "failure", "outcome", "message"),
    [
        ("max_weights: 6 GiB", MISSING, SKIPPED, f"nf4: max_weights not measured: {MISSING.message}"),
        ("min_gsm8k: 50", MISSING, SKIPPED, f"nf4: min_gsm8k not measured: {MISSING.message}"),
        ("max_ttft: 80 ms", CRASHED, FAILED, "nf4: max_ttft not measured: the process ended with signal 11"),
        ("min_speedup: 0.5", CRASHED, FAILED, "nf4: min_speedup not measured: the process ended with signal 11"),
        ("min_gsm8k: 50", CRASHED, FAILED, "nf4: min_gsm8k not measured: task gsm8k gave no figure"),
    ],
    ids=["missing package", "missing package, task", "failed phase", "failed phase, relation", "no figure"],
)
def test_what_has_no_figure_says_why(load: Load, limit: str, failure: Failure, outcome: str, message: str) -> None:
    budget = load(limit)
    found = verdict(budget, Measurement(budget.method("nf4").subject, failures=(failure,)))
    assert (found.outcome, found.message, found.measured) == (outcome, message, None)


def test_a_failed_phase_leaves_the_others_figures_standing_and_its_log_at_hand(load: Load) -> None:
    budget = load("max_weights: 6 GiB")
    record = measured(budget, "nf4", speeds=(), failures=(CRASHED,))
    assert verdict(budget, record).outcome == WITHIN
    assert verdict(load("max_ttft: 80 ms"), record).detail == "last line of its log"


def test_a_failed_baseline_fails_what_is_taken_against_it_by_name(load: Load) -> None:
    budget = load("max_weights_ratio: 0.5")
    broken = Measurement(budget.method("fp16").subject, failures=(Failure(LOAD, "error", "out of memory"),))
    found = verdict(budget, measured(budget, "nf4"), broken)
    assert found.outcome == FAILED
    assert found.message == "nf4: max_weights_ratio not measured: the baseline fp16: out of memory"


def test_answers_to_different_questions_are_not_compared(load: Load) -> None:
    budget = load("max_gsm8k_drop: 10")
    others = tuple(replace(answer, question=answer.question + 3) for answer in answers((579, True), (421, False)))
    found = verdict(budget, measured(budget, "nf4", tasks=(TaskResult(budget.tasks["gsm8k"], others, 1.0),)))
    assert found.outcome == FAILED
    assert "fp16 and nf4 were asked different questions: 3 of 1,000 differ" in found.message


def test_a_drop_that_the_baseline_does_not_have_is_no_promise(load: Load) -> None:
    budget = load("max_gsm8k_drop: 58")
    found = verdict(budget, measured(budget, "nf4"))
    assert (found.outcome, found.decision) == (FAILED, "")
    assert found.message == (
        "nf4: max_gsm8k_drop cannot fail: fp16 itself answers 57.9 % right, limit 58.0 points (0 newly wrong, 0 newly "
        "right of 1,000)"
    )
    assert verdict(load("max_gsm8k_drop: 57.8"), measured(budget, "nf4")).outcome == WITHIN


def test_bytes_on_disk_are_counted(load: Load) -> None:
    budget = load("max_disk: 3 GiB")
    assert verdict(budget, measured(budget, "nf4", disk=2 * GIB)).outcome == "within"
    told = verdict(budget, measured(budget, "nf4", disk=4 * GIB))
    assert (told.outcome, told.decision) == ("over", "")
    budget = load("max_disk_ratio: 0.3")
    base = measured(budget, "fp16", disk=16 * GIB)
    assert verdict(budget, measured(budget, "nf4", disk=4 * GIB), base).outcome == "within"


def test_a_counted_peak_is_compared_whatever_undecided_says(load: Load) -> None:
    """A warm-up peak of 20 GiB is over 10 GiB, though all repeats are below it."""
    budget = load("max_vram: 10 GiB}, undecided: pass, options: {double_quant: true")
    speed = replace(measured(budget, "nf4").speeds[0], peak_allocated=20 * GIB, peaks=(9 * GIB, 8 * GIB))
    told = verdict(budget, measured(budget, "nf4", speeds=(speed,)))
    assert (told.outcome, told.decision, told.low) == ("over", "", None)
    assert "measured 20.0 GiB, limit 10.0 GiB (8.00 to 9.00 in the 2 repeats)" in told.message
    assert "settle" not in told.message
