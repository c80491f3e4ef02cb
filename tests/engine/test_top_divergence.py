"""The divergence of an engine that tells only its likeliest tokens: a lower bound, exact where it tells all."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.engine import divergence
from pytest_quantbudget.engine.base import Engine, NotFinite, NotOffered, Sequences
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.measure import ask
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.tasks import prompts

TASK = Task("wordmath", 6, 0, 3, str(BUILTIN_DIR / "questions.jsonl"), 96, 12, "strict", divergence=True)
VOCABULARY = 640


class Told(Transformers):
    """A model of which only the likeliest tokens are told."""

    told = 0

    def logits(self, sequences: Sequences) -> Iterator[tuple[int, object]]:  # type: ignore[override]
        return Engine.logits(self, sequences)

    def tops(self, sequences: Sequences) -> Iterator[list[Mapping[int, float]]]:
        rows: list[list[Mapping[int, float]]] = [[] for _ in sequences]
        for index, block in super().logits(sequences):
            values, ids = block.float().log_softmax(-1).topk(self.told)
            rows[index] += [dict(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
        yield from rows


Kind = TypeVar("Kind", bound=Transformers)


def load(kind: type[Kind], method: str) -> Kind:
    options = {"double_quant": True, "compute_dtype": "bfloat16"} if method == "nf4" else {}
    return kind(loading.load(Subject(str(BUILTIN_DIR), None, method, None, options, None), None))


@pytest.fixture(scope="module")
def pairs() -> divergence.Sample:
    """Prompts and the baseline's answers to them."""
    base = load(Transformers, "fp32")
    answers = ask.run(base, TASK, prompts.sample(TASK), KeptAnswers(TASK))[0].answers
    return divergence.sample(base.tokenizer, TASK, prompts.sample(TASK), answers)


@pytest.fixture(scope="module")
def kept(pairs: divergence.Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the baseline's logits."""
    path = tmp_path_factory.mktemp("divergence") / "fp32-0123.safetensors"
    divergence.keep(load(Transformers, "fp32"), pairs, path)
    return path


def test_with_every_token_told_it_is_the_exact_one(pairs: divergence.Sample, kept: Path) -> None:
    exact = divergence.compare(load(Transformers, "nf4"), pairs, kept)
    engine = load(Told, "nf4")
    engine.told = VOCABULARY
    found = divergence.compare(engine, pairs, kept)
    assert found.mean_kl == pytest.approx(exact.mean_kl, abs=1e-6)
    assert found.max_kl == pytest.approx(exact.max_kl, abs=1e-5)
    assert found.each_kl == pytest.approx(exact.each_kl, abs=1e-4)
    assert (found.same_top, found.each_same, found.each_tokens) == (exact.same_top, exact.each_same, exact.each_tokens)
    assert (found.top, found.mean_rest, found.max_rest) == (0, 0, 0)


def test_with_fewer_told_it_is_lower_and_says_what_was_not_told(pairs: divergence.Sample, kept: Path) -> None:
    exact = divergence.compare(load(Transformers, "nf4"), pairs, kept)
    engine, last = load(Told, "nf4"), 0.0
    for told in (1, 20, 128):
        engine.told = told
        found = divergence.compare(engine, pairs, kept)
        assert last < found.mean_kl <= exact.mean_kl + 1e-6
        assert found.same_top == exact.same_top
        assert found.top == told
        assert 0 < found.mean_rest < found.max_rest < 1
        last = found.mean_kl
    assert found.mean_kl == pytest.approx(exact.mean_kl, rel=0.05)


def test_an_engine_that_tells_neither_is_not_offered(pairs: divergence.Sample, kept: Path) -> None:
    engine = load(Told, "fp32")
    engine.tops = lambda sequences: Engine.tops(engine, sequences)  # type: ignore[method-assign]
    with pytest.raises(NotOffered, match="transformers gives neither full logits nor the likeliest tokens"):
        divergence.compare(engine, pairs, kept)


WEIGHTS = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=12)


@given(WEIGHTS, st.data())
def test_it_never_exceeds_the_divergence_over_all_tokens(
    weights: list[tuple[float, float]], data: st.DataObject
) -> None:
    import torch

    base, own = (torch.tensor(side, dtype=torch.float64) for side in zip(*weights, strict=True))
    exact = float(divergence.divergences(base[None], own[None])[0])
    log_q = own.log_softmax(-1)
    ids = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    found, rest = divergence.top_divergence(base, {i: float(log_q[i]) for i in ids})
    assert 0 <= found <= exact + 1e-9 * max(1.0, exact)
    assert rest == pytest.approx(float(sum(p for i, p in enumerate(base.softmax(-1)) if i not in ids)), abs=1e-12)
    all_told, nothing = divergence.top_divergence(base, {i: float(log_q[i]) for i in range(len(weights))})
    assert all_told == pytest.approx(exact, abs=1e-9)
    assert nothing == 0


def test_a_rest_that_rounding_made_too_small_does_not_raise_the_bound() -> None:
    import torch

    # The engine's probabilities sum to 1 and a little; the baseline leaves 1e-9 to the third token.
    base = torch.tensor([0.5, 0.5 - 1e-9, 1e-9], dtype=torch.float64).log()
    told = {0: math.log(0.5) + 1e-7, 1: math.log(0.5)}
    found, rest = divergence.top_divergence(base, told)
    assert found == 0
    assert rest == pytest.approx(1e-9)


def test_what_is_no_number_and_what_is_no_token_is_refused(pairs: divergence.Sample, kept: Path) -> None:
    import torch

    with pytest.raises(NotFinite, match="NaN"):
        divergence.top_divergence(torch.zeros(3), {0: math.nan})
    engine = load(Told, "fp32")
    rows: Any = [[{VOCABULARY: 0.0}] * len(answer) for _, answer in pairs]
    engine.tops = lambda sequences: iter(rows)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="knows token 640, and the baseline has 640 tokens"):
        divergence.compare(engine, pairs, kept)
