"""Worded arithmetic problems for the built-in model, written by a program.

A problem is one of fourteen short stories (``templates.py``) that take two to four steps of integer arithmetic. It is
named by its template and its numbers: the people and the things in it do not count. A hash of that name decides
whether the problem belongs to the training or to the test split, so a training problem told of other people can never
turn up as a test problem.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from parts import LARGEST, Draft, Step, divided, factors, minus, plus, times
from templates import TEMPLATES, running_count

Split = Literal["train", "test"]

TEST_SHARE = 10  # one problem in this many belongs to the test split


@dataclass(frozen=True)
class Problem:
    """A question and its worked answer, which ends in ``#### final``; ``kind`` is the template's name."""

    question: str
    answer: str
    final: int
    kind: str


def split_of(kind: str, numbers: tuple[int, ...]) -> Split:
    """The split of a problem, from its template and its numbers alone."""
    digest = hashlib.sha256(f"{kind} {numbers}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"


def drafts(rng: Random, split: Split) -> Iterator[tuple[str, Draft]]:
    """Endless pairs of kind and draft from one split; the running count, the most varied, is drawn twice as often."""
    choices = [running_count, *TEMPLATES]
    while True:
        write = rng.choice(choices)
        draft = write(rng)
        if split_of(write.__name__, draft.numbers) == split:
            yield write.__name__, draft


def finished(kind: str, draft: Draft) -> Problem:
    """Write out the answer of a draft."""
    final = draft.steps[-1].value
    working = " ".join(map(str, draft.steps))
    return Problem(draft.question, f"{working} #### {final}", final, kind)


def problems(rng: Random, split: Split) -> Iterator[Problem]:
    """Endless problems of one split; repeats are possible."""
    return (finished(kind, draft) for kind, draft in drafts(rng, split))


def unique_problems(rng: Random, split: Split, count: int) -> list[Problem]:
    """Problems of one split of which no two share both template and numbers."""
    found: dict[tuple[str, tuple[int, ...]], Problem] = {}
    for kind, draft in drafts(rng, split):
        found.setdefault((kind, draft.numbers), finished(kind, draft))
        if len(found) == count:
            break
    return list(found.values())


def prompt(problem: Problem) -> str:
    """The text that the model is asked to continue."""
    return f"Question: {problem.question}\nAnswer:"


def drill(rng: Random) -> Step:
    """One line of bare arithmetic in the range that the problems need."""
    sort = rng.choices((plus, minus, times, divided), weights=(6, 6, 5, 3))[0]
    if sort is plus:
        pair = rng.randint(1, rng.choice((99, 800))), rng.randint(1, rng.choice((99, 400)))
        return plus(*(pair if rng.random() < 0.7 else pair[::-1]), "")
    if sort is minus:
        start = rng.randint(2, rng.choice((99, LARGEST)))
        return minus(start, rng.randint(1, start - 1), "")
    small, large = factors(rng)
    return times(small, large, "") if sort is times else divided(small * large, small, "")
