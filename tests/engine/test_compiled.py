"""Compiled decoding of a workload: the same tokens as eager decoding, and words where it cannot be had."""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.hf import generation, placement, speed
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf.compiled import Compiled, NotCompiled, difference
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.machine.memory_phases import MemoryByPhase

pytestmark = pytest.mark.model
WORKLOAD = Workload(prompt_tokens=24, new_tokens=8, batch_size=2, repeats=2, compile=True)
EAGER = replace(WORKLOAD, compile=False)


def loaded(method: str = "fp32") -> Any:
    model = loading.load(Subject(str(BUILTIN_DIR), None, method, None, {}, None), None).model
    generation.settle(model)
    return model


@pytest.fixture
def model() -> Iterator[Any]:
    yield loaded()
    torch._dynamo.reset()


def tokens(model: Any, workload: Workload) -> torch.Tensor:
    ids = speed.random_prompts(model, workload)
    found: torch.Tensor = speed._run(model, ids, workload, MemoryByPhase(Gpus({}), on_gpu=False)).tokens
    return found


def test_compiled_steps_give_the_tokens_of_eager_ones_and_their_time_is_kept_apart(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[bool, int, torch.Tensor]] = []
    run = speed._run

    def watched(*arguments: Any, **more: Any) -> Any:
        timing = run(*arguments, **more)
        graphs = counters["stats"]["unique_graphs"]
        runs.append((any(isinstance(each, Compiled) for each in arguments), graphs, timing.tokens))
        return timing

    monkeypatch.setattr(speed, "_run", watched)
    before = counters["stats"]["unique_graphs"]
    started = time.perf_counter()
    found = speed.measure(model, WORKLOAD, Gpus({}))
    took = time.perf_counter() - started
    assert (found.decode, found.other_tokens, found.opaque_layers) == ("compiled", "", ())
    assert found.workload == WORKLOAD
    # The first run is eager, the next compiles, and none after it does.
    assert [compiled for compiled, _, _ in runs] == [False, *[True] * (len(runs) - 1)]
    assert [graphs - before for _, graphs, _ in runs] == [0, *[1] * (len(runs) - 1)]
    assert all(torch.equal(ids, runs[0][2]) for _, _, ids in runs)
    assert len(runs) == 1 + 2 + len(found.warmup_s) + WORKLOAD.repeats
    assert found.compile_s is not None
    assert sum((found.compile_s, *found.warmup_s, *found.ttft_s, *found.decode_s)) < took
    # What follows is eager again, and has no static cache.
    assert vars(model).keys().isdisjoint({"_compiled_call", "_valid_auto_compile_criteria"})
    assert torch.equal(tokens(model, EAGER), runs[0][2])
    eager = speed.measure(model, EAGER, Gpus({}))
    assert (eager.decode, eager.compile_s) == ("eager", None)


class Chatty(torch.nn.Module):
    """A layer that calls back into Python in a way that torch cannot trace."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_layer_that_cannot_be_compiled_is_named_and_nothing_is_timed_instead(model: Any) -> None:
    model.model.layers[1].mlp = Chatty(model.model.layers[1].mlp)
    with pytest.raises(
        NotCompiled,
        match=r"^the workload says `compile: true`, and a decoding step cannot be compiled as a whole at Chatty ",
    ) as caught:
        speed.measure(model, WORKLOAD, Gpus({}))
    assert "(test_compiled.py:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert vars(model).keys().isdisjoint({"_compiled_call", "_valid_auto_compile_criteria"})


class Untraceable(torch.nn.Module):
    """A linear layer whose kernel torch cannot trace, as some of quantized layers."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inner, self.out_features = inner, inner.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_linear_layer_that_torch_cannot_trace_is_one_operation_of_the_step(model: Any) -> None:
    plain = tokens(model, EAGER)
    for layer in model.model.layers:
        layer.mlp.down_proj = Untraceable(layer.mlp.down_proj)
        layer.mlp.up_proj = Untraceable(layer.mlp.up_proj)
    hooked = model.model.layers[0].mlp.up_proj
    hooked.forward = own = hooked.forward  # as accelerate's hooks leave it
    found = speed.measure(model, WORKLOAD, Gpus({}))
    assert (found.decode, found.opaque_layers, found.other_tokens) == ("compiled", ("Untraceable",), "")
    assert [vars(layer.mlp.down_proj).get("forward") for layer in model.model.layers] == [None] * 3
    assert vars(hooked)["forward"] is own
    assert torch.equal(tokens(model, EAGER), plain)


def test_without_a_compiler_that_is_what_is_missing(model: Any) -> None:
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    absent = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with absent, fresh_cache(), pytest.raises(NotCompiled) as caught:
        speed.measure(model, WORKLOAD, Gpus({}))
    assert str(caught.value) == (
        "the workload says `compile: true`, and torch needs a C++ compiler (g++, or the one in CXX) to compile "
        "decoding, and finds none that works"
    )


