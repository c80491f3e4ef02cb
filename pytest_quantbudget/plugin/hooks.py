"""The pytest plugin: hooks, each a few lines that call an object."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.budget.find import SUFFIXES
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.judge import resolution
from pytest_quantbudget.measure import flip_rates
from pytest_quantbudget.models.estimate import table
from pytest_quantbudget.plugin import options, xdist
from pytest_quantbudget.plugin.collect import BudgetFile, LimitItem, QuantBudgetWarning, gpu_need
from pytest_quantbudget.plugin.fixtures import gpu, no_gpu, quant_measurement, quant_method, quant_model
from pytest_quantbudget.plugin.recorder import Recorder
from pytest_quantbudget.plugin.session import SESSION, Session

__all__ = ["gpu", "quant_measurement", "quant_method", "quant_model"]
MARKER = (
    "gpu(min_vram=None, min_capability=None, count=1): skip, saying what was missing and what was found, "
    'without such GPUs; min_vram as "16 GiB", min_capability as "8.0".'
)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--quant-estimate` instead of a run."""
    if not config.option.quant_estimate:
        return None
    session = Session(config.rootpath, options.read(config))
    with _usage_errors():
        add_budgets(config, session)
    if not session.budgets:
        raise pytest.UsageError("--quant-estimate wants a budget: --quant-budget FILE")
    problems: list[str] = []
    for budget in session.budgets.values():
        try:
            sys.stdout.write("\n".join(table.lines(budget, session.gpus)) + "\n\n")
        except BudgetError as error:
            problems += map(str, error.problems)
    if problems:
        raise pytest.UsageError(*problems)
    return 0


def pytest_configure(config: pytest.Config) -> None:
    """Read every budget that is named, so that a mistake ends the run before anything is loaded."""
    config.addinivalue_line("markers", MARKER)
    session = config.stash[SESSION] = Session(config.rootpath, options.read(config))
    session.deadline = time.monotonic() + session.options.timeout_s
    xdist.connect(config, session)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config, session), "quantbudget-recorder")
    with _usage_errors():
        add_budgets(config, session)
        if not hasattr(config, "workerinput"):
            doubt(config, session)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Budget errors inside become usage errors: exit code 4, one message each."""
    try:
        yield
    except BudgetError as error:
        raise pytest.UsageError(*map(str, error.problems)) from None


def add_budgets(config: pytest.Config, session: Session) -> None:
    """Put the budgets of the options among the arguments, and read all that are named in either way."""
    base = config.invocation_params.dir
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    paths = [path for name in config.option.quant_budget for path in session.named(name, base)]
    if not paths and not given:
        paths = [path for name in config.getini("quant_budget") for path in session.named(str(name), base)]
        config.args = config.args + [str(path) for path in paths]
    elif paths:
        config.args = (config.args if given else []) + [str(path) for path in paths]
    for path in paths:
        session.budget(path)
    for argument in config.args:
        path = base / argument.split("::")[0]
        if path.suffix in SUFFIXES and path.is_file():
            session.named(argument.split("::")[0], base)
            session.check_id(str(base / argument))


def doubt(config: pytest.Config, session: Session) -> None:
    """Warn of limits that their questions cannot decide; with --quant-strict, raise BudgetError."""
    known = resolution.NONE_KNOWN
    if session.options.store is not None:
        known = flip_rates.remembered(session.options.cache)
    doubts = [problem for budget in session.budgets.values() for problem in resolution.doubts(budget, known)]
    if doubts and session.options.strict:
        raise BudgetError(*doubts)
    for problem in doubts:
        try:
            config.issue_config_time_warning(QuantBudgetWarning(str(problem)), stacklevel=2)
        except QuantBudgetWarning:  # `-W error`
            raise BudgetError(problem) from None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> BudgetFile | None:
    """Budgets that were named; other YAML files are none of ours."""
    if file_path.resolve() in parent.config.stash[SESSION].budgets:
        root = parent.config.rootpath
        # pytest names no file outside its root directory; without a name, two such budgets would share their ids.
        outside: dict[str, Any] = {} if file_path.is_relative_to(root) else {"nodeid": os.path.relpath(file_path, root)}
        node: BudgetFile = BudgetFile.from_parent(parent, path=file_path, **outside)
        return node
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`quant_model` and `quant_measurement` run once for each method of the budgets given."""
    if "quant_method" in metafunc.fixturenames:
        budgets = metafunc.config.stash[SESSION].budgets.values()
        pairs = [(budget, method) for budget in budgets for method in budget.methods]
        many = len(budgets) > 1
        ids = [f"{budget.path.stem}-{method.name}" if many else method.name for budget, method in pairs]
        metafunc.parametrize("quant_method", pairs or [None], indirect=True, ids=ids or ["no-budget"], scope="session")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Plan what the selected tests need, all of them before the first is measured."""
    mine = session.config.stash[SESSION]
    for item in session.items:
        if isinstance(item, LimitItem):
            mine.plan(item.budget, item.method, [item.limit])
        elif "quant_measurement" in getattr(item, "fixturenames", ()):
            pair: tuple[Budget, Method] | None = item.callspec.params.get("quant_method")  # type: ignore[attr-defined]
            if pair is not None:
                mine.plan(pair[0], pair[1], None)
    mine.select(item.nodeid for item in session.items if isinstance(item, LimitItem))
    if mine.entries and not session.config.option.collectonly and mine.options.stored is None:
        _ = mine.gpus  # their free memory, before anything of this run is loaded


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The marker `gpu(...)` on users' tests; a budget's own tests look for themselves, and report a verdict."""
    session = item.config.stash[SESSION]
    for mark in () if isinstance(item, LimitItem) else item.iter_markers("gpu"):
        lacking = session.lacking(gpu_need(mark))
        if lacking is not None:
            no_gpu(session.options.require_gpu, lacking)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The exchange folder belongs to the run."""
    session = config.stash.get(SESSION, None)
    if session is not None:
        session.close()
