"""The plugin's hooks. A run without a budget imports nothing of the package but this folder's light modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_quantbudget.plugin.stash import SESSION

# The same as in budget/find.py and budget/yaml.py, which are imported only once there may be a budget.
SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 200_000
WORDS = re.compile(b"methods|extends")
MARKER = (
    "gpu(min_vram=None, min_capability=None, count=1): skip, saying what was missing and what was found, "
    'without such GPUs; min_vram as "16 GiB", min_capability as "8.0".'
)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Where an option of ours has a value of its own (`--quant-cache DIR`), find the root directory without it."""
    options = {argument for argument in args if argument.startswith("--quant-") and "=" not in argument}
    if options - {"--quant-budget"}:
        from pytest_quantbudget.plugin.root import settle

        settle(early_config, args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--quant-estimate` instead of a run."""
    if not config.option.quant_estimate:
        return None
    from pytest_quantbudget.plugin.start import estimate

    return estimate(config)


def pytest_configure(config: pytest.Config) -> None:
    """Read every budget that is named, so that a mistake ends the run before anything is loaded."""
    config.addinivalue_line("markers", MARKER)
    if _names_budgets(config):
        from pytest_quantbudget.plugin.start import start

        start(config)


def _names_budgets(config: pytest.Config) -> bool:
    """Whether an option of ours is given, the ini file names budgets, or an argument is one."""
    given = (value for name, value in vars(config.option).items() if name.startswith("quant_"))
    if any(value not in (None, False, []) for value in given):
        return True
    if config.args_source is not pytest.Config.ArgsSource.ARGS and config.getini("quant_budget"):
        return True
    files = {name for argument in config.args for name in (argument, argument.split("::")[0])}
    return any(_is_budget(config.invocation_params.dir / file) for file in files if file.endswith(SUFFIXES))


def _is_budget(path: Path) -> bool:
    """Whether a YAML file is a budget; other plugins have theirs. Only where it may be one is a reader imported."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if not WORDS.search(file.read(MAX_BYTES)):
                return False
    except (OSError, ValueError):
        return False
    from pytest_quantbudget.budget.find import looks_like_budget

    return looks_like_budget(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`quant_model` and `quant_measurement` run once for each method of the budgets given."""
    if "quant_method" in metafunc.fixturenames:
        session = metafunc.config.stash.get(SESSION, None)
        budgets = list(session.budgets.loaded.values()) if session is not None else []
        pairs = [(budget, method) for budget in budgets for method in budget.methods]
        many = len(budgets) > 1
        ids = [f"{budget.path.stem}-{method.name}" if many else method.name for budget, method in pairs]
        metafunc.parametrize("quant_method", pairs or [None], indirect=True, ids=ids or ["no-budget"], scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The marker `gpu(...)` on users' tests; the limits of a budget check theirs themselves, and report a verdict."""
    marks = list(item.iter_markers("gpu"))
    if marks:
        from pytest_quantbudget.plugin import gpus
        from pytest_quantbudget.plugin.collect import BudgetItem

        for mark in marks if not isinstance(item, BudgetItem) else ():
            gpus.require(item.config, gpus.local_gpus(item.config).lacking(gpus.gpu_need(mark)))