def test_a_model_that_transformers_leaves_eager_is_not_timed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "get_compiled_call", lambda self, config: self.__call__)
    with pytest.raises(NotCompiled, match="transformers left Qwen3ForCausalLM eager, though it was told to compile it"):
        speed.measure(model, WORKLOAD, Gpus({}))


def test_a_model_without_a_static_cache_is_not_timed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "_supports_default_dynamic_cache", lambda self: False)
    with pytest.raises(NotCompiled, match="transformers has no static cache for Qwen3ForCausalLM"):
        speed.measure(model, WORKLOAD, Gpus({}))


def test_an_error_that_is_no_matter_of_compiling_stays_what_it_is(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(Compiled, "empty_cache", broken)
    with pytest.raises(ValueError, match=r"^broken$"):
        speed.measure(model, WORKLOAD, Gpus({}))


@pytest.mark.parametrize("news", [[True, True, True], [False, True]], ids=["never done", "while timed"])
def test_steps_that_are_compiled_anew_are_not_timed(
    model: Any, monkeypatch: pytest.MonkeyPatch, news: list[bool]
) -> None:
    told = iter(news)
    monkeypatch.setattr(Compiled, "compiles", lambda self: next(told))
    monkeypatch.setattr(speed, "_run", fixed_run)
    with pytest.raises(NotCompiled, match=r"compiled (steps )?anew"):
        speed.measure(model, WORKLOAD, Gpus({}))
    assert next(told, None) is None


def fixed_run(model: Any, ids: torch.Tensor, *_: Any, **__: Any) -> speed.Timing:
    return speed.Timing(0.1, 0.2, None, None, tokens=ids)


def test_compiled_steps_that_change_the_answers_are_not_timed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tokens(model, EAGER)
    wrong = right.clone()
    wrong[1, 30] = (wrong[1, 30] + 1) % 600

    def run(*arguments: Any) -> speed.Timing:
        compiled = any(isinstance(each, Compiled) for each in arguments)
        return speed.Timing(0.1, 0.2, None, None, tokens=wrong if compiled else right)

    monkeypatch.setattr(Compiled, "compiles", lambda self: False)
    monkeypatch.setattr(speed, "_run", run)
    with pytest.raises(NotCompiled, match=r"compiled decoding changes the answers: token 7 of sequence 2 is another"):
        speed.measure(model, WORKLOAD, Gpus({}))


def test_cuda_graphs_that_torch_left_out_are_no_compiled_decoding(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "outside", lambda model: {})
    with Compiled(model, WORKLOAD, on_gpu=True) as steps:
        monkeypatch.setitem(counters, "stats", counters["stats"] | {"unique_graphs": steps.graphs + 1})
        assert steps.compiles()
        assert not steps.compiles()
        monkeypatch.setitem(counters, "inductor", {"cudagraph_skips": steps.skipped + 1})
        with pytest.raises(NotCompiled, match="torch left CUDA graphs out of the compiled steps"):
            steps.compiles()


def test_an_offloaded_model_is_not_compiled(model: Any) -> None:
    with (
        pytest.raises(NotCompiled, match=r"and a GPU is available, but these layers were offloaded"),
        Compiled(model, WORKLOAD, on_gpu=True),
    ):
        pass


def near(gap: float, largest: float = 8.0) -> Any:
    """A model in float16 of which token 1 is the next, and token 2 by `gap` behind it."""
    logits = torch.zeros(1, 1, 4, dtype=torch.float16)
    logits[..., 1], logits[..., 2] = largest, largest - gap
    return lambda input_ids: SimpleNamespace(logits=logits.expand(1, input_ids.shape[1], 4))


def test_near_ties_that_turn_are_told_and_other_changes_are_failures() -> None:
    eager = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 3, 3]])
    other = torch.tensor([[0, 0, 1, 2], [0, 0, 2, 0], [0, 0, 3, 3]])
    assert difference(near(0.03), eager, eager.clone(), 2) == ""
    assert difference(near(0.03), eager, other, 2) == (
        "compiled decoding gives other tokens than eager decoding in 2 of 3 sequences of the workload, from token 1 "
        "on: near-ties that rounding turned"
    )
    with pytest.raises(NotCompiled, match=r"token 2 of sequence 1 is another, whose logit is 2 lower where"):
        difference(near(2.0), eager, other, 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bf16", "int8", "nf4"])
def test_every_method_is_compiled_or_says_why(method: str) -> None:
    found = speed.measure(loaded(method), WORKLOAD, Gpus({}))
    assert found.decode == "compiled"
    assert found.other_tokens == "" or "near-ties that rounding turned" in found.other_tokens
