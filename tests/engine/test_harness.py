"""Tasks of lm-evaluation-harness: run by the library, kept question by question, refused where they bring code."""

import importlib.util
import json
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness_room import CHOICES, QUESTIONS, WORDS, furnished, with_

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR, Roots
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import NO_TRUST, Request, Subject, Task, Trust
from pytest_quantbudget.engine.hf import load
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure import keys as identity
from pytest_quantbudget.measure.phases import _words
from pytest_quantbudget.models import methods

# Only looked for: a test with pytester forgets what it imports, and pyarrow cannot be imported twice.
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with two task files of our own, their questions, and a budget."""
    return furnished(tmp_path)


@pytest.fixture(scope="module")
def loaded() -> Transformers:
    """The built-in model in fp32, in this process."""
    pytest.importorskip("lm_eval")
    return Transformers(load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))


def of(room: Path, name: str, **more: Any) -> Task:
    """A task of the harness, by file or name."""
    path = str(room / name) if name.endswith(".yaml") else name
    return replace(Task("t", None, None, 0, None, 0, None, "strict", harness=path), **more)


def run(loaded: Transformers, task: Task, trust: Trust = NO_TRUST) -> TaskResult:
    """All answers to a task."""
    from pytest_quantbudget.engine import harness

    return harness.run(loaded, task, Batching(task.batch_size or 0), trust)


def own_figure(loaded: Transformers, path: Path, **more: Any) -> dict[str, float]:
    """What the library itself says of a task, in percent."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        told = lm_eval.simple_evaluate(
            HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16),
            tasks=[str(path)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            **more,
        )
    (figures,) = told["results"].values()
    return {key: 100 * value for key, value in figures.items() if isinstance(value, float)}


@installed
def test_a_budget_runs_tasks_of_the_harness_and_pairs_them(pytester: pytest.Pytester) -> None:
    furnished(pytester.path)
    result = pytester.runpytest("--quant-budget", "budget.yaml", "--quant-report", "r.json", "-v")
    result.assert_outcomes(passed=6)
    ran = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    by_task = {t["task"]["name"]: t for t in ran[0]["measurement"]["tasks"]}
    assert by_task["words"]["metric"] == "exact_match,strict-match"
    assert by_task["choices"]["metric"] == "acc,none"
    assert len(by_task["words"]["answers"]) == 12
    assert [a["question"] for a in by_task["choices"]["answers"]] == list(range(20))
    assert by_task["choices"]["chance"] == pytest.approx(100 / 3)
    assert by_task["words"]["chance"] is None
    details = [limit["verdict"]["message"] for m in ran for limit in m["limits"]]
    assert sum("of 12" in detail for detail in details) == 3
    assert sum("of 20" in detail for detail in details) == 3
    again = pytester.runpytest("--quant-budget", "budget.yaml", "--quant-report", "r.json")
    again.assert_outcomes(passed=6)
    ran = json.loads(Path("r.json").read_text())["budgets"][0]["methods"]
    assert all(t["origin"]["reused"] for m in ran for t in m["measurement"]["tasks"])


@installed
def test_a_task_that_fails_costs_its_own_tests_only(pytester: pytest.Pytester) -> None:
    room = furnished(pytester.path)
    (room / "words.yaml").write_text(WORDS.replace("doc_to_text: ", "doc_to_text: !function evil.ask # "))
    (room / "evil.py").write_text("open('ran', 'w')\nask = str\n")
    result = pytester.runpytest("--quant-budget", "budget.yaml")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(["*words.yaml runs code that comes with it (words.yaml:8: `!function evil.ask`); *"])
    assert not (room / "ran").exists()


