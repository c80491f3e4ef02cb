"""Where a model lies, and one that was left outside of its GPU in silence: its memory limits fail."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from simulated.cuda import Cuda
from simulated.driver import Driver

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import codec
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import (
    Measurement,
    merge,
)
from pytest_quantbudget.core.request import NO_TRUST
from pytest_quantbudget.core.verdict import (
    FAILED,
    OVER,
    WITHIN,
    Verdict,
)
from pytest_quantbudget.engine.hf import placement
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.judge.needs import request as request_for
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure import job as child
from pytest_quantbudget.measure import keys as identity
from pytest_quantbudget.measure import phases
from pytest_quantbudget.models import methods

BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 8, new_tokens: 4, repeats: 2}
methods:
  fp32: {budget: {max_vram: 8 GiB}}
  bf16: {budget: {max_vram: 8 GiB, max_vram_ratio: 2, max_weights: 8 GiB, max_weights_ratio: 2,
    min_tokens_per_s: 1.0e+9, min_speedup: 0.001, max_load_time: 1000 s,
    max_vram_reserved: 8 GiB, max_vram_process: 8 GiB}}
"""


def spread(devices: dict[str, Any], mapped: dict[str, Any] | None = None, packed: tuple[str, ...] = ()) -> Any:
    """A model whose tensors are on the given devices, as accelerate would leave it."""
    tensors = {name: SimpleNamespace(device=device) for name, device in devices.items()}
    return SimpleNamespace(
        named_parameters=lambda: ((name, t) for name, t in tensors.items() if name not in packed),
        named_buffers=lambda: ((name, t) for name, t in tensors.items() if name in packed),
        **({"hf_device_map": mapped} if mapped is not None else {}),
    )


