"""Where a run's measurements come from: chosen once, by the options."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.measure.progress import StateFile
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.plugin import live
from pytest_quantbudget.plugin.gpus import local_gpus
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.report.stored_run import StoredRun


def choose(config: pytest.Config, options: Options, needs: Needs) -> Runner | StoredRun:
    """The report that is judged again, or a runner; in a worker of pytest-xdist, one that shares with the others."""
    if options.stored is not None:
        return StoredRun(needs, options.stored)
    gpus = local_gpus(config)
    # Their free memory counts before anything of this run is loaded.
    _ = gpus.usable
    runner = Runner(needs, gpus, options.cache, options.store, options.refresh, options.trust, options.deadline)
    sent = getattr(config, "workerinput", None)
    if sent is None:
        runner.view = live.view(config)
        # Made now: where a plugin forks each test, what the forks measure is found in the folder that they all know.
        _ = runner.exchange
    else:
        runner.deadline = float(sent["quantbudget_deadline"])
        runner.folder = Path(sent["quantbudget_folder"])
        runner.view = StateFile(live.worker_file(runner.folder, sent["workerid"]))
    config.add_cleanup(runner.close)
    return runner
