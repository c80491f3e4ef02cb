"""The start of a run with budgets: options and budgets are read; what measures and reports waits until it is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_quantbudget.budget.find import SUFFIXES, Budgets, escaped, is_odd, looks_like_budget
from pytest_quantbudget.core.files import Roots
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.judge import resolution
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.measure import flip_rates
from pytest_quantbudget.plugin import collect
from pytest_quantbudget.plugin.doubts import Doubts
from pytest_quantbudget.plugin.options import Options, read
from pytest_quantbudget.plugin.session import Session
from pytest_quantbudget.plugin.stash import SESSION, QuantBudgetWarning

if TYPE_CHECKING:
    from pytest_quantbudget.plugin.session import Measurer


def start(config: pytest.Config) -> None:
    """Make the run's session, register the hooks that work on it, and read the budgets."""
    options = read(config)
    controller = not hasattr(config, "workerinput")
    if controller and not config.option.collectonly and options.stored is None:
        _prepare_to_measure(config, options)
    budgets = _budgets(options)

    def make_measurer(needs: Needs) -> Measurer:
        from pytest_quantbudget.plugin.measurer import choose

        return choose(config, options, needs)

    needs = Needs(options.repeat_runs, options.update)
    session = Session(
        config.rootpath,
        budgets,
        needs,
        make_measurer,
        options.require_gpu,
        fail_on_skip=options.fail_on_skip,
        history=options.history,
    )
    if options.stored is not None:
        session.machines = options.stored.machines
    config.stash[SESSION] = session
    config.pluginmanager.register(collect, "quantbudget-collect")
    if controller and not config.option.collectonly:
        _register_recorder(config, session, options)
    with _usage_errors():
        add_budgets(config, budgets)
        _spare_baselines(budgets, options)
        _refuse_contradictions(budgets, options)
        if controller:
            _doubt(config, budgets, options)


def _prepare_to_measure(config: pytest.Config, options: Options) -> None:
    """Raise pytest.UsageError on a platform on which nothing can be measured; warn where nothing will be kept."""
    if not (hasattr(os, "killpg") and hasattr(signal, "SIGUSR1")):
        raise pytest.UsageError(
            f"budgets are measured on Linux, with its process groups and signals, which {sys.platform} "
            "does not have; on Windows, use WSL; --collect-only, --quant-estimate and --quant-from work here too"
        )
    if options.cache is None and not config.option.quant_no_cache:
        lost = "checkpoints that are quantized here" if options.store is not None else "results"
        message = (
            f"{lost} are not kept: this user has no home directory (HOME is not set, and its id has no account); "
            "--quant-cache DIR or XDG_CACHE_HOME names a place, and --quant-no-cache says that none is wanted"
        )
        try:
            config.issue_config_time_warning(QuantBudgetWarning(message), stacklevel=2)
        except QuantBudgetWarning:  # `-W error`
            raise pytest.UsageError(message) from None


def _register_recorder(config: pytest.Config, session: Session, options: Options) -> None:
    from pytest_quantbudget.plugin.recorder import Recorder
    from pytest_quantbudget.plugin.xdist import Controller

    if config.pluginmanager.hasplugin("dsession") or config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Controller(config, session), "quantbudget-xdist")
    config.pluginmanager.register(Recorder(config, session, options), "quantbudget-recorder")


def estimate(config: pytest.Config) -> int:
    """Print the memory that each method of the budgets is going to take; the exit code. Raises pytest.UsageError."""
    from pytest_quantbudget.models.estimate import table
    from pytest_quantbudget.plugin.gpus import local_gpus

    budgets = _budgets(read(config))
    with _usage_errors():
        add_budgets(config, budgets)
    if not budgets.loaded:
        raise pytest.UsageError("--quant-estimate needs a budget: --quant-budget FILE")
    problems: list[str] = []
    for budget in budgets.loaded.values():
        try:
            sys.stdout.write("\n".join(table.lines(budget, local_gpus(config).usable)) + "\n\n")
        except BudgetError as error:
            problems += map(str, error.problems)
    if problems:
        raise pytest.UsageError(*problems)
    return 0


