"""Which kernels run a packed model where some cannot be built. On a CPU, where those in torch alone work."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import DUMMY, LoadTime, Request, Subject
from pytest_quantbudget.engine.base import Description
from pytest_quantbudget.measure.bench import Bench
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import methods

pytestmark = pytest.mark.model
METHODS = ("gptq-int4", "awq-int4")


def subject(method: str, backend: str) -> Subject:
    options = {"group_size": 32, "backend": backend}
    return Subject(str(BUILTIN_DIR), None, method, None, options, None, load_format=DUMMY)


def described(method: str, backend: str) -> Description:
    """What was loaded of a model with dummy weights."""
    from pytest_quantbudget.engine.hf import load

    return load.load(subject(method, backend), None).description


def unreachable(*arguments: object, **contract: object) -> Any:
    raise URLError("[Errno -3] Temporary failure in name resolution")


@pytest.fixture
def kernels() -> dict[str, Any]:
    """gptqmodel's classes by its names of backends."""
    pytest.importorskip("gptqmodel")
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.importer import AUTO_BACKEND_KERNEL_MAPPING as MAPPING

    offered = {**MAPPING[METHOD.GPTQ][FORMAT.GPTQ], **MAPPING[METHOD.AWQ][FORMAT.GEMM]}
    return {backend.value: kernel for backend, kernel in offered.items()}


@pytest.mark.parametrize("method", METHODS)
def test_kernels_that_cannot_be_built_give_way_to_the_next(
    method: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = method.partition("-")[0]
    monkeypatch.setattr(kernels[f"{family}_torch_aten"], "validate", unreachable)
    monkeypatch.setattr(kernels[f"{family}_torch_fused"], "validate", unreachable)
    found = described(method, "auto")
    assert {layers.kernel for layers in found.receipt.layers if layers.quantized} == {f"{family}_torch"}
    why = "URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"
    assert found.notes == (
        f"its kernels are torch; tried before, and unusable here: torch_aten ({why}); torch_fused ({why})",
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_extension_that_cannot_be_compiled_is_as_good_as_none(
    method: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptqmodel import extension

    from pytest_quantbudget.models.methods import _kernels

    family = method.partition("-")[0]
    monkeypatch.setitem(_kernels.EXTENSIONS, f"{family}_torch_aten", "marlin_fp16")
    assert "torch_aten (RuntimeError: marlin_fp16: " in described(method, "auto").notes[0]
    monkeypatch.setattr(extension, "load", lambda name: {name: True})
    assert described(method, "auto").notes == ()


@pytest.mark.parametrize("method", METHODS)
def test_kernels_for_other_devices_are_not_tried(method: str, kernels: dict[str, Any]) -> None:
    found = described(method, "auto")
    assert found.notes == ()
    assert {layers.kernel for layers in found.receipt.layers if layers.quantized} == {
        f"{method.partition('-')[0]}_torch_aten"
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_kernels_that_are_named_are_those_that_run(method: str) -> None:
    found = described(method, "torch")
    assert found.notes == ()
    assert {layers.kernel for layers in found.receipt.layers if layers.quantized} == {
        f"{method.partition('-')[0]}_torch"
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["marlin", "machete", "exllama_v2", "triton"])
def test_named_kernels_that_do_not_work_here_are_a_failure_in_words(method: str, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"^backend {backend} cannot be used here: \w+: \w+") as refused:
        described(method, backend)
    assert "<class" not in str(refused.value)


def test_a_format_without_the_named_kernels_names_those_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_quantbudget.models.methods import gptq

    packed = {**gptq.packed(methods.spec("gptq-int4").filled({})), "checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    spec = methods.spec("gptq-int4")
    monkeypatch.setitem(vars(spec), "packed", lambda options: packed)
    with pytest.raises(
        ValueError, match=r"^gptq in the format gptq_v2 has no backend machete: it has marlin, exllama_v"
    ):
        described("gptq-int4", "machete")


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_works_each_reason_is_named(
    method: str, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernel in kernels.values():
        monkeypatch.setattr(kernel, "validate", unreachable)
    with pytest.raises(
        ValueError, match=r"has no kernels that can be used here: torch_aten \(URLError.*; torch \(URLE"
    ):
        described(method, "auto")


@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_a_process_of_its_own_chooses_for_the_one_that_loads(method: str, tmp_path: Path) -> None:
    cards = [Gpu(0, "NVIDIA H200", "GPU-0", 1, 1, "9.0", "580")]
    bench = Bench(tmp_path, tmp_path / "cache", tmp_path, Store(str(tmp_path / "results")), cards)
    measured = bench.measure(Request(subject(method, "auto"), (LoadTime(),)))
    assert measured.failures == ()
    assert measured.kernels_s is not None
    assert measured.receipt is not None
    family = method.partition("-")[0]
    assert {layers.kernel for layers in measured.receipt.layers if layers.quantized} == {f"{family}_torch_aten"}
    refused = bench.measure(Request(subject(method, "marlin"), (LoadTime(),)))
    (failure,) = refused.failures
    assert (failure.phase, failure.fatal) == ("kernels", True)
    assert failure.message.startswith("ValueError: backend marlin cannot be used here: ")
