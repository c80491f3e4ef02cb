"""The start of a run with budgets: options read, whoever measures chosen, budgets read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from pytest_quantbudget.budget.find import SUFFIXES, Budgets
from pytest_quantbudget.core.needs import Needs
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.judge import resolution
from pytest_quantbudget.measure import flip_rates
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.models.estimate import table
from pytest_quantbudget.plugin import collect, options, xdist
from pytest_quantbudget.plugin.gpus import local_gpus
from pytest_quantbudget.plugin.hooks import SESSION, QuantBudgetWarning
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.plugin.recorder import Recorder
from pytest_quantbudget.plugin.session import Measurer, Session
from pytest_quantbudget.report.stored_run import StoredRun


def start(config: pytest.Config) -> None:
    """Make the run's session, register the hooks that work on it, and read the budgets."""
    read = options.read(config)
    needs = Needs(read.repeat_runs)
    runner = None
    if read.stored is not None:
        measurer: Measurer = StoredRun(needs, read.stored)
    else:
        measurer = runner = _runner(config, read, needs)
    budgets = _budgets(read)
    session = config.stash[SESSION] = Session(config.rootpath, budgets, measurer, read.require_gpu)
    config.pluginmanager.register(collect, "quantbudget-collect")
    controller = not hasattr(config, "workerinput")
    if controller:
        xdist.register(config, session, runner)
        config.pluginmanager.register(Recorder(config, session, read, runner), "quantbudget-recorder")
    with _usage_errors():
        add_budgets(config, budgets)
        if controller:
            _doubt(config, budgets, read)
    if runner is not None and budgets.loaded and not config.option.collectonly:
        # Their free memory counts before anything of this run is loaded.
        _ = runner.gpus.usable


def _runner(config: pytest.Config, read: Options, needs: Needs) -> Runner:
    shared = xdist.Shared.of(config, read)
    runner = Runner(
        needs,
        local_gpus(config),
        read.cache,
        read.store,
        read.refresh,
        read.trust,
        shared.deadline,
        shared.folder,
        shared.answers,
        shared.view,
    )
    config.add_cleanup(runner.close)
    return runner


def estimate(config: pytest.Config) -> int:
    """Print the memory that each method of the budgets is going to take; the exit code. Raises pytest.UsageError."""
    budgets = _budgets(options.read(config))
    with _usage_errors():
        add_budgets(config, budgets)
    if not budgets.loaded:
        raise pytest.UsageError("--quant-estimate wants a budget: --quant-budget FILE")
    problems: list[str] = []
    for budget in budgets.loaded.values():
        try:
            sys.stdout.write("\n".join(table.lines(budget, local_gpus(config).usable)) + "\n\n")
        except BudgetError as error:
            problems += map(str, error.problems)
    if problems:
        raise pytest.UsageError(*problems)
    return 0


def _budgets(read: Options) -> Budgets:
    return Budgets(read.roots, read.load_format, elsewhere=read.stored is not None)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Budget errors inside become usage errors: exit code 4, one message each."""
    try:
        yield
    except BudgetError as error:
        raise pytest.UsageError(*map(str, error.problems)) from None


def add_budgets(config: pytest.Config, budgets: Budgets) -> None:
    """Add the budgets of the options to the arguments, and read all that are named in either way."""
    base = config.invocation_params.dir
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    paths = [path for name in config.option.quant_budget for path in budgets.named(name, base)]
    if not paths and not given:
        paths = [path for name in config.getini("quant_budget") for path in budgets.named(str(name), base)]
        config.args = config.args + [str(path) for path in paths]
    elif paths:
        config.args = (config.args if given else []) + [str(path) for path in paths]
    for path in paths:
        budgets.load(path)
    for argument in config.args:
        file = argument.split("::")[0]
        path = base / file
        if path.suffix in SUFFIXES and path.is_file():
            budgets.named(file, base)
            budgets.check_id(str(base / argument))


def _doubt(config: pytest.Config, budgets: Budgets, read: Options) -> None:
    """Warn of limits that their questions cannot decide; with --quant-strict, raise BudgetError."""
    known = resolution.NONE_KNOWN if read.store is None else flip_rates.remembered(read.cache)
    doubts = [problem for budget in budgets.loaded.values() for problem in resolution.doubts(budget, known)]
    if doubts and read.strict:
        raise BudgetError(*doubts)
    for problem in doubts:
        try:
            config.issue_config_time_warning(QuantBudgetWarning(str(problem)), stacklevel=2)
        except QuantBudgetWarning:  # `-W error`
            raise BudgetError(problem) from None