LAYERS = {f"model.layers.{i}.mlp.weight": "cuda:0" if i < 12 else "cuda:1" for i in range(20)}
MAP: dict[str, Any] = {"model.embed_tokens": 0, **{f"model.layers.{i}": i // 12 for i in range(20)}, "lm_head": 1}
HALF: dict[str, Any] = {**MAP, "model.layers.17": "cpu", "model.layers.18": "cpu", "model.layers.19": "disk"}


@pytest.mark.parametrize(
    ("model", "parts", "outside"),
    [
        (spread(LAYERS | {"lm_head.weight": "cuda:1"}, MAP), {
            "cuda:0": "model.embed_tokens, model.layers.0-11", "cuda:1": "model.layers.12-19, lm_head",
        }, {}),
        (spread({"model.layers.0.mlp.weight": "cuda:0"}, {"": 0}), {"cuda:0": "all"}, {}),
        (spread({"model.layers.0.mlp.weight": "cuda:0"}), {"cuda:0": "all"}, {}),
        (spread({"model.layers.0.mlp.weight": "cpu"}), {"cpu": "all"}, {"cpu": "model.layers.0"}),
        (
            spread(LAYERS | {f"model.layers.{i}.mlp.weight": "meta" for i in (17, 18, 19)}, HALF),
            {"cuda:0": "model.embed_tokens, model.layers.0-11", "cuda:1": "model.layers.12-16, lm_head",
             "cpu": "model.layers.17-18", "disk": "model.layers.19"},
            {"cpu": "model.layers.17-18", "disk": "model.layers.19"},
        ),
        (
            spread({f"h.{i}.mlp.w": "cpu" if i in (1, 3, 4) else "cuda:0" for i in range(6)}),
            {"cuda:0": "h.0,2,5", "cpu": "h.1,3-4"}, {"cpu": "h.1,3-4"},
        ),
        (spread({"lm_head.weight": "cuda:0", "h.0.up.qweight": "cpu"}, packed=("h.0.up.qweight",)),
         {"cuda:0": "lm_head", "cpu": "h.0"}, {"cpu": "h.0"}),
        (spread({"lm_head.weight": "meta", "h.0.up.w": "cuda:0"}),
         {"meta": "lm_head", "cuda:0": "h.0"}, {"meta": "lm_head"}),
        (spread({"h.0.up.w": "cuda:0", "rotary.inv_freq": "cpu"}, packed=("rotary.inv_freq",)), {"cuda:0": "all"}, {}),
    ],
    ids=[
        *["two GPUs", "one, mapped", "one", "all on the CPU", "offloaded by the map", "no map", "packed", "meta"],
        "a table",
    ],
)  # fmt: skip
def test_where_a_models_parts_lie(model: Any, parts: dict[str, str], outside: dict[str, str]) -> None:
    assert placement.of(model) == parts
    assert placement.outside(model) == outside


def test_what_accelerate_has_offloaded_is_found(tmp_path: Path) -> None:
    from accelerate import dispatch_model  # type: ignore[import-untyped]

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    mapped = {"0": "cpu", "1": "disk", "2": "cpu"}
    dispatch_model(model, mapped, main_device="cpu", offload_dir=str(tmp_path))
    assert next(model[1].parameters()).device.type == "meta"
    assert placement.outside(model) == {"cpu": "0,2", "disk": "1"}
    assert placement.in_words({"cpu": "model.layers.3", "disk": "lm_head"}) == (
        "a GPU is available, but these layers were offloaded: model.layers.3 on cpu; lm_head on disk"
    )


@dataclass
class Ran:
    budget: Budget
    own: Measurement
    kept: list[str]

    def verdict(self, limit: str) -> Verdict:
        """On bf16, against a baseline that lies where it should."""
        base = replace(self.own, subject=self.budget.method("fp32").subject, offloaded=None)
        measured = {"bf16": self.own, "fp32": base}
        method = self.budget.method("bf16")
        (found,) = (each for each in method.limits if each.name == limit)
        return judge(self.budget, method, found, measured)


def measure(room: Path, monkeypatch: pytest.MonkeyPatch, *, offloaded: bool, free: int = 23 * 2**30) -> Ran:
    """bf16 as its process measures it, on a simulated GPU; the model lies on the CPU, and admits it if `offloaded`."""
    (room / "b.yaml").write_text(BUDGET)
    budget = load_budget(room / "b.yaml")
    request = request_for(budget, budget.method("bf16"))
    driver, cuda = Driver(monkeypatch, "GPU-1"), Cuda(monkeypatch)
    cuda.free = free
    gpus = Gpus({"CUDA_VISIBLE_DEVICES": "GPU-1"})
    driver.cards["GPU-1"].processes = {os.getpid(): 1200, 123: 3 * 2**30}
    spec = methods.spec("bf16")

    def load(source: Any, options: Any, device: str, trust: Any = NO_TRUST) -> Any:
        assert device == "cuda:0"
        model: Any = spec.load(source, options, "cpu", trust)
        cuda.attach(model, prefill=700, decode=600)
        return model

    monkeypatch.setattr(methods, "spec", lambda name: replace(spec, load=load))
    if not offloaded:
        monkeypatch.setattr(placement, "_weights", lambda model: [("model", "cuda:0")])
    keys = identity.keys_of(request, [], NO_TRUST, room / "memo")
    parts: list[Measurement] = []

    def tell(data: bytes) -> None:
        message = json.loads(data)
        if "part" in message:
            parts.append(codec.from_builtins(Measurement, message["part"]))

    job = child.Job(request, str(room), str(room), keys, str(room / "store"))
    phases.Phases(job, SimpleNamespace(send_bytes=tell), gpus).measure()  # type: ignore[arg-type]
    kept = sorted(path.name.split("-")[0] for path in (room / "store").rglob("*.entry"))
    return Ran(budget, merge(parts), kept)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return measure(tmp_path_factory.mktemp("offloaded"), monkeypatch, offloaded=True)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return measure(tmp_path_factory.mktemp("healthy"), monkeypatch, offloaded=False)


WHY = "a GPU is available, but these layers were offloaded: model.embed_tokens, model.layers.0-2, model.norm"


@pytest.mark.parametrize(
    "limit", ["max_vram", "max_vram_ratio", "max_weights", "max_weights_ratio", "max_vram_reserved", "max_vram_process"]
)
def test_memory_limits_of_a_model_that_was_offloaded_fail_with_that_reason(ran: Ran, limit: str) -> None:
    found = ran.verdict(limit)
    assert found.outcome == FAILED
    assert found.message.startswith(f"bf16: {limit} not measured: {WHY}")


def test_its_speed_is_judged_and_the_reason_named(ran: Ran) -> None:
    found = ran.verdict("min_tokens_per_s")
    assert found.outcome == OVER
    assert WHY in found.message
    speedup = ran.verdict("min_speedup").message
    assert WHY in speedup.partition("fp32: ")[0]
    assert WHY not in speedup.partition("fp32: ")[2]
    assert ran.verdict("max_load_time").outcome == WITHIN


def test_a_note_tells_and_nothing_of_it_is_kept_for_later_runs(ran: Ran) -> None:
    assert any(WHY in note for note in ran.own.notes)
    assert ran.own.speeds[0].roofline is None
    assert ran.kept == ["reply"]


def test_a_model_on_its_gpu_is_judged_and_kept_with_all_that_was_seen(healthy: Ran) -> None:
    assert healthy.own.offloaded is None
    assert healthy.own.placement == {"cuda:0": "all"}
    assert healthy.own.load_memory is not None
    assert healthy.own.load_memory.total.process == 1200
    assert healthy.own.load_memory.total.overhead == 1200 - 800
    assert healthy.own.speeds[0].peak_allocated == 700
    assert healthy.kept == ["load", "load", "reply", "workload"]


def test_what_torch_reserves_and_what_the_driver_tells_are_judged(healthy: Ran) -> None:
    limits = ("max_vram", "max_vram_reserved", "max_vram_process")
    assert [healthy.verdict(limit).measured for limit in limits] == [700, 800, 1200]


@pytest.mark.parametrize("limit", ["max_vram", "max_vram_ratio", "min_tokens_per_s", "min_speedup"])
def test_who_else_was_on_the_gpu_is_named_with_the_figure(healthy: Ran, limit: str) -> None:
    message = healthy.verdict(limit).message
    assert "the GPU was shared while it was timed: pid 123" in message
    assert "3.00 GiB" in message


def test_who_else_is_on_the_gpu_is_named_where_there_is_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (failure,) = measure(tmp_path, monkeypatch, offloaded=False, free=2**19).own.failures
    assert failure.kind == "no-gpu"
    assert failure.message.startswith("too little free memory: the weights take 1.10 MiB")
    assert "of NVIDIA L4 is free; also on the GPU: pid 123" in failure.message
