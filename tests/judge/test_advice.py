"""Advice from hand-made measurements: who meets every limit, who is dominated, and what fits which use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import answers
from judged import CPU, GIB, H100, measured

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Failure, Measurement, Perplexity, Speed
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge.advice import Advice, Limits, Standing, advise, on_use
from pytest_quantbudget.judge.noise import Noise

TEXT = """
model: m
baseline: fp16
use: [production, edge, development, qlora]
tasks: {gsm8k: {questions: 1000, max_truncated: 100}}
methods:
  fp16: {budget: {max_vram: 20 GiB}}
  int8: {budget: {max_vram: 20 GiB}}
  nf4: {budget: {max_vram: 20 GiB}}
  awq-int4: {checkpoint: org/awq, budget: {max_vram: 20 GiB}}
"""
STEADY = (0.98, 0.99, 1.0, 1.01, 1.02)
# Peak in GiB, seconds a token relative to fp16, and how many of 600 right answers were lost.
FIGURES: Mapping[str, tuple[float, float, int]] = {
    "fp16": (16, 1.0, 0),
    "int8": (9, 3.0, 0),
    "nf4": (7, 1.5, 40),
    "awq-int4": (7, 0.5, 10),
}


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    return read(tmp_path)


def read(folder: Path, old: str = "", new: str = "") -> Budget:
    assert old in TEXT
    (folder / "b.yaml").write_text(TEXT.replace(old, new) if old else TEXT)
    return load_budget(folder / "b.yaml")


def record(
    budget: Budget, name: str, figures: tuple[float, float, int], times: Sequence[float] = STEADY, **more: object
) -> Measurement:
    peak, slow, lost = figures
    seconds = tuple(slow * each for each in times)
    speed = Speed(budget.workload, seconds, seconds, int(peak * GIB), None)
    told = answers((600 - lost, True), (400 + lost, False))
    own = measured(budget, name, H100, speeds=(speed,), weights=int(peak * GIB / 2))
    own = replace(own, tasks=(TaskResult(budget.tasks["gsm8k"], told, 1.0),))
    return replace(own, **more)  # type: ignore[arg-type]


def run(budget: Budget, **figures: tuple[float, float, int]) -> dict[str, Measurement]:
    return {name: record(budget, name, figures.get(name.partition("-")[0], found)) for name, found in FIGURES.items()}


def judged(budget: Budget, **outcomes: Verdict) -> Limits:
    """All limits within, but for those of the methods that are named."""
    within = Verdict(WITHIN, "", measured=1.0)
    return {
        method.name: [
            LimitReport(f"b.yaml::{method.name}::{limit.name}", limit.name, 1, outcomes.get(method.name, within))
            for limit in method.limits
        ]
        for method in budget.methods
    }


def given(budget: Budget, measured: Mapping[str, Measurement], limits: Limits | None = None, **more: Noise) -> Advice:
    found = advise(budget, judged(budget) if limits is None else limits, measured, **more)
    assert found is not None
    return found


def standing(found: Advice, name: str) -> Standing:
    return next(each for each in found.methods if each.method == name)


def places(found: Advice) -> dict[str, tuple[str, str | None]]:
    return {each.method: (each.place, each.by) for each in found.methods}


def test_what_is_better_in_one_way_and_worse_in_none_dominates(budget: Budget) -> None:
    found = given(budget, run(budget))
    assert found.axes == ("GPU memory", "tokens/s", "gsm8k")
    assert places(found) == {
        "fp16": ("front", None),  # more answers right than awq-int4, beyond chance
        "int8": ("front", None),
        "nf4": ("dominated", "awq-int4"),
        "awq-int4": ("front", None),
    }
    because = standing(found, "nf4").because
    assert because == (
        "faster (254 tokens/s, 84.7 tokens/s), better answers (gsm8k 59.0 %, gsm8k 56.0 %), "
        "no difference told in GPU memory"
    )


def test_a_difference_within_bounds_is_none(budget: Budget) -> None:
    # Two of 600 answers may be chance, and 1 % of the time lies within the repeats.
    found = given(budget, run(budget, fp16=(16, 1.01, 0), awq=(7, 1.0, 2), int8=(9, 1.0, 0)))
    assert places(found)["fp16"] == ("dominated", "awq-int4")
    assert "no difference told in tokens/s and gsm8k" in standing(found, "fp16").because
    # Repeat runs that differ by more than methods do tell none of them apart.
    spread = Noise("fp16", 1, {"tokens_per_s": (100.0, 400.0)})
    figures = run(budget, int8=(7, 1.0, 10), awq=(7, 0.5, 10))
    assert places(given(budget, figures))["int8"] == ("dominated", "awq-int4")
    assert places(given(budget, figures, noise=spread))["int8"] == ("front", None)
    figures = run(budget, fp16=(7, 0.5, 10), int8=(7, 1.0, 10), nf4=(7, 1.0, 10))
    assert places(given(budget, figures))["int8"] == ("dominated", "fp16")
    assert places(given(budget, figures, noise=spread))["int8"] == ("front", None)


def test_two_repeats_tell_no_speeds_apart(budget: Budget) -> None:
    figures = {name: record(budget, name, found, (0.99, 1.01)) for name, found in FIGURES.items()}
    assert "no difference told" not in standing(given(budget, run(budget)), "fp16").because
    assert places(given(budget, figures))["int8"] == ("front", None)
    assert "within bounds" in given(budget, figures).fit("production").why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda own: replace(own, speeds=()), "no tokens/s was measured"),
        (lambda own: replace(own, tasks=()), "no answers to gsm8k"),
        (lambda own: replace(own, device=CPU), "measured on cpu, and the others on NVIDIA H100 80GB HBM3"),
        (
            lambda own: replace(
                own, tasks=(), failures=(Failure("task gsm8k", "error", "out of memory", fatal=False),)
            ),
            "out of memory",
        ),
    ],
)
def test_a_method_without_a_figure_is_unknown_and_not_bad(
    budget: Budget, change: Callable[[Measurement], Measurement], why: str
) -> None:
    figures = run(budget)
    found = given(budget, {**figures, "nf4": change(figures["nf4"])})
    assert places(found)["nf4"] == ("unknown", None)
    assert standing(found, "nf4").because == why
    # What nothing is known of dominates nothing either.
    figures = run(budget, nf4=(1, 0.1, 0))
    assert places(given(budget, figures))["fp16"] == ("dominated", "nf4")
    assert places(given(budget, {**figures, "nf4": change(figures["nf4"])}))["fp16"] == ("front", None)
    gone = given(budget, {name: own for name, own in figures.items() if name != "nf4"})
    assert (standing(gone, "nf4").place, standing(gone, "nf4").because) == ("unknown", "it was not measured")


def test_what_no_method_has_is_no_axis(budget: Budget) -> None:
    figures = {name: replace(own, speeds=(), tasks=()) for name, own in run(budget).items()}
    found = given(budget, figures)
    assert found.axes == ("weights",)
    assert places(found)["fp16"] == ("dominated", "nf4")
    nothing = {name: replace(own, weights=None) for name, own in figures.items()}
    found = given(budget, nothing)
    assert {each.place for each in found.methods} == {"unknown"}
    assert found.fit("production").why == "the first of 4 that meet all their limits: nothing tells them apart"


def test_methods_that_dominate_each_other_in_a_circle_all_stay(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_quantbudget.judge import advice

    circle = {("fp16", "int8"), ("int8", "nf4"), ("nf4", "fp16"), ("nf4", "awq-int4")}
    monkeypatch.setattr(advice, "_dominates", lambda found, one, other: (one, other) in circle)
    assert places(given(budget, run(budget))) == {
        "fp16": ("front", None),
        "int8": ("front", None),
        "nf4": ("front", None),
        "awq-int4": ("dominated", "nf4"),
    }


NO_GPU = Verdict(SKIPPED, "nf4: max_vram not measured: no GPU was found", for_want_of_gpu=True)


def test_who_meets_every_limit(budget: Budget) -> None:
    within = Verdict(WITHIN, "", measured=1.0, decision=UNDECIDED)
    limits = judged(budget, fp16=Verdict(OVER, "fp16: max_vram measured"), nf4=NO_GPU, int8=within)
    found = given(budget, run(budget), limits)
    told = {each.method: (each.limits, each.why) for each in found.methods}
    assert told == {
        "fp16": ("misses", "max_vram"),
        "int8": ("meets", "max_vram undecided"),
        "nf4": ("unknown", "max_vram skipped: not measured: no GPU was found"),
        "awq-int4": ("meets", ""),
    }
    assert standing(given(budget, run(budget), {}), "nf4").why == "1 of 1 limits were not selected"


def test_a_method_without_limits_promises_nothing(tmp_path: Path) -> None:
    budget = read(tmp_path, "fp16: {budget: {max_vram: 20 GiB}}", "fp16: {}")
    found = given(budget, run(budget, fp16=(1, 0.1, 0)))
    assert (standing(found, "fp16").limits, standing(found, "fp16").why) == ("unknown", "it has no limits")
    assert "fp16" not in [fit.method for fit in found.fits]


def test_each_use_takes_what_its_rule_says(budget: Budget) -> None:
    found = given(budget, run(budget))
    assert {fit.use: fit.method for fit in found.fits} == {
        "production": "awq-int4",
        "edge": "awq-int4",
        "development": "nf4",
        "qlora": "nf4",
    }
    assert found.fit("production").why == "the fastest of the 4 that meet all their limits (254 tokens/s)"
    assert found.fit("edge").why == (
        "the least memory of the 4 that meet all their limits (nf4: 7.00 GiB), 1 more within bounds; "
        "the fastest of these (254 tokens/s)"
    )
    assert found.fit("qlora").why == (
        "the least memory of the 2 that meet all their limits and can carry an adapter in training (7.00 GiB)"
    )
    limits = judged(budget, nf4=Verdict(OVER, ""), int8=Verdict(OVER, ""))
    found = given(budget, run(budget), limits)
    assert (found.fit("qlora").method, found.fit("development").method) == (None, "fp16")
    only = "the only one that meets all its limits and needs no file made beforehand"
    assert found.fit("development").why == only
    assert (
        found.fit("qlora").why
        == "none of those that are known to meet all their limits can carry an adapter in training"
    )


def test_a_figure_that_is_missing_is_said_where_a_method_is_taken(budget: Budget) -> None:
    figures = run(budget)
    gone = replace(figures["awq-int4"], speeds=())
    found = given(budget, {**figures, "awq-int4": gone})
    assert found.fit("production").method == "fp16"
    assert found.fit("production").why == (
        "the fastest of the 4 that meet all their limits (127 tokens/s), awq-int4 is unknown"
    )
    # What only one of four has compares nothing.
    others = {name: replace(own, speeds=()) for name, own in figures.items() if name != "nf4"}
    found = given(budget, {**figures, **others})
    assert (found.axes, found.without) == (("weights", "gsm8k"), ("tokens/s of 1 of 4 methods",))
    assert places(found)["nf4"] == ("dominated", "awq-int4")
    assert found.fit("production").why.startswith("the least memory of the 4")


@pytest.mark.parametrize(
    ("outcomes", "outcome", "words"),
    [
        ({}, WITHIN, "use: production: awq-int4, the fastest of the 4"),
        ({"fp16": OVER, "int8": OVER, "nf4": FAILED, "awq-int4": OVER}, OVER, "fp16 misses max_vram; int8 misses"),
        (dict.fromkeys(FIGURES, FAILED), FAILED, "nf4 is unknown (max_vram failed"),
        ({"fp16": OVER, "int8": OVER, "nf4": SKIPPED, "awq-int4": OVER}, SKIPPED, "nf4 is unknown (max_vram skipped"),
        ({"fp16": OVER, "int8": OVER, "nf4": WITHIN, "awq-int4": OVER}, WITHIN, "nf4, the only one that meets all"),
    ],
)  # fmt: skip
def test_a_use_fails_if_no_method_meets_all_its_limits(
    budget: Budget, outcomes: Mapping[str, str], outcome: str, words: str
) -> None:
    verdicts = {name: Verdict(each, f"{name}: max_vram broke", for_want_of_gpu=True) for name, each in outcomes.items()}
    limits = judged(budget, **verdicts)
    verdict = on_use("production", budget, limits, given(budget, run(budget), limits))
    assert verdict.outcome == outcome
    assert words in verdict.message
    assert verdict.for_want_of_gpu == (outcome == SKIPPED)


def test_qlora_asks_for_a_method_that_can_be_trained_on(budget: Budget) -> None:
    limits = judged(budget, nf4=Verdict(OVER, ""), int8=Verdict(OVER, ""))
    verdict = on_use("qlora", budget, limits, given(budget, run(budget), limits))
    assert (verdict.outcome, "int8 misses max_vram; nf4 misses max_vram" in verdict.message) == (OVER, True)
    assert "fp16" not in verdict.message


def test_one_method_needs_no_advice_unless_a_use_asks_for_it(tmp_path: Path) -> None:
    budget = read(tmp_path)
    alone = {"fp16": run(budget)["fp16"]}
    assert advise(budget, judged(budget), alone) is not None
    assert advise(read(tmp_path, "use: [production, edge, development, qlora]\n", ""), judged(budget), alone) is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[production, edge, development, qlora]", "prodution", "use: .*'prodution' is not one of development, qlora, "
         "production, edge; did you mean 'production'"),
        ("[production, edge, development, qlora]", "[edge, edge]", "use: must be one value, or a list of up to 4"),
        ("int8: {", "use: {kind: int8, ", "use is what the tests of this key are called by: name the method 'use' o"),
        ("int8: {budget: {max_vram: 20 GiB}}\n  nf4: {budget: {max_vram: 20 GiB}}", "bf16: {}",
         "use: qlora: no method of this file can carry an adapter in training; int8, nf4 can"),
        ("int8: {budget: {max_vram: 20 GiB}}\n  nf4: {budget: {max_vram: 20 GiB}}", "nf4: {}",
         "use: qlora: nf4 may be taken for it, and no limit says what is asked of it"),
    ],
)  # fmt: skip
def test_a_use_that_cannot_pass_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(BudgetError, match=rf"b.yaml:4: {words}"):
        read(tmp_path, old, new)


def test_no_limits_at_all_meet_no_use(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("model: m\nuse: edge\nmethods: {fp16: {}}\n")
    with pytest.raises(BudgetError, match=r"b.yaml:2: use: no method has limits that it could meet"):
        load_budget(tmp_path / "b.yaml")


def test_perplexity_is_compared_window_by_window(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a text")
    budget = read(tmp_path, "tasks: {gsm8k: {questions: 1000, max_truncated: 100}}", "perplexity: {file: t.txt}")
    text = budget.text
    assert text is not None

    def reading(nll: float, sizes: tuple[int, ...] = (10,) * 20, jitter: float = 0.001) -> dict[str, object]:
        each = tuple(nll * (1 + jitter * (-1) ** i) for i in range(20))
        return {"perplexities": (Perplexity(text, sum(each), sum(sizes), None, sizes, each),), "tasks": ()}

    def measured_with(**figures: dict[str, object]) -> dict[str, tuple[str, str | None]]:
        own = {name: replace(_plain(budget, name), **more) for name, more in figures.items()}  # type: ignore[arg-type]
        found = given(budget, own)
        assert found.axes == ("weights", "perplexity")
        return {name: place for name, place in places(found).items() if name in figures}

    assert measured_with(fp16=reading(20.0), nf4=reading(22.0)) == {
        "fp16": ("front", None),
        "nf4": ("dominated", "fp16"),
    }
    alike = {"fp16": ("front", None), "nf4": ("front", None)}
    assert measured_with(fp16=reading(20.0), nf4=reading(20.0, jitter=0.002)) == alike
    # Of other tokens nobody can tell.
    assert measured_with(fp16=reading(20.0), nf4=reading(22.0, sizes=(9, 11) * 10)) == alike


def _plain(budget: Budget, name: str) -> Measurement:
    return Measurement(budget.method(name).subject, device=H100, weights=GIB)


def test_of_two_that_answer_one_task_better_each_neither_is_better(tmp_path: Path) -> None:
    budget = read(tmp_path, "questions: 1000, max_truncated: 100}", "questions: 1000}, gsm8k_cot: {questions: 1000}")

    def told(lost: int, others: int, moved: int = 0) -> Measurement:
        tasks = []
        for task, wrong in zip(budget.tasks.values(), (lost, others), strict=True):
            found = tuple(
                replace(a, question=a.question + moved) for a in answers((600 - wrong, True), (400 + wrong, False))
            )
            tasks.append(TaskResult(task, found, 1.0))
        return replace(_plain(budget, "fp16"), tasks=tuple(tasks))

    def between(fp16: Measurement, nf4: Measurement) -> dict[str, tuple[str, str | None]]:
        named = {"fp16": fp16, "nf4": replace(nf4, subject=budget.method("nf4").subject)}
        return {name: place for name, place in places(given(budget, named)).items() if name in named}

    alike = {"fp16": ("front", None), "nf4": ("front", None)}
    assert between(told(0, 40), told(40, 0)) == alike
    assert between(told(0, 0), told(40, 0)) == {"fp16": ("front", None), "nf4": ("dominated", "fp16")}
    # Nor where they were asked unlike questions.
    assert between(told(0, 0), told(40, 0, moved=1)) == alike


def test_a_method_that_misses_one_limit_is_not_saved_by_another_that_was_skipped(budget: Budget) -> None:
    over = Verdict(OVER, "broke")
    limits = {**judged(budget, fp16=over, int8=over, nf4=over, **{"awq-int4": over})}
    (missed,) = limits["nf4"]
    limits["nf4"] = [missed, replace(missed, name="max_ttft", verdict=NO_GPU)]
    assert on_use("production", budget, limits, given(budget, run(budget), limits)).outcome == OVER
    limits["nf4"] = [replace(missed, name="max_ttft", verdict=NO_GPU)]
    assert on_use("production", budget, limits, given(budget, run(budget), limits)).outcome == SKIPPED
