"""Asking through a chat template, thinking, and answers that were cut off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.measurement import Device, Measurement
from pytest_quantbudget.core.request import Request, Task
from pytest_quantbudget.core.verdict import FAILED, WITHIN
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure import recall
from pytest_quantbudget.tasks.prompts import Asked, Prompter
from pytest_quantbudget.tasks.questions import Question

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
TASK = Task("math", 4, 0, 0, str(BUILTIN_DIR / "questions.jsonl"), 96, 4, "strict", chat_template=True)
ASKED = Asked(Question(0, "How many?", "2\n#### 2"), (("One?", "#### 1"),))


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    found.chat_template = TEMPLATE
    return found


def test_worked_examples_are_turns_of_the_conversation(tokenizer: Any) -> None:
    task = replace(TASK, system_prompt="Be brief.")
    assert Prompter(tokenizer, task).text(ASKED) == (
        "<system>Be brief.</system><user>Question: One?\nAnswer:</user><assistant>#### 1</assistant>"
        "<user>Question: How many?\nAnswer:</user><assistant>"
    )
    plain = replace(task, chat_template=False)
    assert Prompter(tokenizer, plain).text(ASKED).startswith("Be brief.Question: One?")


@pytest.mark.parametrize(
    ("thinking", "end"), [(None, "<assistant>"), (True, "<assistant>"), (False, "<think></think>")]
)
def test_thinking_is_left_to_the_template(tokenizer: Any, thinking: bool | None, end: str) -> None:
    assert Prompter(tokenizer, replace(TASK, enable_thinking=thinking)).text(ASKED).endswith(end)


def test_auto_asks_through_a_template_where_there_is_one(tokenizer: Any) -> None:
    auto = replace(TASK, chat_template=None)
    assert Prompter(tokenizer, auto).text(ASKED).startswith("<user>")
    tokenizer.chat_template = None
    assert Prompter(tokenizer, auto).text(ASKED).startswith("Question: One?")
    with pytest.raises(ValueError, match="task math asks for a chat template, and the model's tokenizer has none"):
        Prompter(tokenizer, TASK)


def test_a_template_that_begins_with_the_start_token_gets_no_second_one(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    # As tokenizers do that put a start token in front of every text; here the end token stands in for it.
    start = tokenizer.eos_token
    tokenizer.bos_token = start
    pair = [(start, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=pair)
    prompter = Prompter(tokenizer, TASK)
    ((first, second, *_),) = prompter.tokens([f"{start}hello"])
    assert (first, second == first) == (tokenizer.eos_token_id, False)
    ((first, *_),) = prompter.tokens(["hello"])
    assert first == tokenizer.eos_token_id


BUDGET = """model: builtin
baseline: fp32
tasks: {math: {file: builtin, questions: 100, max_new_tokens: 64%s}}
methods:
  fp32: {}
  bf16: {budget: {min_math: 50, max_math_drop: 5, max_math_flips: 6, max_weights: 3 MiB}}
