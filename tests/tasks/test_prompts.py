"""Asking through a chat template, thinking, and answers that were cut off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.measurement import Device, Measurement
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.verdict import FAILED, WITHIN
from pytest_quantbudget.judge.verdict import judge
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
            f"64 tokens, and max_truncated is {limit} %"
        )