@pytest.mark.parametrize(
    ("name", "metric", "key"),
    [
        ("words.yaml", None, "exact_match,strict-match"),
        ("words.yaml", "exact_match,flexible-extract", "exact_match,flexible-extract"),
        ("choices.yaml", None, "acc,none"),
        ("choices.yaml", "acc_norm", "acc_norm,none"),
    ],
)
def test_the_accuracy_is_the_one_that_the_library_tells(
    loaded: Transformers, room: Path, name: str, metric: str | None, key: str
) -> None:
    result = run(loaded, of(room, name, metric=metric))
    assert result.metric == key
    assert result.accuracy == pytest.approx(own_figure(loaded, room / name)[key])
    assert [a.question for a in result.answers] == list(range(QUESTIONS))
    drawn = run(loaded, of(room, name, metric=metric, questions=9, seed=4))
    asked = {a.question for a in drawn.answers}
    assert len(asked) == 9
    of_all = {a.question: a for a in result.answers}
    assert [(a.text, a.prompt, a.strict_correct) for a in drawn.answers] == [
        (of_all[i].text, of_all[i].prompt, of_all[i].strict_correct) for i in sorted(asked)
    ]


def test_no_message_quotes_the_data(loaded: Transformers, room: Path) -> None:
    """Undefined attributes are named by what they were asked of, here the question itself."""
    secret = json.loads((room / "words.jsonl").read_text().splitlines()[0])["question"]
    (room / "words.yaml").write_text(WORDS.replace("{{question}}", "{{ ({}[question]).x }}"))
    with pytest.raises(ValueError, match=r"words.yaml: UndefinedError in .*; its words are withheld") as caught:
        run(loaded, of(room, "words.yaml"))
    assert secret[:20] not in "".join(traceback.format_exception(caught.value))


def test_answers_tell_what_was_said(loaded: Transformers, room: Path) -> None:
    said = run(loaded, of(room, "words.yaml", limit=6)).answers
    assert all(answer.text.endswith(f"#### {answer.strict}") for answer in said)
    rows = [json.loads(line) for line in (room / "choices.jsonl").read_text().splitlines()]
    for answer in run(loaded, of(room, "choices.yaml")).answers:
        assert answer.text == rows[answer.question]["options"][int(answer.strict)]
        assert answer.strict_correct == (int(answer.strict) == rows[answer.question]["gold"])


