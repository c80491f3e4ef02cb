"""The phases of a measurement on an engine that runs no model: they use nothing but the engine's verbs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated import engine as simulated
from simulated.engine import UNKNOWN, Parrot, Timed

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Level, Load, LoadResult, Served
from pytest_quantbudget.core.measurement import Measurement, Speed, merge
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.core.verdict import SKIPPED, WITHIN
from pytest_quantbudget.engine.base import NotOffered, Tell
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.judge.needs import request
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure.job import Job
from pytest_quantbudget.measure.phases import Phases
from pytest_quantbudget.models import engines

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 8, new_tokens: 4, prompt: Hello}
perplexity: {file: text.txt, window: 8, stride: 4}
tasks: {math: {file: builtin, questions: 40, max_new_tokens: 64}}
methods:
  fp32: {}
  nf4: {budget: {max_math_drop: 5, max_ppl_ratio: 1.01, max_weights: 281 KiB, min_tokens_per_s: 1}}
"""
TEXT = "To be, or not to be " * 30


@dataclass
class Ran:
    budget: Budget
    measurements: dict[str, Measurement]
    messages: list[dict[str, Any]]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What the parrot measures."""
    return run(tmp_path, monkeypatch, Parrot)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Callable[[], Parrot]) -> Ran:
    """A budget, its methods measured by an engine, and the messages that the parent process got."""
    own = replace(engines.SPECS[TRANSFORMERS], module=simulated.__name__)
    monkeypatch.setitem(engines.SPECS, TRANSFORMERS, own)
    monkeypatch.setattr(simulated, "load", lambda *_: engine())
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "b.yaml").write_text(BUDGET)
    budget = load_budget(tmp_path / "b.yaml")
    messages: list[dict[str, Any]] = []
    measurements = {}
    for method in budget.methods:
        sent: list[dict[str, Any]] = []
        pipe: Any = SimpleNamespace(send_bytes=lambda data, sent=sent: sent.append(json.loads(data)))
        needed = request(budget, method, budget.method("nf4").limits)
        Phases(Job(needed, str(tmp_path), str(tmp_path)), pipe, Gpus({})).measure()
        measurements[method.name] = merge([codec.from_builtins(Measurement, m["part"]) for m in sent if "part" in m])
        messages += sent
    return Ran(budget, measurements, messages)


def test_figures_come_from_the_engines_verbs_alone(ran: Ran) -> None:
    own = ran.measurements["nf4"]
    told = (287_264, 0.5, simulated.revision(), {"cpu": "all"})
    assert (own.weights, own.load_time_s, own.revision, own.placement) == told
    assert own.replies == {"Hello": UNKNOWN}
    (task,) = own.tasks
    rows = [json.loads(line) for line in (BUILTIN_DIR / "questions.jsonl").read_text().splitlines()]
    assert [a.text for a in task.answers] == [f" {rows[a.question]['answer']}" for a in task.answers]
    assert all(a.strict_correct and not a.cut_off for a in task.answers)
    (text,) = own.perplexities
    assert text.value == pytest.approx(2)
    assert text.tokens == len(TEXT.split()) - 1
    counts = [m["answered"]["done"] for m in ran.messages if "answered" in m]
    assert counts == 2 * list(range(1, 41))
    assert Parrot.closed > 0


def test_what_the_engine_does_not_offer_is_a_skip_in_its_words_and_costs_nothing_else(
    ran: Ran,
) -> None:
    own = ran.measurements["nf4"]
    words = "parrot cannot time a workload of fixed lengths"
    assert [(f.phase, f.kind, f.message, f.fatal) for f in own.failures] == [("workload", "not offered", words, False)]
    method = ran.budget.method("nf4")
    verdicts = {limit.name: judge(ran.budget, method, limit, ran.measurements) for limit in method.limits}
    assert verdicts["min_tokens_per_s"].outcome == SKIPPED
    assert words in verdicts["min_tokens_per_s"].message
    assert {name for name, verdict in verdicts.items() if verdict.outcome == WITHIN} == {
        *("max_math_drop", "max_ppl_ratio", "max_weights")
    }


def test_tokens_that_compiled_steps_have_changed_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Timed):
        def time(self, workload: Workload) -> Speed:
            return replace(super().time(workload), other_tokens="compiled decoding gives other tokens")

    own = run(tmp_path, monkeypatch, lambda: Other(4)).measurements["nf4"]
    assert own.notes == ("nf4: compiled decoding gives other tokens",)


def test_an_unknown_verb_names_the_engine() -> None:
    with pytest.raises(NotOffered, match="parrot does not give full logits"):
        next(iter(Parrot().logits([([1, 2], 1)])))


def test_requests_that_have_ended_are_told_to_the_parent_process() -> None:
    class Busy(Parrot):
        def load(self, load: Load, tell: Tell = lambda done, total: None) -> LoadResult:
            tell(3, 9)
            return LoadResult(load, (Level("concurrency", 1, 1.0, (Served(0.0, 0.1, "", 1),)),))

    said: list[Any] = []
    phases = Phases.__new__(Phases)
    phases.engine, phases.store = Busy(), None
    phases.job, phases.say = SimpleNamespace(keys=None), lambda **message: said.append(message)  # type: ignore[assignment,method-assign]
    phases.subject = Subject("m", None, "prod", None, {}, None)
    assert phases.put_under_load(Load(8, 4, (1,))).loads[0].levels
    assert said == [{"answered": {"done": 3, "total": 9}}]
