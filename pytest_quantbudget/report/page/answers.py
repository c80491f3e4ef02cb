"""What the browser of questions is given: every answer beside the baseline's, each text once, as JSON in the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core.answers import Answer, counterparts
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.safetext import visible
from pytest_quantbudget.report.document import BudgetReport
from pytest_quantbudget.report.page.questions import asked
from pytest_quantbudget.tasks.questions import reference

LONGEST = 20_000  # characters of one text
MOST = 24_000_000  # characters of all texts of a page
# What became of a question: right both times, right to wrong, wrong to right, wrong both times; and where there is no
# answer to compare with, right or wrong.
KEPT, LOST, GAINED, WRONG, RIGHT_ALONE, WRONG_ALONE = range(6)
NO_TEXT, LEFT_OUT = -1, -2
# What would end the element that the data stand in, or a line of JavaScript.
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Flips:
    """What became of a method's answers to a task.

    `reworded` are those that have another text than the baseline's, and the same outcome.
    """

    task: str
    method: str
    asked: int
    lost: int
    gained: int
    wrong: int
    reworded: int


@dataclass(frozen=True)
class _Pair:
    """A method's answer, the baseline's to the same question where there is one, and what became of it."""

    own: Answer
    base: Answer | None
    outcome: int

    @property
    def reworded(self) -> bool:
        return self.outcome in (KEPT, WRONG) and self.base is not None and self.base.text != self.own.text


class Texts:
    """All texts of a page, each once; a text is known by its number."""

    def __init__(self, most: int = MOST) -> None:
        self.numbers: dict[str, int] = {}
        self.room = most
        self.left_out = 0

    def number(self, text: str) -> int:
        """The number of a text, which is put down where there is room; LEFT_OUT where there is none."""
        cut = len(text) - LONGEST
        if cut > 0:
            text = f"{text[:LONGEST]}\n[{cut:,} more characters]"
        text = visible(text, lines=True)
        if text not in self.numbers:
            if len(text) > self.room:
                self.left_out += 1
                return LEFT_OUT
            self.numbers[text] = len(self.numbers)
            self.room -= len(text)
        return self.numbers[text]


def flips(budget: BudgetReport) -> list[Flips]:
    """Of each task and method how many answers changed sides."""
    found = []
    for task in budget.tasks:
        for name, pairs in _pairs(budget, task).items():
            counts = Counter(pair.outcome for pair in pairs)
            wrong, reworded = counts[WRONG] + counts[WRONG_ALONE], sum(pair.reworded for pair in pairs)
            found.append(Flips(task.name, name, len(pairs), counts[LOST], counts[GAINED], wrong, reworded))
    return found


def data(budgets: Sequence[BudgetReport], texts: Texts) -> list[dict[str, Any]]:
    """The rows of all budgets, whose texts are numbers of `texts`."""
    pairs = [{task.name: _pairs(budget, task) for task in budget.tasks} for budget in budgets]
    for budget, of in zip(budgets, pairs, strict=True):
        for task in budget.tasks:
            for pair in _all(of[task.name]):
                # What flipped comes first, so that it has its texts where there is no room for all.
                if pair.outcome in (LOST, GAINED):
                    _row(pair, texts, strict=task.extract == "strict")
    return [_of_budget(*each, texts) for each in zip(budgets, pairs, strict=True)]


def as_json(data: object) -> str:
    """JSON that may stand in an element `script`: nothing in it ends that, or begins a comment there."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character, instead in ESCAPED.items():
        text = text.replace(character, instead)
    return text


def _of_budget(budget: BudgetReport, pairs: Mapping[str, Mapping[str, list[_Pair]]], texts: Texts) -> dict[str, Any]:
    names = [method.name for method in budget.methods]
    tasks = []
    for task in budget.tasks:
        of_task, strict = pairs[task.name], task.extract == "strict"
        known = asked(task, [r for record in budget.measured.values() if (r := record.task(task)) is not None])
        numbers = sorted({pair.own.question for pair in _all(of_task)} & known.by_number.keys())
        put = [(number, known.by_number[number]) for number in numbers]
        tasks.append(
            {
                "name": visible(task.name),
                "why": visible(known.why),
                "asked": {number: texts.number(question.question) for number, question in put},
                "wanted": {number: texts.number(reference(question.answer)) for number, question in put},
                "rows": {
                    names.index(name): [_row(pair, texts, strict=strict) for pair in found]
                    for name, found in of_task.items()
                },
            }
        )
    return {"methods": [*map(visible, names)], "baseline": visible(budget.baseline or ""), "tasks": tasks}


def _all(pairs: Mapping[str, list[_Pair]]) -> Iterator[_Pair]:
    return (pair for found in pairs.values() for pair in found)


def _row(pair: _Pair, texts: Texts, *, strict: bool) -> list[int]:
    """A question: number, outcome, then of the baseline's answer and the method's: text, what was read, truncated."""
    told = [pair.own.question, pair.outcome]
    for answer in (pair.base, pair.own):
        if answer is None:
            told += [NO_TEXT, NO_TEXT, 0]
        else:
            read = answer.strict if strict else answer.flexible
            told += [texts.number(answer.text), texts.number(read), int(answer.cut_off)]
    return told


def _pairs(budget: BudgetReport, task: Task) -> dict[str, list[_Pair]]:
    """The answers of each method; the baseline's only where it is the only one that was asked."""
    results = {name: result for name, record in budget.measured.items() if (result := record.task(task)) is not None}
    compared = len(results) > 1 and budget.baseline is not None and results.pop(budget.baseline, None) is not None
    found: dict[str, list[_Pair]] = {}
    for name, after in results.items():
        # Each method goes with the baseline of its own run.
        beside = budget.measured_beside(next(method for method in budget.methods if method.name == name))
        before = beside[budget.baseline].task(task) if compared and budget.baseline is not None else None
        bases = counterparts(before, after) if before is not None else [None] * len(after.answers)
        found[name] = []
        for base, own, right in zip(bases, after.answers, after.correct, strict=True):
            if base is None or before is None:
                outcome = RIGHT_ALONE if right else WRONG_ALONE
            else:
                (was,) = before.right((base,))
                outcome = (KEPT if right else LOST) if was else (GAINED if right else WRONG)
            found[name].append(_Pair(own, base, outcome))
    return found
