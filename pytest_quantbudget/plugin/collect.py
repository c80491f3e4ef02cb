"""Budget files as pytest nodes: file > method > one test function a limit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantbudget.core.budget import USE, Budget, Method, Use
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.problems import at, display_path
from pytest_quantbudget.core.safetext import quoted, safe
from pytest_quantbudget.core.verdict import FAILED, OVER, SKIPPED, WITHIN, Verdict, happened
from pytest_quantbudget.plugin.gpus import gpu_mark, gpu_need
from pytest_quantbudget.plugin.stash import SESSION

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr
    from _pytest.fixtures import FuncFixtureInfo

# Of a folder: the node of each file in it that is a budget, and None for the others.
NODES: pytest.StashKey[dict[Path, BudgetFile | None]] = pytest.StashKey()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> BudgetFile | None:
    """Budgets that were named; other YAML files are left alone."""
    # pytest asks for every file of a folder, once for each argument in it.
    nodes = parent.stash.setdefault(NODES, {})
    if file_path not in nodes:
        nodes[file_path] = _budget_file(file_path, parent)
    return nodes[file_path]


def _budget_file(path: Path, parent: pytest.Collector) -> BudgetFile | None:
    if path.resolve() not in parent.config.stash[SESSION].budgets.loaded:
        return None
    root = parent.config.rootpath
    # pytest names no file outside its root directory; without a name, two such budgets would share their ids.
    outside: dict[str, Any] = {} if path.is_relative_to(root) else {"nodeid": os.path.relpath(path, root)}
    node: BudgetFile = BudgetFile.from_parent(parent, path=path, **outside)
    return node


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of budgets whose paths pytest cannot be given: `[` and `::` mean something else there."""
    for name, path in config.stash[SESSION].budgets.odd.items():
        node: BudgetFile = BudgetFile.from_parent(session, path=path, nodeid=name)
        items += session.genitems(node)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Plan what the selected tests need, all of them before the first is measured."""
    if session.config.option.collectonly:
        return
    run = session.config.stash[SESSION]
    run.select(item.nodeid for item in session.items if isinstance(item, BudgetItem))
    for item in session.items:
        if "quant_measurement" in getattr(item, "fixturenames", ()):
            pair: tuple[Budget, Method] | None = item.callspec.params.get("quant_method")  # type: ignore[attr-defined]
            if pair is not None:
                run.plan(*pair, None)
    if run.limits:
        # Now, because it looks at the GPUs' free memory, before any test loads something.
        _ = run.measurer


class LimitOver(AssertionError):
    """A limit is over. Reports such as Allure's tell an assertion that fails from a test that is broken."""


class LimitNotJudged(Exception):
    """A limit could not be measured or judged."""


# As pytest does for `Failed`: reports print an exception with the module that it comes from.
for _error in (LimitOver, LimitNotJudged):
    _error.__module__ = "builtins"


class BudgetFile(pytest.File):
    """A budget file; its children are the methods."""

    fixtures: FuncFixtureInfo | None = None

    def collect(self) -> Iterator[MethodNode | UseNode]:
        """One node a method, and one for what they are wanted for."""
        budget = self.config.stash[SESSION].budgets.load(self.path)
        for method in budget.methods:
            node: MethodNode = MethodNode.from_parent(self, name=method.name)
            node.budget, node.method = budget, method
            for mark in method.marks:
                node.add_marker(mark)
            if method.gpu is not None:
                node.add_marker(gpu_mark(method.gpu))
            yield node
        if budget.uses:
            # Last: what is wanted of them rests on all their limits.
            uses: UseNode = UseNode.from_parent(self, name=USE)
            uses.budget = budget
            yield uses


def on_each(machines: Sequence[str]) -> list[tuple[str, str]]:
    """The kinds of machine that tests are for, and what each puts behind a test's name: nothing where it is alone."""
    return [(each, f"[{each}]") for each in machines] if len(machines) > 1 else [((*machines, "")[0], "")]


class MethodNode(pytest.Collector):
    """One method of a budget; its children are the limits."""

    parent: BudgetFile
    budget: Budget
    method: Method

    def collect(self) -> Iterator[LimitItem]:
        """One test a limit."""
        machines = self.config.stash[SESSION].machines(self.budget, self.method.name)
        for limit, (machine, name) in product(self.method.all_limits, on_each(machines)):
            shared = self.parent.fixtures
            full = f"{limit.name}{name}"
            item: LimitItem = LimitItem.from_parent(self, name=full, callobj=_check, fixtureinfo=shared)
            # All limits of a file run one function below the same conftest files, and so have the same fixtures.
            self.parent.fixtures = item._fixtureinfo
            item.budget, item.method, item.limit, item.machine = self.budget, self.method, limit, machine
            item.user_properties += [("quant.method", self.method.name), ("quant.name", limit.name)]
            item.user_properties += [("quant.machine", machine)] if machine else []
            yield item


class UseNode(pytest.Collector):
    """What a budget wants a method for."""

    parent: BudgetFile
    budget: Budget

    def collect(self) -> Iterator[UseItem]:
        """One test a use."""
        machines = self.config.stash[SESSION].machines(self.budget, None)
        for use, (machine, name) in product(self.budget.uses, on_each(machines)):
            item: UseItem = UseItem.from_parent(self, name=f"{use.name}{name}", callobj=_check)
            item.budget, item.use, item.machine = self.budget, use, machine
            item.user_properties += [("quant.method", USE), ("quant.name", use.name)]
            item.user_properties += [("quant.machine", machine)] if machine else []
            yield item


