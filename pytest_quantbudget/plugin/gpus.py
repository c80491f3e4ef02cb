"""GPUs that tests ask for: the marker `gpu`, and skipping without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_quantbudget.budget.keys import GPU
from pytest_quantbudget.core.gpus import GpuNeed

if TYPE_CHECKING:
    from pytest_quantbudget.measure.hardware import LocalGpus

GPUS: pytest.StashKey[LocalGpus] = pytest.StashKey()


def local_gpus(config: pytest.Config) -> LocalGpus:
    """The GPUs of this process of the run, looked at once."""
    from pytest_quantbudget.measure.hardware import LocalGpus

    if GPUS not in config.stash:
        worker = getattr(config, "workerinput", {}).get("workerid")
        config.stash[GPUS] = LocalGpus(int(worker.removeprefix("gw")) if worker else None)
    return config.stash[GPUS]


def gpu_mark(need: GpuNeed) -> pytest.MarkDecorator:
    """The marker that a budget's `gpu` key stands for."""
    min_vram = f"{need.min_vram:.0f} B" if need.min_vram else None
    return pytest.mark.gpu(min_vram=min_vram, min_capability=need.min_capability, count=need.count)


def gpu_need(mark: pytest.Mark) -> GpuNeed:
    """What a marker `gpu(...)` asks for. Raises pytest.UsageError for arguments that it does not take."""
    kinds = {field.name: field.kind for field in GPU}
    try:
        if mark.args or set(mark.kwargs) - set(kinds):
            raise ValueError(f"takes {', '.join(kinds)}, by name")
        return GpuNeed(**{name: kinds[name].read(v) for name, v in mark.kwargs.items() if v is not None})
    except ValueError as error:
        raise pytest.UsageError(f"marker gpu: {error}") from None


def require(config: pytest.Config, lacking: str | None) -> None:
    """Skip, or fail with --quant-require-gpu, where something is `lacking`."""
    if lacking is not None and config.option.quant_require_gpu:
        pytest.fail(f"{lacking} (--quant-require-gpu)", pytrace=False)
    if lacking is not None:
        pytest.skip(lacking)
