"""tools/qat.py: no test question is trained on, the rounding trained for is the one stored, and a budget judges it."""

import json
import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import qat

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject


def told_of_nobody(question: str) -> str:
    """A question without the people and things in it: its template and its numbers."""
    import parts

    names = [name for name, _ in parts.PEOPLE]
    words = "|".join((*names, *parts.THINGS, *parts.CONTAINERS, "he", "she", "He", "She"))
    return re.sub(rf"\b({words})\b", "_", question)


@pytest.mark.model
def test_no_test_question_is_among_the_training_problems() -> None:
    import problems

    lines = (BUILTIN_DIR / "questions.jsonl").read_text().splitlines()
    asked = {told_of_nobody(json.loads(line)["question"]) for line in lines}
    drawn = {
        told_of_nobody(problem.question) for problem in islice(problems.problems(Random(qat.SEED), "train"), 5_000)
    }
    assert len(asked) > 1_900
    assert len(drawn) > 4_000
    assert not asked & drawn
    # The same comparison finds what is there: problems of the other split, which the questions are.
    others = {told_of_nobody(problem.question) for problem in islice(problems.problems(Random(12), "test"), 2_000)}
    assert asked & others


@pytest.mark.model
def test_what_was_trained_for_is_what_is_saved_and_judged(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pytest_quantbudget.engine.hf import load

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model.eval()(input_ids=torch.arange(20, 60)[None]).logits

    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_DIR)
    model: Any = AutoModelForCausalLM.from_pretrained(BUILTIN_DIR, dtype=torch.float32)
    config = qat.rounding(3, 64)
    made = qat.prepared(model, config)
    before = logits(made)
    qat.train(made, tokenizer, 1, 1, 0.1)
    trained = logits(made)
    qat.convert(made, config)
    qat.save(made, tokenizer, config, tmp_path / "int3-qat")

    mine = Subject(str(BUILTIN_DIR), None, "mine", str(tmp_path / "int3-qat"), {}, None, kind="torchao-intx")
    ready = load.load(mine, None)
    # Trained through the rounding, and what it computed with then is what was stored.
    assert (trained - logits(ready.model)).abs().max() < 1e-3 < (trained - before).abs().max()
    # Plain rounding of what was not trained is the same rounding, and the model itself is as it was.
    assert (before - logits(qat.rounded(model, config))).abs().max() < 1e-3 < (before - logits(model)).abs().max()
    assert ready.description.made_with == {"compute_dtype": "float32", "bits": 3, "group_size": 64}
    told = {layers.bits for layers in ready.description.receipt.layers if layers.kind == "linear"}
    assert told == {8}  # a byte each, whatever the values need


@pytest.mark.model
def test_its_budget_is_one(tmp_path: Path) -> None:
    for name in ("int3-qat", "int3-tuned"):
        (tmp_path / name).mkdir()
    path = tmp_path / "qat.yaml"
    path.write_text(qat.budget([3], 64))
    read = load_budget(path)
    assert [method.name for method in read.methods] == ["fp32", "int3", "int3-tuned", "int3-qat"]
    assert {method.subject.kind for method in read.methods} == {"fp32", "torchao-intx"}
    assert all(method.limits for method in read.methods)
