"""Runs of MLflow: with its own client where that is installed, and with one that notes what it is told elsewhere."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import stored_reports

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import Report
from pytest_quantbudget.report.exports import mlflow


class Noted:
    """A client that notes its runs, and refuses what MLflow's own refuses."""

    def __init__(self) -> None:
        self.tracking_uri = "noted:"
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, Any] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str]) -> Any:
        assert all(len(value) <= 8000 for value in tags.values())
        id_ = f"run{len(self.runs)}"
        run = SimpleNamespace(tags=tags, metrics={}, params={}, files={}, status="RUNNING", at=start_time)
        self.runs[id_] = run
        return SimpleNamespace(info=SimpleNamespace(run_id=id_))

    def log_batch(self, run: str, metrics: list[Any], params: list[Any]) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for name in (each.key for each in (*metrics, *params)):
            assert not mlflow.ODD.search(name)
            assert 0 < len(name) <= 250
        self.runs[run].metrics |= {each.key: each.value for each in metrics}
        self.runs[run].params |= {each.key: each.value for each in params}

    def log_artifact(self, run: str, path: str) -> None:
        self.runs[run].files[Path(path).name] = Path(path).read_text()

    def log_text(self, run: str, text: str, name: str) -> None:
        self.runs[run].files[name] = text

    def set_terminated(self, run: str, status: str, at: int) -> None:
        self.runs[run].status = status


@pytest.fixture
def report(tmp_path: Path) -> Report:
    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    found = stored_reports.report(budget)
    document.write(tmp_path / "report.json", found)
    return found


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """In place of MLflow."""
    found = Noted()
    parts = {"mlflow": ModuleType("mlflow"), "mlflow.entities": ModuleType("e"), "mlflow.exceptions": ModuleType("x")}

    def entity(key: str, value: object, *more: object) -> Any:
        return SimpleNamespace(key=key, value=value)

    parts["mlflow"].MlflowClient = lambda uri: found  # type: ignore[attr-defined]
    parts["mlflow.entities"].Metric = parts["mlflow.entities"].Param = entity  # type: ignore[attr-defined]
    parts["mlflow.exceptions"].MlflowException = KeyError  # type: ignore[attr-defined]
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_a_run_has_the_verdicts_and_one_below_it_each_method(
    report: Report, client: Noted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "mlflow", str(tmp_path / "report.json"), "--experiment", "gate"]) == 0
    said = "logged run run0 and 4 below it, one a method, in experiment gate of noted:\n"
    assert capsys.readouterr().out == said
    parent, fp16, nf4, *others = client.runs.values()
    assert set(parent.files) == {"report.json", "summary.md", "figures.csv"}
    assert {run.status for run in client.runs.values()} == {"FINISHED"}
    assert [run.tags["mlflow.runName"] for run in (fp16, nf4, *others)] == ["fp16", "nf4", "gptq-int4", "awq-int4"]
    assert {run.tags["mlflow.parentRunId"] for run in (fp16, nf4, *others)} == {"run0"}
    assert nf4.metrics["weights bytes"] == stored_reports.GIB
    assert nf4.metrics["sums percent"] == 90.0
    assert nf4.metrics["sums percent low"] < 90.0 < nf4.metrics["sums percent high"]
    assert nf4.params["option double_quant"] == "True"
    assert nf4.params["device"] == stored_reports.H100.name
    mlflow.log(report, tmp_path / "report.json", experiment="gate")
    assert client.experiments == {"gate": "0"}


def test_where_a_server_refuses_the_run_is_no_finished_one(
    report: Report, client: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KeyError("quota\x1b[0m exceeded")

    monkeypatch.setattr(client, "log_text", refuse)
    with pytest.raises(ValueError, match=r"MLflow: 'quota.* exceeded'"):
        mlflow.log(report, tmp_path / "report.json")
    assert [run.status for run in client.runs.values()] == ["FAILED"]


def test_without_mlflow_the_command_says_what_to_install(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["export", "mlflow", str(tmp_path / "report.json")]) == 4
    assert "pip install 'pytest-quantbudget[mlflow]'" in capsys.readouterr().err


@pytest.mark.slow
def test_mlflow_itself_takes_the_runs(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "runs").as_uri()
    mlflow.log(report, tmp_path / "report.json", store)
    found = client(store)
    (experiment,) = (each for each in found.search_experiments() if each.name == mlflow.EXPERIMENT)
    runs = {run.info.run_name: run for run in found.search_runs([experiment.experiment_id])}
    assert set(runs) == {"b", "fp16", "nf4", "gptq-int4", "awq-int4"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["nf4"].data.metrics["sums percent"] == 90.0
    files = {file.path for file in found.list_artifacts(runs["b"].info.run_id)}
    assert files == {"report.json", "summary.md", "figures.csv"}
