"""Dummy weights: built from config.json alone, with the layout of really loaded ones, and never taken for them."""

import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import DUMMY, NO_TRUST, REAL, Request, Subject, Workload
from pytest_quantbudget.engine.hf import load, logits, speed
from pytest_quantbudget.engine.hf.load import Loaded
from pytest_quantbudget.measure import bench
from pytest_quantbudget.measure import keys as identity
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import dummy, methods
from pytest_quantbudget.models.dummy import Drawn

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in methods.run_by(TRANSFORMERS) if methods.spec(name).bits},
    "nf4": ("nf4", {"compute_dtype": "float32"}),
    "nf4-single": ("nf4", {"compute_dtype": "bfloat16", "double_quant": False}),
    "gptq-int4": ("gptq-int4", {"texts": 32}),
    "awq-int4": ("awq-int4", {"texts": 16}),
}
QWEN3_8B = "Qwen/Qwen3-8B"


def subject(method: str, load_format: str = DUMMY, **more: Any) -> Subject:
    """The built-in model in a method, with its default options but for those named."""
    spec = methods.spec(method)
    options = {field.name: field.default for field in spec.options} | more.pop("options", {})
    calibration = str(BUILTIN_DIR / "calibration.jsonl") if spec.quantize and load_format == REAL else None
    values = {"model": str(BUILTIN_DIR), "revision": None, "checkpoint": None, "calibration": calibration}
    return Subject(**{**values, **more}, method=method, options=options, load_format=load_format)


