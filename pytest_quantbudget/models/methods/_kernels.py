"""Which of gptqmodel's kernels runs a packed checkpoint here: the first, in its own order, that can be built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.fields import Field, choice
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.methods import BALANCED, Prepared
from pytest_quantbudget.models.methods._gptqmodel import only_its_own, read_form

AUTO = "auto"
NAMES = ("marlin", "machete", "exllama_v2", "triton", "torch")
OPTION = Field("backend", choice(AUTO, *NAMES), "Kernels of the quantized layers; auto: the first that work.", AUTO)
# Which extension (`gptqmodel.extension`) a backend has compiled when its first layer is loaded or used, in float16.
EXTENSIONS = {
    "gptq_machete": "machete",
    "awq_machete": "machete",
    "gptq_marlin": "marlin_fp16",
    "awq_marlin": "marlin_fp16",
    "gptq_swordfish": "swordfish",
    "awq_swordfish": "swordfish",
    "gptq_exllama_v2": "exllamav2",
    "awq_exllama_v2": "exllamav2_awq",
    "awq_gemm": "awq",
}
LAYOUTS = ("checkpoint_format", "format", "version")
MOST = 200  # characters of a reason


def prepare(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> Prepared:
    """Choose the kernels, and compile what they need; the option then names them as gptqmodel does.

    gptqmodel chooses before it builds, and fails where it cannot build what it chose. With `auto` the next ones are
    taken instead, and a note names those that failed. Raises ValueError where the named ones do not work here, or none.
    """
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.importer import AUTO_BACKEND_KERNEL_MAPPING

    told = read_form(source)
    method = str(told.get("quant_method"))
    form = next((str(told[name]).lower() for name in LAYOUTS if told.get(name)), "gemm" if method == "awq" else method)
    every = AUTO_BACKEND_KERNEL_MAPPING[METHOD(method)]
    here = [each.value for each, made in every.items() if any(_is_for(kernel, device) for kernel in made.values())]
    if form not in [each.value for each in FORMAT]:
        raise ValueError(f"{source.name} says it is {method} in the format {form!r:.60}; here run: {', '.join(here)}")
    offered = every.get(FORMAT(form), {})
    kernels = {backend.value: kernel for backend, kernel in offered.items()}
    wanted = options["backend"]
    if wanted != AUTO:
        if _full(method, wanted) not in kernels:
            has = ", ".join(name for name in NAMES if _full(method, name) in kernels) or AUTO
            raise ValueError(f"{method} in the format {form} has no backend {wanted}: it has {has}")
        kernels = {_full(method, wanted): kernels[_full(method, wanted)]}
    failed: dict[str, str] = {}
    for name, kernel in kernels.items():
        if wanted == AUTO and not _is_for(kernel, device):
            continue
        reason = _refusal(name, kernel, device, list(_contracts(source, told, method, form, trust)))
        if reason is None:
            note = f"its kernels are {_short(name)}; tried before, and unusable here: {_listed(failed)}"
            # Whose layers differ in their bits has gptqmodel choose for each layer.
            chosen = {} if wanted == AUTO and not failed and only_its_own(source, trust) else {"backend": name}
            return Prepared(chosen, (note,) if failed else ())
        failed[name] = reason
    if wanted != AUTO:
        raise ValueError(f"backend {wanted} cannot be used here: {'; '.join(failed.values())}")
    hint = "" if form in here else f"; {' and '.join(here)} have some"
    raise ValueError(f"{method} in the format {form} has no kernels that can be used here: {_listed(failed)}{hint}")


def _full(method: str, name: str) -> str:
    """What gptqmodel calls a backend of the option."""
    return "awq_gemm_triton" if (method, name) == ("awq", "triton") else f"{method}_{name}"


def _short(name: str) -> str:
    return "triton" if name == "awq_gemm_triton" else name.partition("_")[2]


def _listed(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{_short(name)} ({reason})" for name, reason in failed.items()) or "none is made for this device"


def _devices(device: str) -> list[Any]:
    import torch

    every = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [torch.device(one) for one in (every if device == BALANCED else [device])]


def _is_for(kernel: Any, device: str) -> bool:
    """Whether kernels are made for a device at all: it is no news that those for other GPUs are not used."""
    from gptqmodel.models._const import DEVICE

    if DEVICE.ALL in kernel.SUPPORTS_DEVICES:
        return True
    try:
        for one in _devices(device):
            kernel.validate_device(one)
    except NotImplementedError:
        return False
    return True


def _refusal(name: str, kernel: Any, device: str, contracts: list[dict[str, Any]]) -> str | None:
    """Why kernels cannot be used here, in words; None where they can, and are compiled."""
    from gptqmodel import extension

    try:
        for one in _devices(device):
            for contract in contracts:
                fits, error = kernel.validate(**contract, device=one)
                if not fits:
                    return _words(error)
        if name in EXTENSIONS:
            extension.load(EXTENSIONS[name])
    except Exception as error:  # noqa: BLE001  # whatever a download or a compiler raises is the reason
        return _words(error)
    return None


def _words(error: object) -> str:
    """The first line of an error, with a class by its name alone."""
    said = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", str(error)).partition(" | ")[0].strip()
    lines = [line.removeprefix("- ") for line in said.splitlines() if not line.startswith("Extension load failed")]
    return safe(f"{type(error).__name__}: {(lines or ['(no message)'])[0]}", MOST)


def _contracts(
    source: Path | Dummy, told: Mapping[str, Any], method: str, layout: str, trust: Trust
) -> Iterator[dict[str, Any]]:
    """What kernels have to support: how the layers are packed, with each of their shapes where these are known."""
    import torch

    halves = layout in ("gemv_fast", "llm-awq")
    group_size = told.get("group_size", told.get("q_group_size", -1))
    packed = {
        "bits": told.get("bits", told.get("w_bit", 4)),
        "group_size": group_size,
        "desc_act": method == "gptq" and bool(told.get("desc_act", False)),
        "sym": not told.get("zero_point", True) if method == "awq" else bool(told.get("sym", True)),
        "pack_dtype": torch.int16 if halves else torch.int32,
    }
    shapes: set[tuple[int, ...]] = set()
    if isinstance(source, Path) and not halves and layout != "gemv" and not told.get("dynamic"):
        found = checkpoint.tensors(source, trust)
        shapes = {tuple(shape) for name, (_, shape) in found.items() if name.endswith(".qweight")}
    values = 32 // packed["bits"]
    for rows, columns in sorted(shapes):
        inputs, outputs = (rows * values, columns) if method == "gptq" else (rows, columns * values)
        yield {**packed, "in_features": inputs, "out_features": outputs}
    if not shapes:
        yield packed
