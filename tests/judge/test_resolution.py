"""What a budget can tell with its questions is said before anything is loaded."""

import re
from pathlib import Path

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.judge import resolution
from pytest_quantbudget.judge.resolution import FlipRate, FlipRates
from pytest_quantbudget.measure import flip_rates

BUDGET = """model: Qwen/Qwen3-8B
baseline: fp16
tasks:
  gsm8k: {questions: 200}
methods:
  fp16: {}
  nf4:
    budget:
      max_gsm8k_drop: 2.0
"""


def load(tmp_path: Path, text: str = BUDGET) -> Budget:
    path = tmp_path / "b.yaml"
    path.write_text(text)
    return load_budget(path)


def said(budget: Budget, known: FlipRates = resolution.NONE_KNOWN) -> list[str]:
    return [problem.message for problem in resolution.doubts(budget, known)]


def test_a_limit_that_its_questions_cannot_tell_from_nothing_is_named_with_what_would_do(tmp_path: Path) -> None:
    (problem,) = resolution.doubts(load(tmp_path))
    assert str(problem).endswith("\n    max_gsm8k_drop: 2.0")
    assert problem.line == 9
    assert problem.message == (
        "nf4: max_gsm8k_drop: with 200 questions, 21 % of methods that lose half of 2.0 points fail, and 13 % of those "
        "that lose twice as much pass; 2,822 questions keep that to 1 % and 5 %, and so does a limit of 7.5 points "
        "with these; 748 tell it from no drop (at 5.0 % flips, assumed)"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("questions: 200", "questions: 780"),
        ("drop: 2.0", "drop: 7.0"),
        ("questions: 200", "questions: {start: 50, max: 60}"),
        ("model: Q", "undecided: fail\nconfidence: 0.7\nmodel: Q"),
    ],
)
def test_the_numbers_that_are_named_suffice(tmp_path: Path, old: str, new: str) -> None:
    text = BUDGET.replace(old, new)
    (message,) = said(load(tmp_path, text))
    found = re.search(r"; ([\d,]+) questions keep that to 1 % and 5 %, and so does a limit of ([\d.]+) points", message)
    assert found is not None
    questions, limit = int(found[1].replace(",", "")), found[2]
    assert said(load(tmp_path, re.sub(r"max_gsm8k_drop: [\d.]+", f"max_gsm8k_drop: {limit}", text))) == []
    more = re.sub(r"(questions|max): \d+", rf"\g<1>: {questions}", text)
    if questions <= 1319:
        assert said(load(tmp_path, more)) == []
    assert said(load(tmp_path, re.sub(r"(questions|max): \d+", rf"\g<1>: {questions // 2}", text))) != []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("questions: 200", "questions: 2900"),
        ("questions: 200", "questions: {start: 50, max: 3100}"),
        ("drop: 2.0", "drop: 8.0"),
        ("drop: 2.0", "flips: 2.0"),
        ("drop: 2.0", "drop: auto"),
        ("questions: 200", "questions: 700, expected_flips: 1"),
    ],
)
def test_what_can_be_decided_is_not_doubted(tmp_path: Path, old: str, new: str) -> None:
    assert said(load(tmp_path, BUDGET.replace(old, new))) == []


def test_questions_of_a_file_are_counted(tmp_path: Path) -> None:
    text = BUDGET.replace("model: Qwen/Qwen3-8B", "model: builtin").replace("{questions: 200}", "{file: builtin}")
    assert said(load(tmp_path, text.replace("drop: 2.0", "drop: 1.2")))[0].startswith(
        "nf4: max_gsm8k_drop: with 2,000 questions, 11 % of methods that lose half of 1.2 points fail"
    )


def test_no_number_of_questions_tells_a_limit_of_nothing(tmp_path: Path) -> None:
    assert said(load(tmp_path, BUDGET.replace("drop: 2.0", "drop: 0"))) == [
        "nf4: max_gsm8k_drop: no number of questions tells 0.0 points from more (at 5.0 % flips, assumed)"
    ]


def test_the_smallest_of_several_values_is_the_one_to_tell(tmp_path: Path) -> None:
    budget = load(tmp_path, BUDGET.replace("drop: 2.0", 'drop: {"NVIDIA L4": 5.0, "*": 3.0}'))
    assert "half of 3.0 points fail" in said(budget)[0]


def answered(budget: Budget, method: str, wrong: int, n: int = 100) -> Measurement:
    answers = tuple(Answer(i, "", "1", "1", i >= wrong, i >= wrong, False, 5) for i in range(n))
    return Measurement(budget.method(method).subject, tasks=(TaskResult(budget.tasks["gsm8k"], answers, 1.0),))


