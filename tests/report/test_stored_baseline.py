"""A method of a stored report as the baseline: answers go together by their prompts; what is unlike is refused."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_reports import ON_CPU, TEXT, furnish, judged, measured, read, report

from pytest_quantbudget.core.answers import Answer, Origin, draft_id
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.judge import margin, noise
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.report import document, table
from pytest_quantbudget.report.document import Report

Change = Callable[[Measurement], Measurement]
RELATIONS = {
    "nf4 max_weights_ratio", "nf4 min_speedup", "nf4 max_sums_drop", "nf4 max_sums_flips", "nf4 min_token_agreement",
    "nf4 max_kl", "nf4 max_ppl_ratio",
}  # fmt: skip
LIMITS = """{max_weights: 5 GiB, max_weights_ratio: 1.1, min_speedup: 0.5, max_sums_drop: 20, max_sums_flips: 30,
      min_token_agreement: 50, max_kl: 0.5, max_ppl_ratio: 2}"""
OLD = TEXT.split("    budget: {max_weights: 5 GiB, max_vram")[0] + f"    budget: {LIMITS}\n"
NEW = OLD.replace("baseline: fp16", "baseline: {report: v1.json, method: nf4}")


def asked(wrong: int, *, first: int = 0, tokens: bool = True) -> tuple[Answer, ...]:
    """Ten answers to the prompts from a number on, so many of them wrong."""
    found = []
    for n in range(10):
        text = "1" if n >= wrong else "0"
        ids = (n, 7) if tokens else ()
        prompt = f"prompt {n + first}"
        found.append(Answer(n + first, text, text, text, n >= wrong, n >= wrong, False, 1, ids, -1.0, prompt))
    return tuple(found)


def told(wrong: int, tokenizer: str | None = "t", **more: Any) -> Change:
    """What a measurement has been asked, and by which tokenizer."""

    def change(own: Measurement) -> Measurement:
        task = replace(own.tasks[0], answers=asked(wrong, **more), name=None, tokenizer=tokenizer)
        text = replace(own.perplexities[0], tokenizer=tokenizer)
        return replace(own, tasks=(task,), perplexities=(text,))

    return change


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory with the files that the budget names, and the report of the last release: 2 of 10 are wrong."""
    room = furnish(tmp_path)
    write(room, told(2))
    return room


def write(room: Path, change: Change, name: str = "v1.json") -> None:
    found = report(read(room, OLD, "old.yaml"), nf4=change)
    document.write(room / name, replace(found, machine=replace(found.machine, cpu="an EPYC")))


def now(room: Path, change: Change, text: str = NEW, **more: Any) -> dict[str, Verdict]:
    """The verdicts of a run of today, whose answers were compared with those of the report."""
    budget = read(room, text)
    before = budget.stored.measurement.tasks if budget.stored else ()
    name = draft_id(before[0]) if before else None

    def changed(own: Measurement) -> Measurement:
        own = change(own)
        agreement = own.tasks[0].agreement
        compared = replace(agreement, against=name or "") if agreement is not None else None
        return replace(own, tasks=(replace(own.tasks[0], agreement=compared),))

    found = report(budget, nf4=changed)
    return judged(room, text, replace(found, machine=replace(found.machine, **more)))


def unlike(verdicts: Mapping[str, Verdict], outcome: str) -> dict[str, str]:
    return {name: v.message for name, v in verdicts.items() if v.outcome == outcome}


def test_figures_are_taken_against_those_of_the_report(room: Path) -> None:
    verdicts = now(room, told(3))
    assert unlike(verdicts, "failed") == {}
    assert list(unlike(verdicts, "skipped")) == ["nf4 max_kl"]
    assert "nf4 of v1.json has no logits" in verdicts["nf4 max_kl"].message
    assert verdicts["nf4 max_sums_drop"].measured == pytest.approx(10)
    assert "1 newly wrong, 0 newly right of 10" in verdicts["nf4 max_sums_drop"].message
    assert verdicts["nf4 max_weights_ratio"].measured == 1.0
    assert verdicts["nf4 min_speedup"].measured == 1.0
    assert "against nf4 of v1.json's" in verdicts["nf4 min_speedup"].message
    assert verdicts["nf4 min_token_agreement"].measured == pytest.approx(90)


