"""Budget files as pytest nodes: file > method > one test function a limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest._code.code import TerminalRepr

from pytest_quantbudget.budget.keys import GPU
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.verdict import SKIPPED, WITHIN, Verdict
from pytest_quantbudget.plugin.session import SESSION, explain, properties


class QuantBudgetWarning(pytest.PytestWarning):
    """A budget promises more than it can tell."""


class LimitBroken(Exception):
    """A limit is over, or could not be measured. The first line is the verdict's."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class BudgetFile(pytest.File):
    """A budget file; its children are the methods."""

    def collect(self) -> Iterator[MethodNode]:
        """One node a method."""
        budget = self.config.stash[SESSION].budget(self.path)
        for method in budget.methods:
            node: MethodNode = MethodNode.from_parent(self, name=method.name)
            node.budget, node.method = budget, method
            for mark in method.marks:
                node.add_marker(mark)
            if method.gpu is not None:
                node.add_marker(gpu_mark(method.gpu))
            yield node


class MethodNode(pytest.Collector):
    """One method of a budget; its children are the limits."""

    budget: Budget
    method: Method

    def collect(self) -> Iterator[LimitItem]:
        """One test a limit."""
        for limit in self.method.limits:
            item: LimitItem = LimitItem.from_parent(self, name=limit.name, callobj=check)
            item.budget, item.method, item.limit = self.budget, self.method, limit
            item.user_properties += [("quant.method", self.method.name), ("quant.limit", limit.name)]
            yield item


class LimitItem(pytest.Function):
    """One line of a budget."""

    budget: Budget
    method: Method
    limit: Limit

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """The line of the budget, where pytest would name that of our own function."""
        return Path(self.limit.file), self.limit.line - 1, f"{self.method.name}::{self.limit.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str | TerminalRepr:  # type: ignore[override]
        """The verdict's words and the user's line instead of a traceback through the plugin."""
        error = excinfo.value
        if isinstance(error, LimitBroken):
            return explain(self.limit, error.verdict)
        return super().repr_failure(excinfo)


def check(request: pytest.FixtureRequest) -> None:
    """The body of every limit's test: measure what is needed, judge, and say so in properties that reach the report."""
    item = request.node
    needs = [gpu_need(mark) for mark in item.iter_markers("gpu")]
    verdict = request.config.stash[SESSION].judge(item.budget, item.method, item.limit, needs)
    item.user_properties += properties(verdict)
    if verdict.outcome == SKIPPED:
        pytest.skip(verdict.message)
    if verdict.outcome != WITHIN:
        raise LimitBroken(verdict)


def gpu_mark(need: GpuNeed) -> pytest.MarkDecorator:
    """The marker that a budget's `gpu` key stands for."""
    min_vram = f"{need.min_vram:.0f} B" if need.min_vram else None
    return pytest.mark.gpu(min_vram=min_vram, min_capability=need.min_capability, count=need.count)


def gpu_need(mark: pytest.Mark) -> GpuNeed:
    """What a marker `gpu(...)` asks for. Raises pytest.UsageError for arguments that it does not take."""
    fields = {field.name: field.kind for field in GPU}
    try:
        if mark.args or set(mark.kwargs) - set(fields):
            raise ValueError(f"takes {', '.join(fields)}, by name")
        return GpuNeed(**{k: fields[k].read(v) for k, v in mark.kwargs.items() if v is not None})
    except ValueError as error:
        raise pytest.UsageError(f"marker gpu: {error}") from None
