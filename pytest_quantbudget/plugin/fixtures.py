"""What users' own tests may ask for: a live model, its measurement, the GPU."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_quantbudget.plugin.stash import SESSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pytest_quantbudget.core.budget import Budget, Method
    from pytest_quantbudget.core.gpus import Gpu
    from pytest_quantbudget.core.measurement import Measurement


@dataclass
class QuantModel:
    """A loaded model and its tokenizer; `method` is the budget's name for the precision."""

    method: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def quant_method(request: pytest.FixtureRequest) -> tuple[Budget, Method]:
    """The (budget, method) that a test is run for; parametrized over the budgets given."""
    if getattr(request, "param", None) is None:
        pytest.skip("no budget was given: add --quant-budget FILE")
    pair: tuple[Budget, Method] = request.param
    return pair


@pytest.fixture(scope="session")
def quant_model(request: pytest.FixtureRequest, quant_method: tuple[Budget, Method]) -> Iterator[QuantModel]:
    """A live model in each method of the budgets given, in this process, one at a time.

    All that the selected limits need is measured before the first model is loaded, and no other process of the run
    measures on the device until the last is freed.
    """
    from pytest_quantbudget.core.engines import TRANSFORMERS
    from pytest_quantbudget.core.request import DUMMY
    from pytest_quantbudget.engine.base import Lacking
    from pytest_quantbudget.engine.hf import load
    from pytest_quantbudget.measure.runner import Runner
    from pytest_quantbudget.models import engines
    from pytest_quantbudget.plugin.gpus import require

    session = request.config.stash[SESSION]
    budget, method = quant_method
    runner = session.measurer
    if not isinstance(runner, Runner):
        pytest.skip(f"no model is loaded: {runner.stored.name} is judged (--quant-from)")
    if method.subject.load_format == DUMMY:
        pytest.skip(f"{method.name}: dummy weights have nothing to say, and no tokenizer")
    if method.subject.python is not None:
        pytest.skip(f"{method.name} is measured by {method.subject.python}: there is no live model in this process")
    if method.subject.engine != TRANSFORMERS:
        where = method.subject.engine
        pytest.skip(f"{method.name} is measured in {where}: only transformers has a live model in this process")
    missing = engines.missing(method.subject)
    if missing is not None:
        pytest.skip(missing)
    _require_room(request.config, budget, method)
    runner.measure_all(session.budgets.loaded.values())
    for other, _ in session.selected():
        runner.noise(other)
    bench = runner.bench
    with bench.devices(method.subject.gpus):
        os.environ.update(bench.environ(method.subject.gpus))
        quantized = None
        if engines.makes_first(method.subject):
            made = bench.quantized(method.subject)
            if made.quantized is None:
                pytest.fail(f"{method.name}: {made.failures[0].message}", pytrace=False)
            quantized = str(bench.quantized_path(made.quantized))
        try:
            with warnings.catch_warnings():
                # The libraries' warnings, which `-W error` is not meant for.
                warnings.simplefilter("ignore")
                loaded = load.load(method.subject, quantized, runner.trust)
        except Lacking as error:
            require(request.config, str(error))
            raise
        resident = QuantModel(method.name, loaded.model, loaded.tokenizer)
        del loaded
        yield resident
        # pytest keeps the fixture's value until after this, so the weights go by name.
        del resident.model, resident.tokenizer
        _free()


def _require_room(config: pytest.Config, budget: Budget, method: Method) -> None:
    from pytest_quantbudget.plugin.gpus import require

    measurer = config.stash[SESSION].measurer
    lacking = measurer.lacking(budget, method, method.gpu) if method.gpu is not None else None
    lacking = lacking or measurer.too_large(budget, method)
    require(config, lacking and f"{method.name} {lacking}")


def _free() -> None:
    from pytest_quantbudget.engine.out_of_memory import release

    # pytest leaves a failed test's frames there, and they hold the model.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
    release()


@pytest.fixture
def quant_measurement(request: pytest.FixtureRequest, quant_method: tuple[Budget, Method]) -> Measurement:
    """All figures of the method: load time, weights, the workload's memory and speed, every declared task's answers."""
    session = request.config.stash[SESSION]
    budget, method = quant_method
    session.plan(budget, method, None)
    machines = session.machines(budget, method.name)
    if len(machines) > 1:
        pytest.skip(
            f"{method.name} was measured on {' and '.join(machines)}: judge one report at a time (--quant-from)"
        )
    _require_room(request.config, budget, method)
    return session.measurer.measure(budget, method)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Gpu:
    """The first GPU that this process may use; skips (fails with --quant-require-gpu) where there is none."""
    from pytest_quantbudget.core.gpus import GpuNeed
    from pytest_quantbudget.plugin.gpus import local_gpus, require

    gpus = local_gpus(request.config)
    require(request.config, gpus.lacking(GpuNeed()))
    return gpus.usable[0]
