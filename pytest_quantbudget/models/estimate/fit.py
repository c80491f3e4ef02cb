"""Which GPUs an estimate fits, and whether a method is too large for those that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_quantbudget.core import units
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.memory import OVERHEAD, Estimate

MIB = 2**20
# Common cards and the memory that their driver reports (nvidia-smi, memory.total), with ECC where it is on by default.
CARDS: Mapping[str, int] = {
    "NVIDIA GeForce RTX 4060": 8188 * MIB,
    "NVIDIA GeForce RTX 3060": 12288 * MIB,
    "Tesla T4": 15360 * MIB,
    "NVIDIA A10G": 23028 * MIB,
    "NVIDIA L4": 23034 * MIB,
    "NVIDIA GeForce RTX 3090": 24576 * MIB,
    "NVIDIA GeForce RTX 4090": 24564 * MIB,
    "NVIDIA GeForce RTX 5090": 32607 * MIB,
    "NVIDIA A100 40GB": 40960 * MIB,
    "NVIDIA L40S": 46068 * MIB,
    "NVIDIA H100 80GB": 81559 * MIB,
    "NVIDIA A100 80GB": 81920 * MIB,
    "NVIDIA H200": 143771 * MIB,
}


def fits(predicted: Estimate, total: int, count: int = 1) -> bool:
    """Whether a process with this estimate has room on `count` cards of `total` bytes each.

    Of a lower bound: whether that is not ruled out.
    """
    return predicted.peak + count * OVERHEAD <= count * total


def too_large(subject: Subject, workload: Workload, gpus: Sequence[Gpu], *, runs: bool) -> str | None:
    """Why a subject cannot fit the GPUs that it would be given; None where it may, or nothing can be predicted.

    Only what is certain counts: the peak of the workload where it `runs`, else the weights, against all the memory
    that these GPUs have.
    """
    given = gpus[: subject.gpus]
    if not given:
        return None
    try:
        predicted = memory.estimate(subject, workload)
    except ValueError:
        return None
    need, total = predicted.peak if runs else predicted.weights, sum(gpu.total for gpu in given)
    if need <= total:
        return None
    there, needed = units.sizes_apart(total, need)
    names = " and ".join(gpu.name for gpu in given)
    what = "the workload's predicted peak is" if runs else "its weights are predicted to take"
    if predicted.at_least:
        what = "the workload's peak is at least" if runs else "its weights take at least"
    return f"cannot fit: {what} {needed}, and {names} has {there} (--quant-estimate)"
