"""Asking questions of a loaded model, against transformers' own plain path."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.answers import INVALID, TaskResult
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task
from pytest_quantbudget.engine.hf import load, ragged_cache, speed
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.measure import ask
from pytest_quantbudget.measure.kept_answers import KeptAnswers
from pytest_quantbudget.tasks import prompts, questions

TASK = Task("wordmath", 40, 0, 3, str(BUILTIN_DIR / "questions.jsonl"), 96, 16, "strict")


@pytest.fixture(scope="module")
def loaded() -> Transformers:
    """The built-in model in fp32, in this process."""
    return Transformers(load.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))


def answered(engine: Transformers, task: Task) -> TaskResult:
    """All answers to a task."""
    return ask.run(engine, task, prompts.sample(task), KeptAnswers(task))[0]


def test_batched_answers_equal_those_of_plain_generate_one_by_one(loaded: Transformers) -> None:
    import torch

    result = answered(loaded, TASK)
    pool = questions.read_file(Path(str(TASK.file)))
    for answer in result.answers:
        inputs = loaded.tokenizer(f"Question: {pool[answer.question].question}\nAnswer:", return_tensors="pt")
        with torch.inference_mode():
            output = loaded.model.generate(**inputs, max_new_tokens=96, do_sample=False)
        text = loaded.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.text == text
        assert answer.strict_correct == (text.split("#### ")[-1] == pool[answer.question].answer.split("#### ")[-1])
    assert result.accuracy > 80
    assert [a.question for a in result.answers] == [each.question.index for each in prompts.sample(TASK)]


def test_answers_that_are_cut_off_or_absent_are_counted_apart(loaded: Transformers) -> None:
    result = answered(loaded, replace(TASK, max_new_tokens=4))
    assert result.cut_off == len(result.answers) == 40
    assert result.absent == 40
    assert {a.strict for a in result.answers} == {INVALID}
    assert {a.tokens for a in result.answers} == {4}
    assert result.accuracy == 0


def test_worked_examples_stand_in_front_and_are_never_asked(loaded: Transformers) -> None:
    task = replace(TASK, questions=3, shots=2, fewshot="fixed")
    asked = prompts.sample(task)
    text = prompts.Prompter(loaded.tokenizer, task).text(asked[0])
    assert text.count("Question: ") == 3
    assert text.endswith(f"{asked[0].question.question}\nAnswer:")
    assert {each.shots for each in asked} == {asked[0].shots}
    assert {each.question.question for each in asked}.isdisjoint({q for q, _ in asked[0].shots})


def test_answers_to_other_prompts_are_neither_drafts_nor_kept(
    loaded: Transformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those to a template that has changed, or that has shown another day."""
    task = replace(TASK, questions=3)
    asked = prompts.sample(task)
    first = ask.run(loaded, task, asked, KeptAnswers(task))[0]
    other = replace(first, answers=tuple(replace(answer, prompt="other") for answer in first.answers))
    # What another run has answered may stand in another order, with more beside it, under other numbers.
    moved = [replace(answer, question=90 - answer.question) for answer in reversed(first.answers)]
    moved.append(replace(moved[0], prompt="another"))
    elsewhere, unlike = replace(first, answers=tuple(moved)), replace(first, tokenizer="another")
    plain = ask.run(loaded, task, asked, KeptAnswers(task), first)[0].agreement
    again = ask.run(loaded, task, asked, KeptAnswers(task), elsewhere)[0].agreement
    assert plain is not None
    assert again is not None
    assert (again.each_tokens, again.agreed) == (plain.each_tokens, plain.agreed)
    assert ask.run(loaded, task, asked, KeptAnswers(task), unlike)[0].agreement is None
    for given, same in ((first, True), (other, False)):
        result = ask.run(loaded, task, asked, KeptAnswers(task), given)[0]
        assert (result.agreement is not None) == same
        kept = KeptAnswers(task)
        monkeypatch.setattr(kept, "earlier", lambda part=given: iter((part,)))
        result = ask.run(loaded, task, asked, kept)[0]
        assert result.resumed == (3 if same else 0)
        assert [answer.prompt for answer in result.answers] == [answer.prompt for answer in first.answers]


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    loaded: Transformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    whole = answered(loaded, TASK)
    feed = ragged_cache.Rows.feed

    def short(self: ragged_cache.Rows, tokens: Any, **more: Any) -> Any:
        if len(self.lengths) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return feed(self, tokens, **more)

    monkeypatch.setattr(ragged_cache.Rows, "feed", short)
    result, notes = ask.run(loaded, TASK, prompts.sample(TASK), KeptAnswers(TASK))
    assert notes == ["out of memory with 16 questions of wordmath at once; 4 were answered at once"]
    assert [a.text for a in result.answers] == [a.text for a in whole.answers]


def test_a_model_that_the_fast_way_would_misread_is_answered_by_generate_and_that_is_told(
    loaded: Transformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = answered(loaded, TASK)
    monkeypatch.setattr(loaded.model.config, "sliding_window", 64)
    monkeypatch.setattr(loaded.model.config, "use_sliding_window", True)
    slow, notes = ask.run(loaded, TASK, prompts.sample(TASK), KeptAnswers(TASK), fast)
    assert notes == [
        "answers to wordmath come from transformers' generate, and without drafts: "
        "its layers are full_attention, with a window of 64"
    ]
    assert slow.agreement is None
    assert [a.text for a in slow.answers] == [a.text for a in fast.answers]
    assert [a.ids for a in slow.answers] == [a.ids for a in fast.answers]


def test_the_sample_is_random_and_the_same_for_a_seed() -> None:
    pool = questions.read_file(BUILTIN_DIR / "questions.jsonl")
    first, again = (questions.draw(pool, 50, 2, 1) for _ in range(2))
    assert first == again
    assert first[0] != questions.draw(pool, 50, 2, 2)[0]
    assert [q.index for q in first[0]] != list(range(50))


def test_the_hub_path_reads_a_set_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(5)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setitem(questions.HUB_SETS, "gsm8k", (str(tmp_path),))
    asked = prompts.sample(replace(TASK, name="gsm8k", file=None, questions=3, shots=2))
    assert all(each.question.question.startswith("test") for each in asked)
    assert all(q.startswith("train") for each in asked for q, _ in each.shots)
    assert [(each.question.question, len(each.shots)) for each in asked if len(each.shots) != 2] == []
    assert len(asked) == 3


def test_the_real_test_set_is_read_and_drawn_from(gsm8k: Path) -> None:
    pool = questions.read_file(gsm8k)
    assert len(pool) == 1319
    asked, shots = questions.draw(pool, None, 5, 0)
    assert len(asked) == 1314
    assert len(shots) == 5


def test_a_workload_has_fixed_lengths_whatever_the_model_would_say(loaded: Transformers) -> None:
    from pytest_quantbudget.core.request import Workload

    workload = Workload(prompt_tokens=12, new_tokens=9, batch_size=3, repeats=2)
    ids = speed.random_prompts(loaded.model, workload)
    assert ids.shape == (3, 12)
    result = speed.measure(loaded.model, workload)
    assert len(result.ttft_s) == len(result.decode_s) == 2
    assert result.tokens_per_s[0] == pytest.approx(3 * 8 / result.decode_s[0])
    with pytest.raises(ValueError, match="needs 600 tokens and the model has 512 positions"):
        speed.measure(loaded.model, replace(workload, prompt_tokens=591))