def test_nothing_of_a_stored_baseline_is_measured_again(room: Path) -> None:
    budget, needs = read(room, NEW), Needs(repeat_runs=0)
    method = budget.method("nf4")
    needs.add(budget, method, method.limits)
    assert list(needs.requests) == [method.subject.key]
    (asked_for,) = needs.requests.values()
    assert {part.noun for part in asked_for.parts} >= {"answers to sums", "perplexity"}
    assert not [part for part in asked_for.parts if part.noun.startswith("divergence")]
    again = Needs(repeat_runs=2)
    again.add(budget, method, method.limits)
    assert list(again.requests) == [method.subject.key, budget.methods[0].subject.key]


def test_answers_go_together_by_their_prompts_and_not_by_their_numbers(room: Path) -> None:
    def shuffled(own: Measurement) -> Measurement:
        (task,) = told(2)(own).tasks
        other = replace(task.answers[0], question=90, prompt="another")
        numbered = [replace(answer, question=70 - answer.question) for answer in reversed(task.answers)]
        # One question more than today, with other numbers: the file has grown, and all of it was asked.
        asks = replace(task.task, questions=None)
        return replace(own, tasks=(replace(task, task=asks, answers=(other, *numbered), agreement=None),))

    write(room, shuffled)
    verdicts = now(room, told(3))
    assert verdicts["nf4 max_sums_drop"].measured == pytest.approx(10)
    assert "1 newly wrong, 0 newly right of 10" in verdicts["nf4 max_sums_drop"].message


OF_TASK = {"nf4 max_sums_drop", "nf4 max_sums_flips", "nf4 min_token_agreement"}


@pytest.mark.parametrize(
    ("change", "words", "limits"),
    [
        (told(2, first=3), "were asked different questions: 3 of 10 differ", OF_TASK),
        (
            lambda own: _each(told(2)(own), lambda a: replace(a, prompt=a.prompt.replace("prompt 1", "p"))),
            "were asked in other words: 1 of 10 differ",
            OF_TASK,
        ),
        (
            lambda own: _each(told(2)(own), lambda a: replace(a, strict_correct=True, flexible_correct=True)),
            "2 of 10 questions have another right answer than when nf4 of v1.json was asked",
            OF_TASK,
        ),
        (
            told(2, tokenizer="u"),
            "another tokenizer: its tokens are others",
            {"nf4 min_token_agreement", "nf4 max_ppl_ratio"},
        ),
        (
            lambda own: replace(told(2)(own), device=ON_CPU),
            "measured on cpu, and nf4 of v1.json on NVIDIA H100",
            {"nf4 max_weights_ratio", "nf4 min_speedup"},
        ),
    ],
    ids=["questions", "words", "answers", "tokenizer", "device"],
)
def test_what_is_unlike_is_refused_and_says_how_much(room: Path, change: Change, words: str, limits: set[str]) -> None:
    failed = unlike(now(room, change), "failed")
    assert set(failed) == limits
    assert all(words in message for message in failed.values()), failed


def _each(own: Measurement, change: Callable[[Answer], Answer]) -> Measurement:
    task = own.tasks[0]
    return replace(own, tasks=(replace(task, answers=tuple(map(change, task.answers))),))


def test_a_report_of_an_earlier_release_has_no_tokens_and_may_have_no_prompts(room: Path) -> None:
    write(room, told(2, tokenizer=None, tokens=False))
    skipped = unlike(now(room, told(3)), "skipped")
    assert set(skipped) == {"nf4 max_kl", "nf4 min_token_agreement"}
    assert "as texts alone: an earlier release wrote its report" in skipped["nf4 min_token_agreement"]
    write(room, lambda own: _each(told(2)(own), lambda a: replace(a, prompt="")))
    words = "nf4 of v1.json does not tell what was asked: an earlier release wrote its report"
    failed = unlike(now(room, lambda own: _each(told(2, first=1)(own), lambda a: a)), "failed")
    assert words in failed["nf4 max_sums_drop"]


def test_settings_that_prompts_do_not_tell_have_to_be_the_same(room: Path) -> None:
    text = NEW.replace("questions: 10,", "questions: 10, max_new_tokens: 9,")
    failed = unlike(now(room, told(2), text), "failed")
    assert set(failed) == OF_TASK
    words = "the baseline nf4 of v1.json: task sums: max_new_tokens is 9 here and 256 in v1.json"
    assert words in failed["nf4 max_sums_drop"]
    text = NEW.replace("new_tokens: 8", "new_tokens: 9").replace("window: 64", "window: 32")
    failed = unlike(now(room, told(2), text), "failed")
    assert set(failed) == {"nf4 min_speedup", "nf4 max_ppl_ratio"}
    assert "workload: new_tokens is 9 here and 8 in v1.json" in failed["nf4 min_speedup"]
    # How many at once, and how long one may take, change no answer.
    text = NEW.replace("questions: 10,", "questions: 10, batch_size: 2,")
    assert unlike(now(room, told(2), text), "failed") == {}


