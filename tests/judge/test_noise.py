"""Repeat runs of a baseline: how much they differ, which limits that may decide, and that nothing of them is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import IDS, outcomes

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import Agreement, Answer, Divergence, Origin, TaskResult, draft_id
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Device, Failure, Measurement, Perplexity, Speed
from pytest_quantbudget.core.request import LOAD
from pytest_quantbudget.core.verdict import OVER, WITHIN, Verdict
from pytest_quantbudget.judge import noise
from pytest_quantbudget.judge.noise import Noise, TaskNoise
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.report import document, table

BUDGET = """model: m
baseline: fp16
workload: {{new_tokens: 101, repeats: 3}}
tasks: {{math: {{file: q.jsonl, divergence: true}}}}
perplexity: {{file: q.jsonl}}
methods:
  fp16: {{}}
  nf4: {{budget: {{{}}}}}
"""
GIB = 2**30
Load = Callable[[str], Budget]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The budget with one limit on nf4."""
    (tmp_path / "q.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')

    def load(limit: str) -> Budget:
        path = tmp_path / "b.yaml"
        path.write_text(BUDGET.format(limit))
        return load_budget(path)

    return load


def run(budget: Budget, method: str, again: int, seconds: float, wrong: tuple[int, ...] = ()) -> Measurement:
    """A run of a hundred questions, right but for those in `wrong`, whose repeats all took `seconds` each."""
    assert budget.text is not None
    answers = tuple(
        Answer(i, "", "1", "1", i not in wrong, i not in wrong, False, 5, ids=(i, again)) for i in range(100)
    )
    return Measurement(
        replace(budget.method(method).subject, again=again),
        device=Device("NVIDIA L4", "GPU-1", 24 * GIB, "8.9", "13.0", 4),
        load_time_s=2 * seconds,
        weights=6 * GIB,
        loaded=Origin("2026-01-01T00:00:00Z"),
        speeds=(Speed(budget.workload, (0.1 * seconds,) * 3, (seconds,) * 3, int(7 * GIB * seconds), None),),
        tasks=(TaskResult(budget.tasks["math"], answers, 1.0),),
        perplexities=(Perplexity(budget.text, 200.0 * seconds, 100),),
    )


def compared(own: Measurement, first: Measurement, agreed: int, kl: float) -> Measurement:
    """A run with what it thinks of the first one's thousand tokens; their likeliest tokens agree as often."""
    (before,), (task,) = first.tasks, own.tasks
    agreement = Agreement(draft_id(before) or "", 1000, agreed, -400.0 - (1000 - agreed), -400.0)
    return replace(own, tasks=(replace(task, agreement=agreement, divergence=Divergence(1000, agreed, kl, kl, kl)),))


def runs(budget: Budget) -> list[Measurement]:
    """The baseline with 100 tokens/s, and repeat runs with 80 and 110, with one question lost and with two won."""
    first = run(budget, "fp16", 0, 1.0, wrong=(1, 2, 3))
    slow, fast = run(budget, "fp16", 1, 1.25, wrong=(1, 2, 3, 4)), run(budget, "fp16", 2, 1 / 1.1, wrong=(1,))
    return [first, compared(slow, first, 999, 1e-4), compared(fast, first, 998, 2e-4)]


def verdict(budget: Budget) -> Verdict:
    """Of nf4: 62.5 tokens/s, six more questions wrong, 980 of 1,000 tokens agreed on."""
    method, equal = budget.method("nf4"), runs(budget)
    own = compared(run(budget, "nf4", 0, 1.6, wrong=tuple(range(9))), equal[0], 980, 2e-2)
    return judge(budget, method, method.limits[0], {"nf4": own, "fp16": equal[0]}, noise.of(budget, equal))


BY_A_FACTOR = "repeat runs differ by 0.727x to 1.375x"  # 80 against 110
OF_PPL = "repeat runs differ by 0.506x to 1.977x"  # the exponential of 0.682


@pytest.mark.parametrize(
    ("limit", "said", "inside"),
    [
        ("min_tokens_per_s: 46", BY_A_FACTOR, True),
        ("min_tokens_per_s: 45", BY_A_FACTOR, False),
        ("min_tokens_per_s: 85", BY_A_FACTOR, True),
        ("min_tokens_per_s: 87", BY_A_FACTOR, False),
        ("max_ttft: 219 ms", BY_A_FACTOR, True),
        ("max_ttft: 221 ms", BY_A_FACTOR, False),
        ("max_load_time: 2.35 s", BY_A_FACTOR, True),
        ("max_load_time: 2.3 s", BY_A_FACTOR, False),
        ("max_vram: 15.3 GiB", BY_A_FACTOR, True),
        ("max_vram: 15.5 GiB", BY_A_FACTOR, False),
        # The ratio is 0.625, 1.6 for times and sizes.
        ("min_speedup: 0.46", BY_A_FACTOR, True),
        ("min_speedup: 0.45", BY_A_FACTOR, False),
        ("min_speedup: 0.9", BY_A_FACTOR, True),  # a repeat run may break it
        ("min_speedup: 1.4", BY_A_FACTOR, False),
        ("max_ttft_ratio: 2.19", BY_A_FACTOR, True),
        ("max_ttft_ratio: 2.21", BY_A_FACTOR, False),
        ("max_vram_ratio: 1.0", BY_A_FACTOR, True),
        ("max_vram_ratio: 0.7", BY_A_FACTOR, False),
        ("max_ppl_ratio: 1.9", OF_PPL, True),
        ("max_ppl_ratio: 10", OF_PPL, False),
        ("max_weights: 6 GiB", "", False),
        # 96, 97 and 99 right, 1 and 2 flips; the drop is 6 points.
        ("max_math_drop: 3", "repeat runs differ by 3.0 points", True),
        ("max_math_drop: 2.9", "repeat runs differ by 3.0 points", True),
        ("max_math_drop: 9", "repeat runs differ by 3.0 points", True),
        ("max_math_drop: 9.1", "repeat runs differ by 3.0 points", False),
        ("min_math: 88.1", "repeat runs differ by 3.0 points", True),
        ("min_math: 87.9", "repeat runs differ by 3.0 points", False),
        ("max_math_flips: 2", "repeat runs flip up to 2 of 100 answers", True),
        ("max_math_flips: 3", "repeat runs flip up to 2 of 100 answers", False),
        ("min_token_agreement: 99.8", "repeat runs have 99.80 to 99.90 %", True),
        ("min_token_agreement: 99.5", "repeat runs have 99.80 to 99.90 %", False),
        ("max_answer_ppl_ratio: 1.002", "repeat runs have 1.001 to 1.002", True),
        ("max_answer_ppl_ratio: 1.01", "repeat runs have 1.001 to 1.002", False),
        ("max_kl: 0.0002", "repeat runs have 0.0001 to 0.0002 nats", True),
        ("max_kl: 0.01", "repeat runs have 0.0001 to 0.0002 nats", False),
        ("min_top1_agreement: 98.1", "repeat runs have 99.80 to 99.90 %", True),
        ("min_top1_agreement: 97", "repeat runs have 99.80 to 99.90 %", False),
    ],
)
def test_a_limit_is_inside_the_noise_or_outside(load: Load, limit: str, said: str, inside: bool) -> None:
    found = verdict(load(limit))
    assert (found.noise, found.inside_noise) == (said, inside)
    assert found.message.endswith(f"; inside the noise: {said}") == inside


def test_a_failure_says_what_equal_runs_show_and_its_outcome_stays(load: Load) -> None:
    outside = verdict(load("min_tokens_per_s: 90"))
    assert outside.outcome == OVER
    assert outside.message.endswith(f"; {BY_A_FACTOR}")
    assert verdict(load("min_tokens_per_s: 60")).outcome == WITHIN
    budget = load("min_tokens_per_s: 90")
    method = budget.method("nf4")
    plain = judge(budget, method, method.limits[0], {"nf4": run(budget, "nf4", 0, 1.6)})
    assert (plain.outcome, plain.noise) == (OVER, "")


def test_runs_without_a_difference_put_no_limit_inside(load: Load) -> None:
    budget = load("max_math_drop: 0")
    first = run(budget, "fp16", 0, 1.0)
    found = noise.of(budget, [first, replace(first, subject=replace(first.subject, again=1))])
    kinds = {limit.kind.name: limit.kind for limit in budget.method("nf4").limits}
    assert not found.inside(kinds["max_math_drop"], 0.0, 0.0)
    assert noise.line(found) == (
        "noise floor of fp16, 1 repeat run: VRAM 1.000x to 1.000x, tokens/s 1.000x to 1.000x, first token 1.000x to "
        "1.000x, load time 1.000x to 1.000x, ppl 1.000x to 1.000x, math flips none of 100"
    )


def test_the_record_has_each_runs_values_and_counts(load: Load) -> None:
    budget = load("max_weights: 6 GiB")
    found = noise.of(budget, runs(budget))
    assert (found.method, found.runs, found.notes) == ("fp16", 2, ())
    assert found.values["tokens_per_s"] == pytest.approx((100, 80, 110))
    assert found.values["ttft"] == pytest.approx((0.1, 0.125, 0.1 / 1.1))
    assert found.values["agreement"] == (99.9, 99.8)
    assert found.tasks == (TaskNoise("math", 100, (1, 0), (0, 2)),)
    assert codec.from_builtins(Noise, codec.to_builtins(found)) == found
    assert "math flips up to 2 of 100, 3.0 points apart, token agreement 99.80 to 99.90 %" in noise.line(found)


def test_without_equal_runs_there_is_no_noise_and_a_line_says_why(load: Load) -> None:
    budget = load("max_weights: 6 GiB")
    first, slow, _ = runs(budget)
    broken = replace(first, failures=(Failure(LOAD, "error", "out of memory: CUDA"),))
    lost = Measurement(slow.subject, failures=(Failure(LOAD, "error", "was killed by SIGKILL"),))
    said = {
        "the baseline fp16 was not measured": noise.of(budget, []),
        "the baseline fp16: out of memory: CUDA": noise.of(budget, [broken]),
        "no repeat run of fp16 was made": noise.of(budget, [first]),
        "the budget names no baseline": noise.of(replace(budget, baseline=None), []),
    }
    for why, found in said.items():
        assert (found.runs, found.notes, noise.line(found)) == (0, (f"no noise floor: {why}",), "")
        assert found.words(budget.method("nf4").limits[0].kind) == ""
    found = noise.of(budget, [first, slow, replace(lost, subject=replace(lost.subject, again=2))])
    assert (found.runs, found.notes) == (1, ("fp16 again 2: was killed by SIGKILL",))


@pytest.mark.parametrize(
    "odd",
    [
        {"values": {"ttft": [0.0, 1.0]}},
        {"values": {"ttft": []}},
        {"values": {"colour": [1.0, 2.0]}},
        {"tasks": [{"task": "math", "n": 0, "b": [0], "c": [0]}]},
        {"tasks": [{"task": "math", "n": 10, "b": [6], "c": [5]}]},
        {"tasks": [{"task": "math", "n": 10, "b": [1, 1], "c": [1]}]},
    ],
)
def test_a_record_that_no_run_can_leave_is_refused(odd: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"need|must"):
        codec.from_builtins(Noise, {"method": "fp16", "runs": 1, **odd})


COUNTING = """
import time

from pytest_quantbudget.measure import process

original = process.run

def counted(*args, name, until, **more):
    with open("started.txt", "a") as file:
        file.write(name.removeprefix("quantbudget-") + "\\n")
    until = time.monotonic() if name.endswith("again 2") else until
    return original(*args, name=name, until=until, **more)

process.run = counted

def pytest_unconfigure():
    process.run = original
"""


@pytest.mark.model
@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_a_baseline_is_measured_again_and_nothing_of_that_is_kept(
    pytester: pytest.Pytester, small: Path, workers: tuple[str, ...]
) -> None:
    small.write_text(small.read_text().replace("{max_weights_ratio: 0.51", "{max_weights_ratio: 0.51, min_speedup: 99"))
    pytester.makeconftest(COUNTING)
    args = ("--quant-budget", "small.yaml", "--quant-report", "r.json", "--quant-cache", "kept", *workers)
    result = (pytester.runpytest_subprocess if workers else pytester.runpytest)(*args, "--quant-noise", "2")
    result.assert_outcomes(passed=5, failed=1)
    started = Path("started.txt").read_text().splitlines()
    assert sorted(started) == ["bf16", "fp32", "fp32 again 1", "fp32 again 2"]

    report = document.read(Path("r.json"))
    (budget,) = report.budgets
    fp32, bf16 = (method.measurement for method in budget.methods)
    found = budget.noise
    assert found is not None
    assert fp32 is not None
    assert bf16 is not None
    assert (found.method, found.runs) == ("fp32", 1)
    assert {name: len(values) for name, values in found.values.items()} == {
        "tokens_per_s": 2,
        "ttft": 2,
        "load_time": 2,
        "agreement": 1,
        "answer_ppl": 1,
    }
    assert found.values["ttft"][0] == fp32.speeds[0].median_ttft_s
    assert len(set(found.values["ttft"])) == 2, "measured, not recalled"
    assert [(task.n, len(task.b), len(task.c)) for task in found.tasks] == [(12, 1, 1)]
    assert any(note.startswith("fp32 again 2: not finished within its timeout") for note in found.notes)
    # The store has what the first run gave, and the answers file only the runs that are judged.
    (kept,) = Path("kept/results").glob("fp32-*/workload-*.entry")
    stored = json.loads(kept.read_bytes().partition(b"\n")[2])["payload"]["speeds"][0]
    assert tuple(stored["ttft_s"]) == fp32.speeds[0].ttft_s
    subjects = [json.loads(line)["subject"] for line in Path("r.answers.jsonl").read_text().splitlines()]
    assert subjects == [fp32.subject.key] * 12 + [bf16.subject.key] * 12

    verdicts = {limit.name: limit.verdict for method in budget.methods for limit in method.limits}
    assert outcomes(Path("r.json")).items() >= dict.fromkeys(IDS, WITHIN).items()
    assert verdicts["max_wordmath_flips"].noise == "repeat runs flip none of 12 answers"
    assert verdicts["min_speedup"].noise.startswith("repeat runs differ by 0.")
    assert verdicts["min_speedup"].noise in verdicts["min_speedup"].message
    result.stdout.fnmatch_lines(
        [
            "on cpu, *",
            "noise floor of fp32, 1 repeat run: tokens/s 0.*x to *x, first token 0.*x to *x, load time 0.*x to *x, "
            "wordmath flips none of 12, token agreement 100.00 %*",
            "note: fp32 again 2: not finished within its timeout*",
        ]
    )
    yellow = replace(budget.methods[1].limits[0], verdict=replace(verdicts["min_speedup"], inside_noise=True))
    shown = replace(report, budgets=(replace(budget, methods=(replace(budget.methods[1], limits=(yellow,)),)),))
    lines = [line for line in table.lines(shown) if line.text.startswith("bf16: max_weights_ratio is inside")]
    assert [line.markup for line in lines] == [{"yellow": True}]


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "often", ""])
def test_equal_runs_are_counted_in_whole_numbers(pytester: pytest.Pytester, text: str) -> None:
    result = pytester.runpytest(f"--quant-noise={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --quant-noise must be a whole number of at least 1, such as 3, not '{text}'"])