def test_the_rate_of_flips_is_the_one_last_measured(tmp_path: Path) -> None:
    budget = load(tmp_path)
    measured = {
        budget.method(name).subject.key: answered(budget, name, wrong) for name, wrong in (("fp16", 3), ("nf4", 9))
    }
    cache = tmp_path / "cache"
    flip_rates.remember(cache, [budget], measured)
    known = flip_rates.remembered(cache)
    (rate,) = known.rates.values()
    assert rate.percent == pytest.approx(11.5, abs=0.05)  # of 6 in 100, the upper bound at 95 % (Clopper and Pearson)
    assert f"at 11.5 % flips, as measured {rate.at}" in said(budget, known)[0]
    other = load(tmp_path, BUDGET.replace("nf4:\n", "nf4:\n    options: {double_quant: false}\n"))
    assert "assumed" in said(other, known)[0]
    certain = load(tmp_path, BUDGET.replace("questions: 200", "questions: 200, expected_flips: 8"))
    assert "at 8.0 % flips, `expected_flips`" in said(certain, known)[0]


def test_too_few_questions_are_not_remembered_and_a_damaged_memory_is_none(tmp_path: Path) -> None:
    budget = load(tmp_path)
    few = {budget.method(name).subject.key: answered(budget, name, 3, 40) for name in ("fp16", "nf4")}
    flip_rates.remember(tmp_path, [budget], few)
    assert flip_rates.remembered(tmp_path) == resolution.NONE_KNOWN
    (tmp_path / "flips.json").write_text("{")
    assert flip_rates.remembered(tmp_path) == resolution.NONE_KNOWN
    many = {budget.method(name).subject.key: answered(budget, name, 3) for name in ("fp16", "nf4")}
    flip_rates.remember(tmp_path, [budget], many)
    assert [type(rate) for rate in flip_rates.remembered(tmp_path).rates.values()] == [FlipRate]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_strict_ends_the_run_before_anything_is_loaded(
    pytester: pytest.Pytester, small: Path, workers: tuple[str, ...]
) -> None:
    small.write_text(small.read_text().replace("max_wordmath_drop: 60", "max_wordmath_drop: 2"))
    result = pytester.runpytest_subprocess("--quant-budget", small.name, "--quant-strict", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: small.yaml:12: bf16: max_wordmath_drop: with 12 questions, *",
            "    budget:*",
        ]
    )


TIMED = """model: m
baseline: fp32
undecided: {}
confidence: {}
workload: {{repeats: {}}}
tasks: {{gsm8k: {{questions: {}}}}}
methods:
  fp32: {{}}
  nf4: {{budget: {{{}}}}}
"""


@pytest.mark.parametrize(
    ("undecided", "confidence", "repeats", "questions", "limit", "words"),
    [
        ("pass", 0.95, 4, 100, "min_tokens_per_s: 1000000000", "nf4: min_tokens_per_s cannot fail: 4 repeats give no"),
        ("fail", 0.95, 3, 100, "max_ttft: 10 s", "nf4: max_ttft cannot pass: 3 repeats give no bound at 95 % (5 do)"),
        ("fail", 0.999, 5, 100, "max_ttft: 10 s", "cannot pass: 5 repeats give no bound at 99.9 % (10 do)"),
        ("fail", 0.95, 2, 100, "min_speedup: 1", "nf4: min_speedup cannot pass: 2 repeats give no bound at 95 % (3"),
        ("pass", 0.95, 5, 60, "min_gsm8k: 4", "cannot fail: with 60 questions, even the worst outcome has 95 % bounds"),
        ("fail", 0.95, 5, 60, "min_gsm8k: 96", "cannot pass: with 60 questions, even the best outcome has 95 % bounds"),
        ("fail", 0.95, 5, 60, "max_gsm8k_flips: 4", "nf4: max_gsm8k_flips cannot pass: with 60 questions"),
        ("fail", 0.95, 5, 60, "max_gsm8k_drop: 4", "nf4: max_gsm8k_drop cannot pass: with 60 questions"),
        ("pass", 0.95, 5, 10, "min_token_agreement: 20", "nf4: min_token_agreement cannot fail: with 10 answers"),
        ("fail", 0.95, 5, 60, "max_ttft: {L4: 10 s, '*': 9 s}, min_gsm8k: 99", "nf4: min_gsm8k cannot pass"),
    ],
)
def test_a_limit_with_one_outcome_is_refused(
    tmp_path: Path, undecided: str, confidence: float, repeats: int, questions: int, limit: str, words: str
) -> None:
    with pytest.raises(BudgetError) as caught:
        load(tmp_path, TIMED.format(undecided, confidence, repeats, questions, limit))
    (problem,) = caught.value.problems
    assert words in problem.message


@pytest.mark.parametrize(
    ("undecided", "repeats", "limit"),
    [
        ("estimate", 1, "min_tokens_per_s: 10"),
        ("pass", 5, "min_tokens_per_s: 10"),
        ("fail", 5, "max_ttft: 1 s"),
        ("fail", 3, "min_speedup: 0.5, max_load_time: 60 s"),
        ("fail", 2, "max_weights: 1 GiB, max_vram: 2 GiB"),
        ("fail", 3, "max_ttft: auto"),
    ],
)
def test_a_limit_with_two_outcomes_is_not(tmp_path: Path, undecided: str, repeats: int, limit: str) -> None:
    load(tmp_path, TIMED.format(undecided, 0.95, repeats, 1000, limit))
