"""The methods, each through its real library, on the built-in model. One run of one budget serves most tests here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import LoadTime, Reply, Request, Subject, Task, Workload
from pytest_quantbudget.engine import base
from pytest_quantbudget.engine.hf import load, memory
from pytest_quantbudget.measure import bench
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate.memory import estimate
from pytest_quantbudget.models.methods import _gptqmodel

TASK = Task("wordmath", 60, 0, 0, str(BUILTIN_DIR / "questions.jsonl"), 96, 60, "strict")
WORKLOAD = Workload(16, 8, 2, 2)
OPTIONS: dict[str, dict[str, Any]] = {
    "nf4": {"compute_dtype": "float32"},
    "gptq-int4": {"texts": 32},
    "awq-int4": {"texts": 16},
    **{f"torchao-{name}": {"compute_dtype": "float32"} for name in ("int8", "int4", "intx", "fp8")},
}
# 21 linear layers of 3 blocks; the output layer shares the embedding and stays as it is.
LINEAR = 3 * 7
PARAMETERS = 574_528
IN_LINEAR = 3 * (4 * 128 * 128 + 3 * 128 * 256)
# Those that are what they are without a checkpoint.
KINDS = [name for name in methods.run_by(TRANSFORMERS) if methods.spec(name).bits]
# On a CPU: class and kernel of the quantized layers.
KERNELS = {
    "int8": ("Linear8bitLt", "bitsandbytes"),
    "nf4": ("Linear4bit", "bitsandbytes"),
    "gptq-int4": ("TorchAtenLinear", "gptq_torch_aten"),
    "awq-int4": ("TorchAtenAwqLinear", "awq_torch_aten"),
    "torchao-int8": ("Int8Tensor", "torchao"),
    "torchao-int4": ("Int4OpaqueTensor", "torchao"),
    "torchao-intx": ("IntxUnpackedToInt8Tensor", "torchao"),
    "torchao-fp8": ("Float8Tensor", "torchao"),
}


def subject(method: str, **more: Any) -> Subject:
    """The built-in model in a method with its default options, but fewer calibration texts."""
    spec = methods.spec(method)
    options = {field.name: field.default for field in spec.options} | OPTIONS.get(method, {})
    calibration = str(BUILTIN_DIR / "calibration.jsonl") if spec.quantize else None
    values = {"options": options, "calibration": calibration, "checkpoint": None, "model": str(BUILTIN_DIR)}
    return Subject(**{**values, **more}, revision=None, method=method)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> bench.Bench:
    """A bench whose cache lasts as long as these tests."""
    run = tmp_path_factory.mktemp("run")
    return bench.Bench(run, shared_folder / "checkpoints", run, Store(str(run / "results")))


@pytest.fixture(scope="module", params=KINDS)
def measured(request: pytest.FixtureRequest, room: bench.Bench) -> Measurement:
    """The measurement of each method."""
    return room.measure(Request(subject(request.param), (LoadTime(), WORKLOAD, Reply("Question: 1+1?\nAnswer:"), TASK)))


@pytest.mark.model
def test_every_method_answers_nearly_as_well_as_the_original(measured: Measurement) -> None:
    assert measured.failures == ()
    result = measured.task(TASK)
    assert result is not None
    assert result.accuracy >= 85
    assert result.cut_off == 0


@pytest.mark.model
def test_weights_shrink_as_the_format_says(measured: Measurement) -> None:
    assert measured.weights is not None
    method = measured.subject.method
    rest = PARAMETERS - IN_LINEAR
    groups = IN_LINEAR // 128
    at_least = {
        "fp32": 4 * PARAMETERS,
        "bf16": 2 * PARAMETERS,
        "fp16": 2 * PARAMETERS,
        "int8": 2 * rest + IN_LINEAR,  # and 4 bytes an output row
        "nf4": 4 * rest + IN_LINEAR // 2 + IN_LINEAR // 64,  # a byte a block of 64, and scales of these
        "gptq-int4": 2 * rest + IN_LINEAR // 2 + 2 * groups,
        "awq-int4": 2 * rest + IN_LINEAR // 2 + 2 * groups + groups // 2,
        "torchao-int8": 4 * rest + IN_LINEAR,
        "torchao-int4": 4 * rest + IN_LINEAR // 2 + 2 * 4 * groups,
        "torchao-intx": 4 * rest + IN_LINEAR + 5 * groups,
        "torchao-fp8": 4 * rest + IN_LINEAR,
    }[method]
    rotary = 2 * 16 * 4  # inverse frequencies, in 32 bits whatever the method
    room_for = {"fp32": rotary, "bf16": rotary, "fp16": rotary, "int8": 25_000}.get(method, 40_000)
    assert at_least <= measured.weights <= at_least + room_for


@pytest.mark.model
def test_weights_are_what_the_estimate_says_to_the_byte(measured: Measurement) -> None:
    predicted = estimate(measured.subject, WORKLOAD)
    assert predicted.weights == measured.weights
    assert predicted.parameters == PARAMETERS


@pytest.mark.model
def test_the_receipt_tells_every_layer_its_kernel_and_its_bits(measured: Measurement) -> None:
    assert measured.receipt is not None
    spec = methods.spec(measured.subject.method)
    # What nf4 and torchao do not quantize they keep in their compute_dtype.
    rest = 32 if spec.name == "fp32" or "compute_dtype" in OPTIONS.get(spec.name, {}) else 16
    name, kernel = KERNELS.get(spec.name, ("Linear", "torch"))
    layers = {(layers.kind, layers.name): layers for layers in measured.receipt.layers}
    told = {key: (found.kernel, found.bits, found.count, found.parameters) for key, found in layers.items()}
    assert told == {
        ("linear", name): (kernel, spec.bits, LINEAR, IN_LINEAR),
        ("embedding", "Embedding"): ("torch", rest, 1, 640 * 128),
        ("lm_head", "Linear"): ("torch", rest, 1, 0),  # it shares the embedding
        ("norm", "Qwen3RMSNorm"): ("transformers", rest, 3 * 4 + 1, 3 * (2 * 128 + 2 * 32) + 128),
    }
    assert measured.receipt.parameters == PARAMETERS
    assert measured.receipt.fraction == (IN_LINEAR / PARAMETERS if spec.bits < 16 else 0)


@pytest.mark.model
def test_timings_and_the_reply_are_there(measured: Measurement) -> None:
    (speed,) = measured.speeds
    assert len(speed.ttft_s) == len(speed.decode_s) == WORKLOAD.repeats
    assert min(*speed.ttft_s, *speed.decode_s) > 0
    assert measured.load_time_s is not None
    assert (measured.replies or {}).keys() == {"Question: 1+1?\nAnswer:"}
    assert measured.revision is not None
    assert measured.revision.startswith("sha256:")


@pytest.mark.model
def test_what_was_quantized_here_is_kept_and_found_again(measured: Measurement, room: bench.Bench) -> None:
    if methods.spec(measured.subject.method).quantize is None:
        assert measured.quantized is None
        return
    assert measured.quantized is not None
    kept = room.quantized_path(measured.quantized)
    before = (kept / "model.safetensors").stat().st_mtime_ns
    again = room.quantized(measured.subject)
    assert again.quantized == measured.quantized
    other = subject(measured.subject.method, options={**measured.subject.options, "backend": "torch"})
    assert room.quantized(other).quantized == measured.quantized
    assert (kept / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.model
def test_a_ready_checkpoint_is_loaded_and_another_formats_is_refused(measured: Measurement, room: bench.Bench) -> None:
    if measured.quantized is None:
        assert methods.spec(measured.subject.method).quantize is None
        return
    kept = str(room.quantized_path(measured.quantized))
    own = subject(measured.subject.method, checkpoint=kept, calibration=None)
    again = room.measure(Request(own, (TASK,)))
    assert again.failures == ()
    assert again.weights == estimate(own, WORKLOAD).weights
    first, second = measured.task(TASK), again.task(TASK)
    assert first is not None
    assert second is not None
    assert [a.text for a in first.answers] == [a.text for a in second.answers]
    unnamed = load.load(replace(own, method="mine", kind="checkpoint", options={}), None).description
    assert (unnamed.receipt, unnamed.weights, unnamed.made_with) == (again.receipt, again.weights, again.made_with)
    assert unnamed.packing == again.packing
    assert unnamed.packing is not None
    group = own.options["group_size"]
    assert unnamed.packing.label == f"{measured.subject.method.replace('-', ' ')} g{group}"
    other = "awq-int4" if measured.subject.method == "gptq-int4" else "gptq-int4"
    refused = room.measure(Request(subject(other, checkpoint=kept, calibration=None)))
    assert "is quantized with" in refused.failures[0].message
    dense = room.measure(Request(subject("fp16", model=kept)))
    assert "fp16 needs unquantized weights" in dense.failures[0].message


@pytest.mark.model
def test_a_checkpoint_without_quantized_layers_is_an_error_and_no_pass(room: bench.Bench, tmp_path: Path) -> None:
    folder = tmp_path / "all-skipped"
    shutil.copytree(BUILTIN_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "llm_int8_skip_modules": names,
    }
    (folder / "config.json").write_text(json.dumps(config))
    made = room.measure(Request(subject("int8", checkpoint=str(folder))))
    assert made.weights is None
    assert "int8 left every layer unquantized: the loaded model has 22 Linear" in made.failures[0].message


@pytest.mark.model
@pytest.mark.parametrize(("size", "hint"), [(128, "; 64 does"), (-1, ""), (64, "")])
def test_a_group_size_that_does_not_divide_is_refused_before_quantizing(size: int, hint: str) -> None:
    config = {"hidden_size": 576, "intermediate_size": 1536}
    if not hint:
        _gptqmodel.check_group_size(config, size)
        return
    with pytest.raises(ValueError, match=f"group size {size} does not divide the model's hidden_size 576{hint}"):
        _gptqmodel.check_group_size(config, size)


@pytest.mark.model
def test_weights_that_do_not_fit_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: 1_000_000)
    spec = methods.spec("fp32")
    with pytest.raises(base.Lacking, match=r"the weights take 2\.19 MiB in fp32, and 0\.954 MiB of .* is free"):
        load.check_room(spec, BUILTIN_DIR, "cpu")
    load.check_room(methods.spec("nf4"), BUILTIN_DIR, "cpu")
