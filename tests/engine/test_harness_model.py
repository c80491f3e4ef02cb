"""Tasks of lm-evaluation-harness on any engine: through the verbs that all of them have."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness_room import WORDS, furnished

from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.engine.base import NotOffered, Scored
from pytest_quantbudget.engine.hf import load
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.engine.out_of_memory import Batching

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with two task files of our own and their questions."""
    return furnished(tmp_path)


@pytest.fixture(scope="module")
def loaded() -> Transformers:
    """The built-in model in fp32, in this process."""
    return Transformers(load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))


def of(room: Path, name: str) -> Task:
    return Task("t", None, None, 0, None, 0, None, "strict", harness=str(room / name))


def run(loaded: Transformers, task: Task) -> TaskResult:
    from pytest_quantbudget.engine import harness

    return harness.run(loaded, task, Batching(task.batch_size or 0))


class ByVerbs(Transformers):
    """The same model, of which the library sees no more than of any engine."""

    def harness_model(self, task: Task, batch_size: int) -> Any:
        return None


@pytest.mark.parametrize("name", ["words.yaml", "choices.yaml"])
def test_any_engine_answers_as_the_librarys_own_class_does(loaded: Transformers, room: Path, name: str) -> None:
    other = ByVerbs.__new__(ByVerbs)
    vars(other).update(vars(loaded))
    task = of(room, name)
    told, own = run(loaded, task), run(other, task)
    assert [answer.text for answer in own.answers] == [answer.text for answer in told.answers]
    assert [answer.strict_correct for answer in own.answers] == [answer.strict_correct for answer in told.answers]
    assert own.metric == told.metric


class Words:
    """A tokenizer whose tokens are words, and which puts a start token in front."""

    bos_token, bos_token_id, eos_token_id = "<s>", 1, 2

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [1 if word == "<s>" else 10 for word in text.split()]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


class Short:
    """An engine of five positions, which notes what it has to score."""

    name, tokenizer = "short", Words()
    seen: Sequence[tuple[Sequence[int], int]] = ()

    def describe(self) -> Any:
        return SimpleNamespace(positions=5, end_tokens=())

    def score(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Iterator[list[Scored]]:
        self.seen = sequences
        return iter([[Scored(-0.5, True)] * (len(ids) - first) for ids, first in sequences])


def test_of_what_is_too_long_the_beginning_goes_and_a_start_token_stands_there_once(room: Path) -> None:
    from pytest_quantbudget.engine.harness_model import EngineModel

    engine: Any = Short()
    model = EngineModel(engine, of(room, "words.yaml"), 1)
    assert [model.tok_encode(text) for text in ("a b", "<s> a b")] == [[1, 10, 10]] * 2
    assert model._loglikelihood_tokens([(None, [1, 2, 3, 4], [5, 6]), (None, [1], [5])]) == [(-1.0, True), (-0.5, True)]
    assert engine.seen == [([2, 3, 4, 5, 6], 3), ([1, 5], 1)]


def test_what_an_engine_cannot_do_for_the_harness_is_not_offered(loaded: Transformers, room: Path) -> None:
    other = ByVerbs.__new__(ByVerbs)
    vars(other).update(vars(loaded))
    (room / "words.yaml").write_text(WORDS.replace("do_sample: false", "do_sample: true, temperature: 1.0"))
    with pytest.raises(NotOffered, match="transformers answers greedily, and the task samples"):
        run(other, of(room, "words.yaml"))