def _spare_baselines(budgets: Budgets, options: Options) -> None:
    """Raise pytest.UsageError where the run's report would take the place of one that is a baseline."""
    for budget in budgets.loaded.values():
        if budget.stored is not None and options.report is not None and budget.stored.file == options.report.resolve():
            raise pytest.UsageError(f"--quant-report would overwrite the baseline of {budget.path.name}")


def _refuse_contradictions(budgets: Budgets, options: Options) -> None:
    """Raise pytest.UsageError for reports that cannot be judged together."""
    if options.stored is None or len(options.stored.reports) == 1:
        return
    from pytest_quantbudget.core.safetext import safe
    from pytest_quantbudget.report import differences

    for budget in budgets.loaded.values():
        found = list(differences.contradictions(options.stored, budget))
        twice = [m.name for m in budget.methods if len(options.stored.machines(budget, m.name)) > 1]
        if twice and options.update:
            found.append(f"{twice[0]} was measured on several kinds of machine: --quant-update takes one at a time")
        if found:
            raise pytest.UsageError(*(safe(f"--quant-from: {budget.path.name}: {text}") for text in found))


def _budgets(options: Options) -> Budgets:
    elsewhere = options.stored is not None
    return Budgets(Roots(options.roots), options.load_format, elsewhere=elsewhere, permissions=options.permissions)


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
    paths = budgets.all_named(config.option.quant_budget, base)
    if not paths and not given:
        paths = budgets.all_named(map(str, config.getini("quant_budget")), base)
        config.args = config.args + _known_to_pytest(config, budgets, paths)
    elif paths:
        config.args = (config.args if given else []) + _known_to_pytest(config, budgets, paths)
    for path in paths:
        budgets.load(path)
    for argument in list(config.args):
        if is_odd(argument) and argument.endswith(SUFFIXES) and _is_budget(base / argument, budgets):
            # Workers get the options, and not an argument that pytest cannot read.
            config.args.remove(argument)
            config.option.quant_budget = [*config.option.quant_budget, argument]
            for path in budgets.named(argument, base):
                budgets.odd[_id(config, path)] = path
                budgets.load(path)
            continue
        file = argument.split("::")[0]
        path = base / file
        if path.resolve() in budgets.loaded and file == argument:
            continue
        if path.suffix in SUFFIXES and _is_budget(path, budgets):
            if path.resolve() not in budgets.loaded:
                budgets.named(file, base)
            budgets.check_id(str(base / argument))


def _is_budget(path: Path, budgets: Budgets) -> bool:
    """Whether an argument is for us: another option names it, or it looks like a budget. Other plugins have theirs."""
    return path.is_file() and (path.resolve() in budgets.loaded or looks_like_budget(path))


def _known_to_pytest(config: pytest.Config, budgets: Budgets, paths: Sequence[Path]) -> list[str]:
    """The paths that pytest can be given as arguments; the others are noted as odd."""
    budgets.odd.update({_id(config, path): path for path in paths if is_odd(str(path))})
    return [str(path) for path in paths if not is_odd(str(path))]


def _id(config: pytest.Config, path: Path) -> str:
    return escaped(os.path.relpath(path, config.rootpath).replace(os.sep, "/"))


def _doubt(config: pytest.Config, budgets: Budgets, options: Options) -> None:
    """Warn of limits that have too few questions to be decided; with --quant-strict, raise BudgetError."""
    cache = options.cache if options.store is not None else None
    known = flip_rates.remembered(cache) if cache is not None else resolution.NONE_KNOWN
    doubts = [problem for budget in budgets.loaded.values() for problem in resolution.doubts(budget, known)]
    if doubts and options.strict:
        raise BudgetError(*doubts)
    if doubts:
        config.pluginmanager.register(Doubts(doubts), "quantbudget-doubts")
