"""What a machine lacks for a limit: GPUs, memory on them, packages, a value for its device."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.judge.metrics import metric_of
from pytest_quantbudget.judge.metrics.base import RANGE
from pytest_quantbudget.judge.needs import request
from pytest_quantbudget.judge.verdict import unjudged
from pytest_quantbudget.models import engines, methods

HARNESS, DATASETS = "lm_eval", "datasets"


class Measurer(Protocol):
    """What measures, or a report in its place: it knows the GPUs."""

    def lacking(self, budget: Budget, method: Method, need: GpuNeed) -> str | None:
        """What its machine lacks for `need`, or None."""

    def too_large(self, budget: Budget, method: Method, limit: Limit | None = None) -> str | None:
        """Why a method cannot fit its GPUs, or None."""


def lacking(
    measurer: Measurer, budget: Budget, method: Method, base: Method | None, limit: Limit, needs: Sequence[GpuNeed]
) -> str | None:
    """Why a limit cannot be measured on these GPUs, or None. `base` is what it is compared with, if anything."""
    for need in needs:
        if lacks := measurer.lacking(budget, method, need):
            return lacks
    if base and base.gpu and (lacks := measurer.lacking(budget, base, base.gpu)):
        return f"not measured: the baseline {base.name} {lacks}"
    if large := measurer.too_large(budget, method, limit):
        return f"not measured: {large}"
    if base and (large := measurer.too_large(budget, base, limit)):
        return f"not measured: the baseline {base.name} {large}"
    return None


def unmeasured(measurer: Measurer, budget: Budget, method: Method, limit: Limit) -> str | None:
    """Why a limit is not going to be measured here; None where it is, as far as that is known before loading.

    What another interpreter has is not known.
    """
    base = budget.base if limit.kind.relation else None
    needs = [method.gpu] if method.gpu is not None else []
    why = unjudged(method.subject, limit.kind) or lacking(measurer, budget, method, base, limit, needs)
    if why is not None:
        return why.removeprefix("not measured: ")
    for each in filter(None, (method, base)):
        if each.subject.python is None and (why := engines.missing(each.subject)) is not None:
            return why
    return _of_questions(budget, method, limit)


def unjudged_on(limit: Limit, device: str) -> str | None:
    """Why a limit is measured on a device, `cpu` or a GPU's name, and not judged there; None where it is."""
    if metric_of(limit.kind).margin == RANGE and device == "cpu":
        return "no GPU was found: device memory has no peak here"
    target = limit.target(device)
    if target is None:
        return f"no value is for {device!r}"
    return "reads `auto`, which --quant-update fills in" if target.value is None else None


def _of_questions(budget: Budget, method: Method, limit: Limit) -> str | None:
    """Which package is missing that reads the questions of a limit."""
    for part in request(budget, method, [limit]).of(Task):
        package = HARNESS if part.harness is not None else DATASETS if part.file is None else None
        if package is not None and importlib.util.find_spec(package) is None:
            return f"task {part.name} needs {package}: {methods.pip_command(package)}"
    return None