def test_timings_on_another_cpu_are_not_compared_and_all_else_is(room: Path) -> None:
    write(room, lambda own: replace(told(2)(own), device=ON_CPU))

    def on_cpu(own: Measurement) -> Measurement:
        return replace(told(2)(own), device=ON_CPU)

    assert unlike(now(room, on_cpu, cpu="an EPYC"), "failed") == {}
    failed = unlike(now(room, on_cpu, cpu="a Xeon"), "failed")
    assert failed == {
        "nf4 min_speedup": "nf4: min_speedup not measured: timed on a Xeon, and nf4 of v1.json on an EPYC"
    }


def test_the_new_report_holds_the_baseline_and_the_table_shows_it(room: Path) -> None:
    budget = read(room, NEW)
    run = report(budget, nf4=told(3))
    measurements = {m.measurement.subject.key: m.measurement for m in run.budgets[0].methods if m.measurement}
    built = document.build(room, [document.Judged(budget, [], None, measurements)], run.machine, None)
    document.write(room / "v2.json", built)
    found = document.read(room / "v2.json")
    (of,) = found.budgets
    assert of.baseline == of.methods[0].name == "nf4 of v1.json"
    assert of.stored == document.StoredFrom("v1.json", "old.yaml", "nf4", "2026-01-01T00:00:00+00:00", "an EPYC")
    lines = [line.text for line in table.lines(found)]
    head, *rows = (line.split("  ") for line in lines[1:5])
    assert [row[0].strip() for row in rows] == ["nf4 of v1.json", "fp16", "nf4"]
    assert "10.0" in lines[4]
    assert "on NVIDIA H100 80GB HBM3, 2 threads; ratio, speed-up and drop against nf4 of v1.json, measured 2026" in (
        "\n".join(lines)
    )
    assert head
    # The next release is compared with this one, by a method of its own run.
    third = read(room, NEW.replace("v1.json", "v2.json"), "third.yaml")
    assert third.stored is not None
    assert third.stored.name == "nf4 of v2.json"
    with pytest.raises(BudgetError, match=r"v2.json holds fp16, nf4: name one, as in `method: fp16`"):
        read(room, NEW.replace("{report: v1.json, method: nf4}", "{report: v2.json}"))


def stored(room: Path, text: str, name: str = "b.yaml") -> str:
    budget: Budget = read(room, text, name)
    assert budget.stored is not None
    return budget.stored.name


def several(found: Report) -> Report:
    """Two budgets in one report."""
    return replace(found, budgets=(found.budgets[0], replace(found.budgets[0], file="more/other.yaml")))


def test_the_method_is_named_or_the_only_one_or_what_others_were_compared_with(room: Path) -> None:
    short = NEW.replace(", method: nf4", "")
    assert stored(room, short) == "fp16 of v1.json"
    found = document.read(room / "v1.json")
    (of,) = found.budgets
    document.write(room / "v1.json", replace(found, budgets=(replace(of, methods=of.methods[1:]),)))
    assert stored(room, short) == "nf4 of v1.json"
    document.write(room / "v1.json", several(found))
    assert stored(room, NEW, "old.yaml") == "nf4 of v1.json"
    for name in ("more/other.yaml", "other.yaml", "old.yaml"):
        assert stored(room, NEW.replace("method:", f"budget: {name}, method:")) == "nf4 of v1.json"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("v1.json", "v2.json", "report: there is no file 'v2.json'; did you mean 'v1.json'?"),
        ("v1.json", "sums.jsonl", "report: .*sums.jsonl is not JSON that can be used"),
        ("v1.json", "old.json", "report: .*old.json is a report of version 99"),
        ("v1.json", "bad.json", "report: contradicts itself: old.yaml, nf4: task sums: question 0 was answered 10"),
        ("nf4}", "nf5}", "baseline: v1.json holds no measurement of 'nf5'; did you mean 'nf4'"),
        ("method: nf4}", "methd: nf4}", "baseline has no key 'methd'; did you mean 'method'"),
        ("report: v1.json, ", "", "baseline needs the `report` of an earlier run"),
        ("report: v1.json", "report: [v1.json]", "report: must be text"),
        ("method: nf4}", "budget: new.yaml}", "baseline: v1.json holds no budget 'new.yaml'; did you mean 'old.yaml'"),
        ("v1.json, method: nf4", "two.json", "baseline: two.json holds several budgets: name one, as in `budget: old"),
        ("v1.json", "none.json", "baseline: none.json holds no measurement"),
        ("{report: v1.json, method: nf4}", "v1.json", ".*a report's would be `{report: FILE}`"),
        ("{report: v1.json, method: nf4}", "[nf4]", "baseline: must be text, not .*; it is a method of this file, or"),
        ("{report: v1.json, method: nf4}", "nf5", "the baseline 'nf5' is not among the methods; did you mean 'nf4'"),
    ],
)  # fmt: skip
def test_mistakes_name_the_line_and_the_nearest_right_thing(room: Path, old: str, new: str, words: str) -> None:
    found = document.read(room / "v1.json")
    (room / "old.json").write_text('{"version": 99}')
    document.write(room / "two.json", several(found))
    document.write(room / "none.json", replace(found, budgets=(replace(found.budgets[0], methods=()),)))
    write(room, lambda own: _each(told(2)(own), lambda a: replace(a, question=0)), "bad.json")
    assert old in NEW
    with pytest.raises(BudgetError, match=rf"b.yaml:3: {words}"):
        read(room, NEW.replace(old, new))


