"""Where a run's measurements come from: chosen once, by the options."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantbudget.core.needs import Needs
from pytest_quantbudget.measure import answers_file
from pytest_quantbudget.measure.progress import StateFile, View
from pytest_quantbudget.measure.runner import Runner
from pytest_quantbudget.plugin import live
from pytest_quantbudget.plugin.gpus import local_gpus
from pytest_quantbudget.plugin.options import Options
from pytest_quantbudget.plugin.session import Measurer
from pytest_quantbudget.report.stored_run import StoredRun


def choose(config: pytest.Config, options: Options, needs: Needs) -> Measurer:
    """The report that is judged again, or a runner; in a worker of pytest-xdist, one that shares with the others."""
    if options.stored is not None:
        return StoredRun(needs, options.stored)
    sent = getattr(config, "workerinput", None)
    folder: Path | None = None
    view: View | None
    if sent is None:
        deadline = options.deadline
        answers = answers_file.beside(options.report) if options.report is not None else None
        view = live.view(config)
    else:
        folder = Path(sent["quantbudget_folder"])
        deadline = float(sent["quantbudget_deadline"])
        answers = Path(sent["quantbudget_answers"]) if sent["quantbudget_answers"] else None
        view = StateFile(live.worker_file(folder, sent["workerid"]))
    gpus = local_gpus(config)
    # Their free memory counts before anything of this run is loaded.
    _ = gpus.usable
    runner = Runner(
        needs,
        gpus,
        options.cache,
        options.store,
        options.refresh,
        options.trust,
        deadline,
        folder,
        answers,
        view,
    )
    config.add_cleanup(runner.close)
    return runner
