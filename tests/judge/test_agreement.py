"""Limits on how a method predicts the baseline's answers, token by token."""

import math
from dataclasses import replace

import pytest
from judged import Load, measured, verdict

from pytest_quantbudget.core.answers import Agreement, Answer, TaskResult, draft_id
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.verdict import OVER, WITHIN


def compared(budget: Budget, *, against: str | None = None) -> tuple[Measurement, Measurement]:
    """Two answers of three tokens each from fp16, and what nf4 thought of them: 1.2 nats less likely, 5 of 6 agreed."""
    told = tuple(Answer(i, "", "1", "1", True, True, False, 3, (7, 8, i), -0.5) for i in range(2))
    task = budget.tasks["gsm8k"]
    before = TaskResult(task, told, 1.0)
    thought = Agreement(draft_id(before) or "" if against is None else against, 6, 5, -2.2, -1.0)
    after = TaskResult(task, told, 1.0, agreement=thought)
    return measured(budget, "fp16", tasks=(before,)), measured(budget, "nf4", tasks=(after,))


@pytest.mark.parametrize(
    ("limit", "outcome", "message"),
    [
        ("min_token_agreement: 83", WITHIN, "min_token_agreement measured 83.3 %, limit 83.0 % (5 of 6 tokens of"),
        ("min_token_agreement: 84", OVER, "min_token_agreement measured 83.3 %, limit 84.0 % (5 of 6 tokens of"),
        ("max_answer_ppl_ratio: 1.3", WITHIN, "max_answer_ppl_ratio measured 1.22, limit 1.30 (6 tokens of fp16's "),
        ("max_answer_ppl_ratio: 1.2", OVER, "max_answer_ppl_ratio measured 1.22, limit 1.20 (6 tokens of fp16's "),
    ],
)
def test_what_a_method_thinks_of_the_baselines_answers_is_judged(
    load: Load, limit: str, outcome: str, message: str
) -> None:
    budget = load(limit)
    before, after = compared(budget)
    found = verdict(budget, after, before)
    assert found.outcome == outcome
    assert message in found.message
    if "ppl" in limit:
        assert found.measured == pytest.approx(math.exp(0.2))


def test_what_was_thought_of_other_answers_decides_nothing(load: Load) -> None:
    budget = load("min_token_agreement: 1")
    before, after = compared(budget, against="other")
    assert verdict(budget, after, before).message.endswith("compared with other answers than fp16's")
    plain = measured(budget, "nf4", tasks=before.tasks)
    assert "cannot be fed the baseline's answers" in verdict(budget, plain, before).message


def test_agreement_on_a_growing_tasks_answers_is_bounded_as_widely_as_its_look(load: Load) -> None:
    budget = load("min_token_agreement: 84")
    before, after = compared(budget)
    (told,) = after.tasks
    assert told.agreement is not None
    parts = replace(told.agreement, each_tokens=(3, 3), each_agreed=(3, 2), each_lost=(0.2, 1.0))
    task = replace(budget.tasks["gsm8k"], start=10)
    budget = replace(budget, tasks={"gsm8k": task})
    levels = []
    for planned in (2, 1000):
        grown = replace(told, task=task, agreement=parts, planned=planned)
        base = replace(before, tasks=(replace(before.tasks[0], task=task),))
        levels.append(verdict(budget, replace(after, tasks=(grown,)), base).confidence)
    assert levels[0] is not None
    assert levels[1] is not None
    assert levels[0] < levels[1]