def layout(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """Names and classes of all modules; names, shapes, types and places of all parameters and buffers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, type(module)) for name, module in model.named_modules()], [
        (name, type(tensor), tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in tensors
    ]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> bench.Bench:
    """Where checkpoints of the built-in model are quantized."""
    run = tmp_path_factory.mktemp("run")
    return bench.Bench(run, shared_folder / "checkpoints", run, Store(str(run / "results")))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, room: bench.Bench) -> tuple[Loaded, Loaded]:
    """The built-in model in one method: as it is, and with dummy weights."""
    method, options = CASES[request.param]
    real = subject(method, REAL, options=options)
    made = room.quantized(real).quantized if methods.spec(method).quantize else None
    found = load.load(real, str(room.quantized_path(made)) if made else None)
    return found, load.load(subject(method, options=options), None)


def test_dummy_weights_have_the_layout_of_real_ones(pair: tuple[Loaded, Loaded]) -> None:
    real, drawn = pair
    assert layout(drawn.model) == layout(real.model)
    assert drawn.description.weights == real.description.weights
    assert drawn.description.receipt == real.description.receipt
    assert drawn.tokenizer is None
    assert drawn.description.revision.startswith("config:")


def test_a_workload_runs_on_dummy_weights_with_finite_logits(pair: tuple[Loaded, Loaded]) -> None:
    _, drawn = pair
    logits.check(drawn.model)
    measured = speed.measure(drawn.model, Workload(8, 4, 2, 1))
    assert measured.median_tokens_per_s > 0


def test_they_are_the_same_in_every_run() -> None:
    first, second = (load.load(subject("nf4"), None).model for _ in range(2))
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_one_tensor_at_a_time_is_there_unquantized(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most, draw = [0], Drawn.__getitem__

    def counted(self: Drawn, everything: Any) -> torch.Tensor:
        tensor = draw(self, everything)
        if "_proj" in self.name:
            alive.append(weakref.ref(tensor))
            most.append(sum(ref() is not None for ref in alive))
        return tensor

    monkeypatch.setattr(Drawn, "__getitem__", counted)
    load.load(subject(method), None)
    assert len(alive) == 21
    assert max(most) <= 2  # the last one may not have been replaced yet


def test_a_large_model_is_described_without_its_weights() -> None:
    found = dummy.find(subject("fp16", model=QWEN3_8B))
    assert found.parameters == 8_190_735_360
    keys = identity.keys_of(Request(subject("nf4", model=QWEN3_8B)), [], NO_TRUST, Path("unused"))
    assert keys is not None
    assert keys.revision == found.revision


def test_dummy_figures_are_stored_apart_from_real_ones(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    shutil.copy(BUILTIN_DIR / "config.json", folder)
    own = subject("gptq-int4", model=str(folder))
    variants = [own, replace(own, load_format=REAL), replace(own, options={**own.options, "group_size": 64})]
    keys = [identity.keys_of(Request(one), [], NO_TRUST, tmp_path) for one in variants]
    names = {key.load().name for key in keys if key is not None}
    assert len(names) == len({one.key for one in variants}) == 3
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    again = identity.keys_of(Request(own), [], NO_TRUST, tmp_path)
    assert again is not None
    assert again.load().name not in names


def test_a_checkpoint_is_built_as_its_configuration_says(tmp_path: Path) -> None:
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["q_proj", "lm_head"]}
    config = json.loads((BUILTIN_DIR / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    own = replace(subject("nf4", checkpoint=str(tmp_path)), options={})
    assert load.load(own, None).description.receipt.linear == "18 Linear4bit, 4 Linear"
    with pytest.raises(ValueError, match=r"the checkpoint in .* is quantized with bitsandbytes; gptq-int4 needs"):
        load.load(subject("gptq-int4", checkpoint=own.checkpoint), None)
    with pytest.raises(ValueError, match=r"is already quantized .bitsandbytes.; nf4 needs unquantized weights"):
        load.load(replace(own, model=str(own.checkpoint), checkpoint=None), None)


def test_a_checkpoint_that_is_nowhere_is_built_by_the_options_and_that_is_noted() -> None:
    spec = methods.spec("awq-int4")
    own = subject("awq-int4", model=QWEN3_8B, checkpoint="nobody/Qwen3-8B-AWQ")
    assert spec.packed is not None
    found = dummy.find(own, spec.packed(own.options))
    assert found.config["quantization_config"]["group_size"] == 128
    assert found.note.startswith("awq-int4: built from the model's configuration and the method's options: ")
    assert "nobody/Qwen3-8B-AWQ" in found.note


def test_a_checkpoint_of_bitsandbytes_that_is_nowhere_is_quantized_at_load() -> None:
    own = subject("nf4", checkpoint="nobody/small-nf4")
    found = load.load(own, None).description
    assert (found.made_with, found.receipt.main_bits) == ({}, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 192}, "group size 128 does not divide the model's hidden_size 192; 64 does"),
        ({"model_type": "unheard_of"}, "has no model of the type 'unheard_of' of its own"),
        ({"auto_map": {"AutoConfig": "code.Config"}}, "names code that comes with the model (auto_map)"),
        ({"attn_implementation": "someone/kernel"}, "names a kernel to be downloaded (attn_implementation)"),
    ],
)
@pytest.mark.parametrize("where", ["directory", "hub's cache"])
def test_a_configuration_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, change: dict[str, Any], message: str
) -> None:
    config = json.loads((BUILTIN_DIR / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = subject("gptq-int4", model=str(tmp_path))
    if where != "directory":
        own = replace(own, model="some/one")
        monkeypatch.setattr(dummy, "find_config", lambda model, revision: config)
    with pytest.raises(ValueError, match=re.escape(message)):
        load.load(own, None)


BUDGET = """
model: small
baseline: fp32
load_format: dummy
workload: {prompt_tokens: 16, new_tokens: 4, repeats: 1}
tasks:
  wordmath: {file: builtin, questions: 12, divergence: true}
methods:
  fp32:
    budget: {max_weights: 2.2 MiB, min_wordmath: 50}
  nf4:
    budget:
      max_weights_ratio: 0.2
      min_speedup: 0.001
      min_quantized_fraction: 0.86
      kernel: {cpu: Linear4bit}
      max_wordmath_drop: 3
      max_kl: 1
      min_token_agreement: 90
  gptq-int4:
    budget: {min_wordmath: 50}
"""


def test_memory_and_speed_are_judged_and_quality_is_skipped(pytester: pytest.Pytester) -> None:
    (pytester.path / "small").mkdir()
    shutil.copy(BUILTIN_DIR / "config.json", pytester.path / "small")  # and no weights, and no tokenizer
    pytester.makefile(".yaml", b=BUDGET)
    pytester.makepyfile(
        """
        def test_model(quant_model):
            raise AssertionError("there is none to talk to")

        def test_measurement(quant_measurement):
            assert quant_measurement.subject.load_format == "dummy"
            assert (quant_measurement.tasks, quant_measurement.replies) == ((), None)
            assert quant_measurement.failures == ()
        """
    )
    own = "test_memory_and_speed_are_judged_and_quality_is_skipped.py"
    chosen = ["--quant-budget", "b.yaml", own, "-k", "not (measurement and gptq)"]
    result = pytester.runpytest("-W", "error", "-v", "-rs", "--quant-report", "r.json", *chosen)
    result.assert_outcomes(passed=4 + 2, failed=1, skipped=5 + 3, deselected=1)
    result.stdout.fnmatch_lines_random(
        [
            "measured 0.856, limit 0.86 (491,520 of 574,528 parameters; kept: embedding "
            "81,920 in 16 bits, norm 1,088 in 16 bits)",
            "*nf4: max_wordmath_drop not measured: dummy weights say nothing about quality",
            "*nf4: dummy weights have nothing to say, and no tokenizer",
            "*= quantization budget b.yaml (dummy weights) =*",
            "fp32 * 1 within, 1 skipped",
            "skipped: fp32 *(dummy weights say nothing about quality)",
            "nf4: 21 Linear4bit (bitsandbytes, 4 bits); 85.6 % quantized; kept: embedding *",
        ]
    )
    (report,) = json.loads(Path("r.json").read_text())["budgets"]
    assert report["load_format"] == "dummy"
    outcomes = {limit["id"]: limit["verdict"]["outcome"] for m in report["methods"] for limit in m["limits"]}
    assert outcomes == {
        "b.yaml::fp32::max_weights": "within",
        "b.yaml::fp32::min_wordmath": "skipped",
        "b.yaml::nf4::max_weights_ratio": "within",
        "b.yaml::nf4::min_speedup": "within",
        "b.yaml::nf4::min_quantized_fraction": "over",
        "b.yaml::nf4::kernel": "within",
        "b.yaml::nf4::max_wordmath_drop": "skipped",
        "b.yaml::nf4::max_kl": "skipped",
        "b.yaml::nf4::min_token_agreement": "skipped",
        "b.yaml::gptq-int4::min_wordmath": "skipped",
    }
    measured = {m["name"]: m["measurement"] for m in report["methods"]}
    assert measured["gptq-int4"] is None  # nothing of it was to be judged, and so nothing was loaded


def test_the_command_line_overrides_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("model: builtin\nload_format: dummy\ncalibration: builtin\nmethods: {gptq-int4: {}}\n")
    assert [load_budget(path, load_format=given).methods[0].subject.load_format for given in (None, REAL, DUMMY)] == [
        DUMMY,
        REAL,
        DUMMY,
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: nobody/none\nload_format: dummy", 1, "model: no configuration of nobody/none is on this machine: "),
        ("model: builtin\nload_format: dumy", 2, "load_format: 'dumy' is not one of auto, dummy; did you mean"),
        ("load_format: dummy\nmodel: empty", 2, "model: empty/config.json cannot be read"),
    ],
)
def test_what_cannot_be_built_is_a_mistake_in_the_file(tmp_path: Path, text: str, line: int, message: str) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "b.yaml"
    path.write_text(f"{text}\nmethods: {{fp32: {{}}}}\n")
    with pytest.raises(BudgetError) as error:
        load_budget(path)
    (problem,) = error.value.problems
    assert problem.line == line
    assert problem.message.startswith(message)