def test_the_questions_of_a_group_are_numbered_through(
    loaded: Transformers, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_quantbudget.engine import harness

    (room / "others.yaml").write_text(WORDS.replace("task: words", "task: others"))
    one, other = (harness._load(of(room, f"{name}.yaml"), NO_TRUST, None) for name in ("words", "others"))
    monkeypatch.setattr(harness, "_load", lambda *_: {**one, **other})
    whole = run(loaded, of(room, "words.yaml"))
    assert [a.question for a in whole.answers] == list(range(2 * QUESTIONS))
    assert [a.text for a in whole.answers[:QUESTIONS]] == [a.text for a in whole.answers[QUESTIONS:]]
    for questions in (1, 30):
        drawn = run(loaded, of(room, "words.yaml", questions=questions))
        assert len(drawn.answers) == questions
        assert [a.text for a in drawn.answers] == [whole.answers[a.question].text for a in drawn.answers]


def test_tasks_of_a_group_need_a_metric_in_common(
    loaded: Transformers, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_quantbudget.engine import harness

    one, other = (harness._load(of(room, f"{name}.yaml"), NO_TRUST, None) for name in ("words", "choices"))
    monkeypatch.setattr(harness, "_load", lambda *_: {**one, **other})
    with pytest.raises(ValueError, match="only exact_match,strict-match, exact_match,flexible-extract, acc,none"):
        run(loaded, of(room, "words.yaml", limit=4))


def test_memory_that_runs_out_halves_the_requests(
    loaded: Transformers, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    from pytest_quantbudget.engine import harness

    whole = run(loaded, of(room, "choices.yaml"))
    full = HFLM._model_call

    def short(self: Any, inps: Any, *rest: Any, **more: Any) -> Any:
        if len(inps) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return full(self, inps, *rest, **more)

    monkeypatch.setattr(HFLM, "_model_call", short)
    batching = Batching()
    result = harness.run(loaded, of(room, "choices.yaml"), batching)
    assert (batching.tried, batching.size) == (16, 4)
    assert result.correct == whole.correct


def test_shots_system_prompt_and_chat_reach_the_prompt(
    loaded: Transformers, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room / "words.yaml").write_text(WORDS.replace("test_split: test", "test_split: test\nfewshot_split: test"))
    task = of(room, "words.yaml", limit=4)

    def prompts(**more: Any) -> list[str]:
        return [answer.prompt for answer in run(loaded, replace(task, **more)).answers]

    plain, shots, system = prompts(), prompts(shots=1), prompts(system_prompt="Be brief.")
    assert len({*plain, *shots, *system}) == 12
    with pytest.raises(ValueError, match="task t asks for a chat template, and the model's tokenizer has none"):
        prompts(chat_template=True)
    assert prompts(chat_template=None) == plain
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ enable_thinking }}<assistant>"
    monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
    chats = prompts(chat_template=None)
    assert prompts(chat_template=True) == chats
    assert prompts() == plain
    assert not {*prompts(chat_template=None, enable_thinking=True)} & {*chats, *plain}


def without(text: str) -> Callable[[str], str]:
    return lambda source: source.replace(text, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_("doc_to_target: gold", "doc_to_target: !function evil.ask"),
            r"yaml:10: `!function evil.ask`\); --quant",
        ),
        (
            with_("{test: choices.jsonl}", "{test: choices.jsonl}\n  trust_remote_code: true"),
            "`trust_remote_code: true`",
        ),
        (with_("metric: brier_score,", "metric: brier_score, hf_evaluate: true,"), "`hf_evaluate: true`"),
        (
            with_("metric: brier_score", "metric: ./evil"),
            "the metric './evil' is none of the harness's own, and would be",
        ),
        (with_("Question:", "{{ question.__class__.__mro__ }}"), "choices.yaml: SecurityError in sandbox.py"),
    ],
    ids=["function", "trust_remote_code", "hf_evaluate", "metric", "template"],
)
def test_code_that_comes_with_a_task_file_is_refused(
    loaded: Transformers, room: Path, change: Callable[[str], str], message: str
) -> None:
    (room / "choices.yaml").write_text(change(CHOICES))
    (room / "evil.py").write_text("open('ran', 'w')\nask = str\n")
    with pytest.raises(Exception, match=message):
        run(loaded, of(room, "choices.yaml"))
    assert not (room / "ran").exists()


def test_code_runs_where_the_command_line_allows_it(loaded: Transformers, room: Path) -> None:
    (room / "choices.yaml").write_text(CHOICES.replace("doc_to_target: gold", "doc_to_target: !function own.gold"))
    (room / "own.py").write_text("def gold(doc):\n    return doc['gold']\n")
    assert run(loaded, of(room, "choices.yaml"), Trust(remote_code=True)).metric == "acc,none"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "brier_score",
            r"the metric 'brier_score' of .* is not right or wrong a question \(acc,none, acc_norm,none, b",
        ),
        ("acc_nrm", "has no metric 'acc_nrm'; did you mean 'acc_norm,none'"),
        ("acc,strict-match", "has no metric 'acc,strict-match'"),
    ],
)
def test_a_metric_that_cannot_count_is_refused(loaded: Transformers, room: Path, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(loaded, of(room, "choices.yaml", metric=metric, limit=6))


def test_a_task_without_such_a_metric_is_refused(loaded: Transformers, room: Path) -> None:
    kept = [line for line in CHOICES.splitlines() if "metric: acc" not in line]
    (room / "choices.yaml").write_text("\n".join(kept))
    with pytest.raises(ValueError, match="no metric that is right or wrong a question, only brier_score,none"):
        run(loaded, of(room, "choices.yaml", limit=6))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"questions": 25}, "25 questions were asked of .*, which has 24"),
        ({"shots": 2}, r"choices takes no worked examples \(`num_fewshot: 0`\)"),
    ],
)
def test_what_the_task_cannot_give_is_refused(
    loaded: Transformers, room: Path, more: dict[str, Any], message: str
) -> None:
    (room / "choices.yaml").write_text(f"{CHOICES}num_fewshot: 0\n")
    with pytest.raises(ValueError, match=message):
        run(loaded, of(room, "choices.yaml", **more))


