"""Times that are reckoned from sizes span those that were measured."""

from pathlib import Path

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Reply, Subject, Task, Text, Workload
from pytest_quantbudget.models.estimate.duration import Reckoned, Span, assumed

WORKLOAD = Workload(512, 64, 1, 3)
SMALL = Workload(128, 32, 1, 5)


def reckoned(model: str, kind: str, *, on_gpu: bool) -> Reckoned:
    subject = Subject(model, None, kind, None, {}, None)
    found = Reckoned.of(subject, WORKLOAD, {"wordmath": 1300}, on_gpu=on_gpu)
    assert found is not None
    return found


# Medians of tokens/s and of the first token: an H200 (2026-11-26), and the built-in model on two cores (2026-11-27).
@pytest.mark.parametrize(
    ("model", "kind", "on_gpu", "workload", "tokens_per_s", "first_s"),
    [
        ("Qwen/Qwen3-8B", "fp16", True, WORKLOAD, 33.7, 0.0274),
        ("Qwen/Qwen3-8B", "int8", True, WORKLOAD, 12.3, 0.109),
        ("Qwen/Qwen3-8B", "nf4", True, WORKLOAD, 27.3, 0.0517),
        ("Qwen/Qwen3-8B", "awq-int4", True, WORKLOAD, 24.6, 0.0406),
        (str(BUILTIN_DIR), "fp32", False, SMALL, 377, 0.00975),
        (str(BUILTIN_DIR), "int8", False, SMALL, 106, 0.0275),
        (str(BUILTIN_DIR), "nf4", False, SMALL, 98.5, 0.0169),
        (str(BUILTIN_DIR), "awq-int4", False, SMALL, 178, 0.0109),
    ],
)
def test_workloads_that_were_measured_lie_in_the_span(
    model: str, kind: str, on_gpu: bool, workload: Workload, tokens_per_s: float, first_s: float
) -> None:
    span = reckoned(model, kind, on_gpu=on_gpu).part(workload)
    took = workload.repeats * (first_s + (workload.new_tokens - 1) / tokens_per_s)
    assert span is not None
    assert span.low < took < span.high


def test_questions_that_were_asked_lie_in_the_span() -> None:
    task = Task("wordmath", None, 0, 0, "/q.jsonl", 96, 500, "strict")
    span = reckoned(str(BUILTIN_DIR), "fp32", on_gpu=False).part(task)
    assert span is not None
    # 8.0 s of 1,300 questions (docs/results/builtin.md).
    assert span.low < 8.0 < span.high


def test_what_cannot_be_reckoned_is_not_known(tmp_path: Path) -> None:
    found = reckoned(str(BUILTIN_DIR), "fp32", on_gpu=False)
    unknown = Task("other", None, 0, 0, "/q.jsonl", 96, None, "strict")
    assert found.part(unknown) is None
    assert found.part(Load(512, 3, (2,), (), 2, 4, 1, 60.0)) is None
    assert found.part(Reply("Once")) is not None
    (tmp_path / "t.txt").write_text("word " * 1000)
    text = found.part(Text(str(tmp_path / "t.txt"), 512, 256))
    assert text is not None
    assert text.low > 0
    assert Reckoned.of(Subject("org/none", None, "fp32", None, {}, None), WORKLOAD, {}, on_gpu=False) is None


def test_spans_are_added_and_told() -> None:
    assert (Span(1, 2) + Span(0.2, 100)).words == "1 s to 2 min"
    assert Span(0, 0.2).words == "1 s"
    assert Span(120, 7200).words == "2 min to 2.0 h"


def test_the_rates_are_told() -> None:
    assert assumed(on_gpu=True).startswith("assumed, for a GPU: 0.3 to 3 ms a layer and token, 200 to 3,000 GB/s of me")
    assert "a CPU" in assumed(on_gpu=False)