class BudgetItem(pytest.Function):
    """One line of a budget that is a test; with reports from several kinds of machine, one on each `machine`."""

    budget: Budget
    machine: str = ""
    verdict: Verdict | None = None

    def judge(self) -> Verdict:
        """Measure what is needed, and judge."""
        raise NotImplementedError

    @property
    def heading(self) -> str:
        """What its messages begin with."""
        raise NotImplementedError

    def judged(self, verdict: Verdict) -> None:
        """Keep a verdict, also as properties, which reach the reports; they replace those of an earlier try."""
        self.verdict = verdict
        others = [pair for pair in self.user_properties if pair[0] not in PROPERTIES]
        self.user_properties = others + properties(verdict)


class LimitItem(BudgetItem):
    """A limit of a method, on a figure or on how that has changed."""

    method: Method
    limit: Limit | ChangeLimit

    @property
    def heading(self) -> str:
        """Method and limit."""
        return f"{self.method.name}: {self.limit.name}"

    def judge(self) -> Verdict:
        """The verdict on the limit."""
        from pytest_quantbudget.plugin.judging import verdict_on

        needs = [gpu_need(mark) for mark in self.iter_markers("gpu")]
        return verdict_on(self.config.stash[SESSION], self.budget, self.method, self.limit, needs, self.machine)

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """The line of the budget, where pytest would name that of our own function."""
        return Path(self.limit.file), self.limit.line - 1, f"{self.method.name}::{self.limit.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str | TerminalRepr:  # type: ignore[override]
        """The verdict's words and the user's line instead of a traceback through the plugin."""
        if isinstance(excinfo.value, LimitOver | LimitNotJudged) and self.verdict is not None:
            options = named_options(self.method, self.verdict)
            message = happened(self.method.name, self.limit.name, self.verdict.message)
            return explain(excinfo, message, self.limit, self.verdict, options)
        return super().repr_failure(excinfo)


class UseItem(BudgetItem):
    """What a method is wanted for."""

    use: Use

    @property
    def heading(self) -> str:
        """The line."""
        return f"{USE}: {self.use.name}"

    def judge(self) -> Verdict:
        """Whether a method meets all its limits that may be taken for the use."""
        from pytest_quantbudget.plugin.judging import verdict_on_use

        return verdict_on_use(self.config.stash[SESSION], self.budget, self.use, self.machine)

    def reportinfo(self) -> tuple[os.PathLike[str], int, str]:
        """The line of the budget."""
        return Path(self.use.file), self.use.line - 1, f"{USE}::{self.use.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str | TerminalRepr:  # type: ignore[override]
        """The verdict's words and the user's line."""
        if isinstance(excinfo.value, LimitOver | LimitNotJudged) and self.verdict is not None:
            return explain(excinfo, self.verdict.message.removeprefix(f"{self.heading}: "), self.use, self.verdict, [])
        return super().repr_failure(excinfo)


def _check(request: pytest.FixtureRequest) -> None:
    # The body of every limit's test: measure what is needed, judge, and say so in properties that reach the report.
    # No docstring, because reports print it as the description of every limit.
    item = request.node
    try:
        verdict = item.judge()
    except pytest.fail.Exception as error:
        # Another plugin ends the test: its time is over, for example.
        verdict = Verdict(FAILED, safe(f"{item.heading} not judged: {error}"))
    item.judged(verdict)
    if verdict.outcome == SKIPPED:
        pytest.skip(verdict.message)
    if verdict.outcome == OVER:
        raise LimitOver(verdict.message)
    if verdict.outcome != WITHIN:
        raise LimitNotJudged(verdict.message)


def explain(
    excinfo: pytest.ExceptionInfo[BaseException],
    message: str,
    place: Limit | ChangeLimit | Use,
    verdict: Verdict,
    more: list[str],
) -> TerminalRepr:
    """A broken line in words: what happened, the user's lines, and the last lines of the measuring process.

    What happened stands in pytest's summary, behind the test's id, as far as there is room.
    """
    lines = [str(at(place, "this line")), *more]
    parts = [message, *lines, *([quoted(verdict.detail)] if verdict.detail else [])]
    # Not a plain text: where `CI` is set, pytest would repeat all of it in its summary.
    shown = excinfo.getrepr(style="native")
    shown.reprtraceback.reprentries[0].lines = ["\n\n".join(parts), "\n"]
    if shown.reprcrash is not None:
        crash = shown.reprcrash
        crash.path, crash.lineno, crash.message = display_path(place.file), place.line, message
    return shown


def named_options(method: Method, verdict: Verdict) -> list[str]:
    """The lines of the engine's options that stand in what a failure says: the engine may have refused them."""
    if verdict.outcome != FAILED:
        return []
    # As the budget has them, or as flags.
    said = {word.replace("-", "_") for word in re.findall(r"[a-z0-9]+(?:[_-][a-z0-9]+)*", verdict.message)}
    named = [entry for name, entry in method.engine_options.items() if name in said]
    return [str(at(entry, "this option of the engine")) for entry in named]


# By the names of their properties; `quant.name` and `quant.method` are beside these.
PROPERTIES = {f"quant.{field.name}": field.name for field in fields(Verdict)}


def properties(verdict: Verdict) -> list[tuple[str, object]]:
    """A verdict as flat pairs of builtins, which xdist carries to the controller and JUnit prints.

    What a verdict does not have is left out: JUnit would print `None`.
    """
    values = {name: getattr(verdict, field) for name, field in PROPERTIES.items()}
    return [(name, value) for name, value in values.items() if value not in (None, "")]


def verdict_of(pairs: Iterable[tuple[str, object]]) -> Verdict | None:
    """The inverse of `properties`; None where the pairs hold no verdict."""
    values: dict[str, Any] = {PROPERTIES[name]: value for name, value in pairs if name in PROPERTIES}
    return Verdict(**{"message": "", **values}) if "outcome" in values else None