def test_a_named_task_is_found_without_reading_all_of_them(
    loaded: Transformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    from pytest_quantbudget.engine import harness

    manager, spec, _ = harness._named("arc_easy")
    assert spec.endswith("/arc/arc_easy.yaml")
    assert manager.all_tasks == []
    with monkeypatch.context() as patch:  # reading the whole index takes 16 s
        patch.setattr(lm_eval.tasks, "TaskManager", lambda: type("All", (), {"all_tasks": ["arc_easy", "gsm8k"]}))
        with pytest.raises(ValueError, match="lm-evaluation-harness has no task 'arc_esy'; did you mean 'arc_easy'"):
            harness._named("arc_esy")


def test_a_data_set_that_is_not_there_is_named(
    loaded: Transformers, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (room / "choices.yaml").write_text(CHOICES.replace("dataset_path: json", "dataset_path: nobody/has_this_set"))
    with pytest.raises(ValueError, match=r"the data set nobody/has_this_set of .* cannot be had: "):
        run(loaded, of(room, "choices.yaml"))


def test_answers_judged_by_different_metrics_are_not_paired(room: Path) -> None:
    budget = load_budget(room / "budget.yaml", Roots([room]))
    task = budget.tasks["words"]
    answer = Answer(0, "1", "1", "1", True, True, False, 0)
    measured = {
        method.name: Measurement(method.subject, tasks=(TaskResult(task, (answer,), 1.0, metric=f"acc,{method.name}"),))
        for method in budget.methods
    }
    (limit, *_) = budget.method("bf16").limits
    verdict = judge(budget, budget.method("bf16"), limit, measured)
    assert verdict.outcome == "failed"
    assert "fp32 was judged by acc,fp32 and bf16 by acc,bf16; name a `metric`" in verdict.message


def test_a_missing_library_skips_with_the_command() -> None:
    error = ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
    assert _words(error).endswith("pip install 'pytest-quantbudget[harness]'")
    assert methods.pip_command("lm_eval") == "pip install 'pytest-quantbudget[harness]'"


def test_stored_answers_go_with_the_file_and_all_that_it_names(room: Path, tmp_path: Path) -> None:
    (room / "base.yaml").write_text(WORDS.replace("task: words", ""))
    (room / "own.py").write_text("ask = str\n")
    (room / "words.yaml").write_text("include: base.yaml\ntask: words\nprocess_docs: !function own.ask\n")
    words = of(room, "words.yaml")
    request = Request(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), (words,))

    def name(task: Task = words, drafts: str | None = None) -> str:
        keys = identity.keys_of(replace(request, parts=(task,)), [], NO_TRUST, tmp_path / "memo")
        assert keys is not None
        return keys.of(task, drafts).name.rpartition("-")[2]  # without the label

    names = [name()]
    assert name(drafts="others") == name(replace(words, name="other")) == names[0]
    for file in ("words.yaml", "base.yaml", "words.jsonl", "own.py"):
        with (room / file).open("a") as handle:
            handle.write("\n")
        names.append(name())
    for more in ({"limit": 3}, {"metric": "acc"}, {"shots": 2}, {"chat_template": True}, {"harness": "gsm8k"}):
        names.append(name(replace(words, **more)))
    assert len(set(names)) == len(names)
    (room / "base.yaml").unlink()
    assert identity.keys_of(request, [], NO_TRUST, tmp_path / "memo") is None