def test_a_report_outside_the_repository_is_not_opened(room: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from pytest_quantbudget.budget.reader import load_budget
    from pytest_quantbudget.core.files import Roots

    other = tmp_path_factory.mktemp("other") / "v1.json"
    other.write_text("{")
    (room / "b.yaml").write_text(NEW.replace("v1.json", str(other)))
    with pytest.raises(BudgetError, match="lies outside the repository") as caught:
        load_budget(room / "b.yaml", Roots([room]))
    assert "JSON" not in str(caught.value)


def test_a_list_of_numbers_takes_one_line_and_a_text_that_looks_like_one_stays(tmp_path: Path) -> None:
    from pytest_quantbudget.core import codec

    texts = {"[\n 1,\n 2\n]": [1, 2, -3.5, 1e-7], "a": [[1, 2], ["3", 4]]}
    codec.write_json(tmp_path / "x.json", texts)
    assert codec.read_json((tmp_path / "x.json").read_bytes()) == texts
    assert "[1, 2, -3.5, 1e-07]" in (tmp_path / "x.json").read_text()


def test_repeat_runs_are_made_of_the_first_method_and_give_limits_their_margin(room: Path) -> None:
    budget = read(room, NEW.replace("min_speedup: 0.5", "min_speedup: auto"))
    assert budget.stored is not None
    subjects = noise.subjects(budget, 3)
    assert [subject.name for subject in subjects] == ["fp16", "fp16 again 1", "fp16 again 2", "fp16 again 3"]
    first = replace(measured(budget, budget.methods[0]), loaded=Origin("2026-01-01T00:00:00Z"))
    (speed,) = first.speeds
    slower = [replace(speed, decode_s=tuple(k * s for s in speed.decode_s)) for k in (1, 1.1, 0.9, 1.2)]
    runs = [replace(first, subject=own, speeds=(each,)) for own, each in zip(subjects, slower, strict=True)]
    found = noise.of(budget, runs)
    assert (found.method, found.runs, len(found.values["tokens_per_s"])) == ("fp16", 3, 4)
    assert found.tasks[0].flips == 0
    (limit,) = (limit for limit in budget.method("nf4").limits if limit.name == "min_speedup")
    own = budget.measured({budget.method("nf4").subject.key: measured(budget, budget.method("nf4"))})
    made = margin.calibrated(budget, "nf4", limit, "", own, runs=found.values)
    assert 0 < made.value < 1
    assert "the spread of 4 runs of fp16" in made.words
    assert noise.of(budget, runs[:1]).notes == ("no noise floor: no repeat run of fp16 was made",)


def test_two_reports_of_one_name_are_two_baselines(room: Path) -> None:
    """Methods that two budgets of a run compare with them are measured for each."""
    first = read(room, NEW)
    (room / "more").mkdir()
    write(room, told(3), "more/v1.json")
    second = read(room, NEW.replace("report: v1", "report: more/v1"), "c.yaml")
    assert first.baseline == second.baseline
    assert first.method("nf4").subject.key != second.method("nf4").subject.key
    assert read(room, NEW, "d.yaml").method("nf4").subject.key == first.method("nf4").subject.key
