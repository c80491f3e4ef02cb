"""Growing tasks: as many questions as decide the limits, and no more; what was answered is never asked again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import COUNTING

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Request, Rule, Subject, Task
from pytest_quantbudget.judge import sequential
from pytest_quantbudget.measure import recall

SUBJECT = Subject("m", None, "nf4", None, {}, None)
TASK = Task("math", 400, 0, 0, None, 64, None, "strict", start=50, max_truncated=2.0)
DROP = Rule("math", "drop", "max", ("NVIDIA*", "*"), (9.0, 2.0), 0.95)


def result(*rights: tuple[int, bool], planned: int = 400, cut_off: int = 0) -> TaskResult:
    """So many right, so many wrong, and so on; the first few are cut off."""
    flat = [right for count, right in rights for _ in range(count)]
    answers = tuple(Answer(i, "", "1", "1", r, r, i < cut_off, 5) for i, r in enumerate(flat))
    return TaskResult(TASK, answers, 1.0, planned=planned)


BASE = result((400, True))


@pytest.mark.parametrize(
    ("rules", "own", "why"),
    [
        ((DROP,), result((40, True), (10, False)), "its limit was decided"),
        ((DROP,), result((98, True), (2, False)), ""),
        ((DROP,), result((200, True), planned=400), ""),
        ((replace(DROP, values=(9.0, 9.0)),), result((200, True)), "its limit was decided"),
        ((DROP, Rule("math", "", "min", ("*",), (85.0,), 0.95)), result((40, True), (10, False)), ""),
        ((DROP, Rule("math", "", "min", ("*",), (95.0,), 0.95)), result((40, True), (10, False)), "all its limits"),
        ((DROP, replace(DROP, values=(9.0, None))), result((40, True), (10, False)), ""),
        ((replace(DROP, patterns=("A*", "B*")),), result((40, True), (10, False)), ""),
        ((replace(DROP, task="other"),), result((40, True), (10, False)), ""),
        ((DROP,), result((50, True), cut_off=10), "too many of the first 50 answers were truncated"),
    ],
    ids=["broken", "maybe", "not sure yet", "sure", "one open", "both closed", "auto", "no GPU's", "other", "cut off"],
)
def test_questions_end_when_every_limit_that_holds_here_is_decided(
    rules: tuple[Rule, ...], own: TaskResult, why: str
) -> None:
    request = Request(SUBJECT, rules=rules)
    said = sequential.stopped(request, "cpu", own, BASE)
    assert said.startswith(why) if why else said == ""
    assert sequential.stopped(replace(request, whole=("math",)), "cpu", own, BASE) == ""


def test_a_limit_for_this_gpu_is_the_one_that_counts() -> None:
    own = result((94, True), (6, False))
    on = {name: sequential.stopped(Request(SUBJECT, rules=(DROP,)), name, own, BASE) for name in ("cpu", "NVIDIA L4")}
    assert on == {"cpu": "", "NVIDIA L4": ""}
    own = result((200, True), (2, False))
    assert sequential.stopped(Request(SUBJECT, rules=(DROP,)), "NVIDIA L4", own, BASE) == "its limit was decided"


def test_without_the_baselines_answers_nothing_is_decided() -> None:
    own = result((40, True), (10, False))
    assert sequential.stopped(Request(SUBJECT, rules=(DROP,)), "cpu", own, None) == ""
    assert sequential.stopped(Request(SUBJECT, rules=(DROP,)), "cpu", own, result((20, True))) == ""


def test_the_bounds_of_all_looks_share_what_may_go_wrong() -> None:
    first, last = result((50, True)), result((400, True))
    assert sequential.confidence(first, 0.95) == pytest.approx(1 - 0.025 / 3)  # looks after 50, 100, 200 and 400
    assert sequential.confidence(last, 0.95) == pytest.approx(0.975)
    assert sequential.confidence(replace(last, task=replace(TASK, start=None)), 0.95) == 0.95


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ("{start: 50, max: 50}", "questions: max 50 must be larger than start 50"),
        ("{start: 5}", "questions: must be a whole number of at least 10, not 5"),
        ("{max: 500}", "questions: needs a `start`, the number of questions after which the answers are first"),
        ("{start: 50, maximum: 500}", "questions: has no key 'maximum'; did you mean 'max'?"),
        ("{start: 5000}", "start 5000 must be smaller than the 1,319 questions that there are"),
    ],
)
def test_mistakes_in_what_is_to_grow(tmp_path: Path, questions: str, said: str) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(f"model: m\ntasks:\n  gsm8k:\n    questions: {questions}\nmethods: {{fp16: {{}}}}\n")
    with pytest.raises(Exception, match=r"b\.yaml:4: ") as caught:
        load_budget(path)
    assert said in str(caught.value)


def test_the_harness_asks_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: m\ntasks: {a: {harness: arc_easy, questions: {start: 50}}}\nmethods: {fp16: {}}\n")
    with pytest.raises(Exception, match="the harness asks all questions of a task at once"):
        load_budget(path)


@pytest.mark.model
def test_only_as_many_questions_are_asked_as_decide(pytester: pytest.Pytester, small: Path) -> None:
    """And a smaller limit asks for the rest of them only."""
    pytester.makeconftest(COUNTING)
    text = small.read_text().replace("questions: 12", "questions: {start: 20, max: 60}")
    text = text.replace("max_wordmath_drop: 60, max_wordmath_flips: 70", "max_wordmath_drop: 30")

    def run(drop: str) -> tuple[list[str], dict[str, Any], pytest.RunResult]:
        small.write_text(text.replace("max_wordmath_drop: 30", f"max_wordmath_drop: {drop}"))
        Path("started.txt").write_text("")
        done = pytester.runpytest("--quant-budget", small.name, "--quant-report", "r.json", "--quant-cache", "kept")
        done.assert_outcomes(passed=4, warnings=int(drop == "2"))
        methods = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
        found = {method["name"]: method["measurement"]["tasks"][0] for method in methods}
        return Path("started.txt").read_text().split(), found, done

    started, found, done = run("30")
    assert started == ["fp32", "bf16"]
    assert {name: (len(each["answers"]), each["planned"]) for name, each in found.items()} == {
        "fp32": (60, 60),
        "bf16": (20, 60),
    }
    done.stdout.fnmatch_lines(
        [
            "bf16 * 0.0 *2 within",  # its drop stands in the table though the baseline was asked more
            "bf16: 20 of 60 questions of wordmath were asked: its limit was decided",
        ]
    )
    first = [answer["text"] for answer in found["bf16"]["answers"]]

    started, found, done = run("2")
    assert started == ["bf16"]
    assert (len(found["bf16"]["answers"]), found["bf16"]["resumed"]) == (60, 20)
    assert [answer["text"] for answer in found["bf16"]["answers"][:20]] == first
    done.stdout.fnmatch_lines(
        [
            "*small.yaml:*: QuantBudgetWarning: bf16: max_wordmath_drop: with 60 questions, *",
            "bf16: max_wordmath_drop measured 0.0 points, limit 2.0, 97.5 % bounds -6.* to 6.* "
            "(0 newly wrong, 0 newly right of 60); undec*",
        ]
    )

    started, found, _ = run("30")
    assert started == []
    assert len(found["bf16"]["answers"]) == 60


@pytest.mark.parametrize(("extract", "enough"), [("strict", True), ("flexible", False)])
def test_stored_answers_are_enough_only_as_the_task_reads_them_now(extract: str, enough: bool) -> None:
    """The stored ones were read strictly, which decided the limit; flexibly, two models differ in little."""
    told = tuple(replace(a, strict_correct=i > 9, flexible_correct=i > 0) for i, a in enumerate(BASE.answers[:50]))
    part = Measurement(SUBJECT, tasks=(replace(BASE, answers=told),))
    now = replace(TASK, extract=extract)
    baseline = replace(BASE, task=now)
    assert bool(recall._decide(part, now, Request(SUBJECT, rules=(DROP,)), {now: baseline}, "cpu")) is enough