"""


@pytest.mark.parametrize(
    ("more", "cut", "outcome"),
    [("", 2, WITHIN), ("", 3, FAILED), (", max_truncated: 0", 1, FAILED), (", max_truncated: 10", 10, WITHIN)],
)
@pytest.mark.parametrize("method", ["bf16", "fp32"])
def test_too_many_cut_off_answers_are_not_judged(
    tmp_path: Path, method: str, more: str, cut: int, outcome: str
) -> None:
    path = tmp_path / "b.yaml"
    path.write_text(BUDGET % more)
    budget = load_budget(path)
    cpu = Device("cpu", None, None, None, None, 2)

    def record(name: str) -> Measurement:
        answers = [Answer(i, "", "1", "1", True, True, name == method and i < cut, 64) for i in range(100)]
        result = TaskResult(budget.tasks["math"], tuple(answers), 1.0)
        return Measurement(budget.method(name).subject, device=cpu, weights=1000, tasks=(result,))

    measured = {name: record(name) for name in ("fp32", "bf16")}
    own = budget.method("bf16")
    verdicts = {limit.name: judge(budget, own, limit, measured) for limit in own.limits}
    assert verdicts.pop("max_weights").outcome == WITHIN
    if method == "fp32":
        assert verdicts.pop("min_math").outcome == WITHIN
    assert {verdict.outcome for verdict in verdicts.values()} == {outcome}
    whose = "" if method == "bf16" else "the baseline fp32: "
    if outcome == FAILED:
        limit = more.rpartition(" ")[2] or "2"
        assert verdicts["max_math_drop"].message == (
            f"bf16: max_math_drop not measured: {whose}{cut}.0 % of 100 answers to math were truncated after "
            f"64 tokens, and max_truncated is {limit}.0 %"
        )


# What is compared must have been asked in the same words


CLOCK = "{{ strftime_now('%d %b %Y %H:%M') }} " + TEMPLATE


def test_a_template_that_reads_the_clock_is_told_the_stated_time(tokenizer: Any) -> None:
    plain = Prompter(tokenizer, TASK, "2026-01-02T03:04:05Z")
    assert plain.text(ASKED).startswith("<user>")
    assert plain.told_time == ""
    tokenizer.chat_template = CLOCK
    told = Prompter(tokenizer, TASK, "2026-01-02T03:04:05Z")
    assert told.text(ASKED).startswith("02 Jan 2026 03:04 <user>")
    assert told.told_time == "2026-01-02T03:04:05Z"
    now = Prompter(tokenizer, TASK)
    text = now.text(ASKED)
    assert now.told_time > "2026-01-02T03:04:05Z"
    assert Prompter(tokenizer, TASK, now.told_time).text(ASKED) == text


@pytest.mark.parametrize("template", ["", "{# nothing #}", "<user>be brief</user>"])
def test_a_template_that_leaves_the_questions_out_is_named(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template or " "
    prompter = Prompter(tokenizer, TASK)
    texts = [prompter.text(Asked(Question(i, f"How many {i}?", "#### 2"))) for i in range(3)]
    with pytest.raises(ValueError, match="the chat template leaves the questions out"):
        prompter.tokens(texts)


def test_an_end_token_behind_every_text_is_named(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.eos_token_id
    for chat in (True, False):
        prompter = Prompter(tokenizer, replace(TASK, chat_template=chat))
        texts = [prompter.text(Asked(Question(i, f"How many {i}?", "#### 2"))) for i in range(3)]
        assert prompter.tokens(texts, [end])
        plain = tokenizer.backend_tokenizer.post_processor
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, end)]
        )
        with pytest.raises(ValueError, match=r"the tokenizer puts the end token '<.*>' behind every text"):
            prompter.tokens(texts, [end])
        if plain is not None:
            tokenizer.backend_tokenizer.post_processor = plain
        else:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])


def test_answers_to_other_prompts_are_not_paired(tmp_path: Path) -> None:
    text = f"model: {BUILTIN_DIR}\nbaseline: fp16\ntasks: {{gsm8k: {{questions: 100}}}}\n"
    (tmp_path / "b.yaml").write_text(f"{text}methods: {{fp16: {{}}, nf4: {{budget: {{max_gsm8k_flips: 50}}}}}}\n")
    budget = load_budget(tmp_path / "b.yaml")
    method, task = budget.method("nf4"), budget.tasks["gsm8k"]
    device = Device("cpu", None, None, None, None, 1)

    def record(name: str, prompt: str) -> Measurement:
        answers = tuple(Answer(i, "", "1", "1", True, True, False, 5, prompt=prompt) for i in range(100))
        result = TaskResult(task, answers, 1.0)
        return Measurement(budget.method(name).subject, device=device, weights=1, tasks=(result,))

    same = judge(budget, method, method.limits[0], {"nf4": record("nf4", "a"), "fp16": record("fp16", "a")})
    assert same.outcome == WITHIN
    other = judge(budget, method, method.limits[0], {"nf4": record("nf4", "b"), "fp16": record("fp16", "a")})
    assert (other.outcome, "fp16 and nf4 were asked in other words" in other.message) == (FAILED, True)
    request = Request(method.subject)
    stored = record("nf4", "b")
    baseline = {task: record("fp16", "a").tasks[0]}
    assert not recall._decide(stored, task, request, baseline, "cpu")
    assert recall._decide(record("nf4", "a"), task, request, baseline, "cpu")


def test_what_was_measured_later_than_a_budgets_own_timeout_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("model: m\ntimeout: 10 s\nmethods: {fp16: {budget: {max_weights: 1 GiB}}}\n")
    budget = load_budget(tmp_path / "b.yaml")
    method = budget.methods[0]
    measured = Measurement(method.subject, weights=5, took_s=9.0)
    assert judge(budget, method, method.limits[0], {"fp16": measured}).outcome == WITHIN
    # Ended by its own timeout, what was measured until then counts.
    ended = replace(measured, took_s=11.0, allowed_s=10.0)
    assert judge(budget, method, method.limits[0], {"fp16": ended}).outcome == WITHIN
    late = judge(budget, method, method.limits[0], {"fp16": replace(ended, allowed_s=7200.0)})
    assert late.outcome == FAILED
    assert "not measured within the timeout of 10.0 s of b.yaml: it took 11.0 s" in late.message


def test_a_baseline_that_guesses_is_named(tmp_path: Path) -> None:
    text = "model: m\nbaseline: fp16\ntasks: {gsm8k: {questions: 100}}\n"
    (tmp_path / "b.yaml").write_text(f"{text}methods: {{fp16: {{}}, nf4: {{budget: {{max_gsm8k_drop: 20}}}}}}\n")
    budget = load_budget(tmp_path / "b.yaml")
    method, task = budget.method("nf4"), budget.tasks["gsm8k"]

    def record(name: str, right: int) -> Measurement:
        answers = tuple(Answer(i, "", "1", "1", i < right, True, False, 5) for i in range(100))
        return Measurement(budget.method(name).subject, tasks=(TaskResult(task, answers, 1.0, chance=25.0),))

    def message(right: int) -> str:
        return judge(
            budget, method, method.limits[0], {"nf4": record("nf4", 28), "fp16": record("fp16", right)}
        ).message

    assert "fp16 answers 28.0 % right, and guessing 25.0 %: there is nothing to lose" in message(28)
    assert "guessing" not in message(60)
