"""What the recorder does at the end of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import session

from pytest_quantbudget.core.verdict import LimitReport, Verdict
from pytest_quantbudget.measure import flip_rates
from pytest_quantbudget.plugin.recorder import Recorder


@pytest.mark.parametrize("again", [False, True])
def test_a_report_that_is_judged_again_is_no_new_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    kept: list[Path] = []
    monkeypatch.setattr(flip_rates, "remember", lambda folder, budgets, measured: kept.append(folder))
    run: Any = session(tmp_path)
    run.limits["x"] = LimitReport("x", "max_gsm8k_drop", 1, Verdict("within", ""))
    options: Any = SimpleNamespace(
        update="",
        report=None,
        html=None,
        history=None,
        summary=None,
        for_github=False,
        store=str(tmp_path),
        cache=tmp_path,
        stored=object() if again else None,
    )
    config: Any = SimpleNamespace(option=SimpleNamespace())
    ended: Any = SimpleNamespace(exitstatus=0)
    Recorder(config, run, options).pytest_sessionfinish(ended)
    assert kept == ([] if again else [tmp_path])
