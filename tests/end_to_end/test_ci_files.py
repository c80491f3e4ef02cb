"""The files of docs/ci have their services' form, and their commands, run side by side, give one run's verdicts."""

import importlib.resources
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ci_files
import jsonschema
import pytest
import yaml
from ci_files import CI, KUBECTL, SBATCH, GitHub, Job, Place, ended

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.report import document

# As the files name it, and with fewer methods: two limits are over, in a job each.
BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks:
  wordmath: {file: builtin, questions: 12, max_new_tokens: 96}
methods:
  fp32:
    budget: {max_weights: 1 MiB, min_wordmath: 50}
  bf16:
    budget: {max_weights_ratio: 0.51, min_speedup: 0.01, max_wordmath_drop: 60}
  nf4:
    budget: {max_weights_ratio: 0.05, min_tokens_per_s: 0.001, max_wordmath_flips: 90}
"""
METHODS = ["fp32", "bf16", "nf4"]
SHIPPED = CI.parent.parent / "budgets" / "builtin.yaml"


@pytest.fixture
def place(tmp_path: Path, simulated_engine: str) -> Place:
    """A checkout with a budget, whose jobs measure without a model."""
    return checkout(tmp_path, simulated_engine)


def checkout(folder: Path, conftest: str) -> Place:
    (folder / "budgets").mkdir()
    (folder / "budgets/builtin.yaml").write_text(BUDGET)
    (folder / "conftest.py").write_text(conftest)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return Place(folder, {"QUANT_CACHE": str(folder / "cache"), "REPORTS": str(folder / "reports")})


def verdicts(report: Path) -> dict[str, Verdict]:
    budgets = document.read(report).budgets
    return {limit.id: limit.verdict for b in budgets for m in b.methods for limit in m.limits}


def as_one_run(place: Place, merged: Path, judge: Job, jobs: Sequence[Job]) -> None:
    """The jobs have measured, and what they measured, merged, has the verdicts of one run on the same cache."""
    assert [job.code for job in jobs] == [0] * len(jobs), [job.printed for job in jobs]
    assert sum("1 failed" in job.printed for job in jobs) == 2, "two jobs have a limit that is over, and pass"
    assert judge.code == pytest.ExitCode.TESTS_FAILED, judge.printed
    one = place.run('pytest --quant-budget "$BUDGET" --quant-cache "$QUANT_CACHE" --quant-report one.json', ENVIRON)
    assert one.code == pytest.ExitCode.TESTS_FAILED, one.printed
    found = verdicts(merged)
    assert found == verdicts(place.folder / "one.json")
    assert sorted(name for name, verdict in found.items() if verdict.outcome != "within") == [
        "budgets/builtin.yaml::fp32::max_weights",
        "budgets/builtin.yaml::nf4::max_weights_ratio",
    ]
    budget = yaml.safe_load((place.folder / ENVIRON["BUDGET"]).read_text())
    assert len(found) == sum(len(method["budget"]) for method in budget["methods"].values())
    assert f"judged from {len(METHODS)} reports" in judge.printed


ENVIRON = {"BUDGET": "budgets/builtin.yaml"}


def on_github(place: Place) -> tuple[Path, Job, list[Job]]:
    runner = GitHub("github.yml", place)
    summary = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(place.folder / "step.md")}
    variables = {"vars.QUANT_CACHE": place.environ["QUANT_CACHE"]}
    script, environ = runner.script("methods", variables)
    listed = place.run(script, {**environ, "GITHUB_OUTPUT": str(place.folder / "output")})
    assert listed.code == 0, listed.printed
    output = dict(line.split("=", 1) for line in (place.folder / "output").read_text().splitlines())
    methods = runner.matrix("measure", {"needs.methods.outputs.methods": output["methods"]})
    assert methods == METHODS
    started = []
    for method in methods:
        script, environ = runner.script("measure", {**variables, "matrix.method": method})
        started.append(place.start(script, {**environ, **summary}))
    jobs = ended(started)
    assert not (place.folder / "step.md").exists(), "the last job alone writes a summary"
    # Each job has a folder of its own there; here they share one, and each uploads its report.
    reports = place.folder / "reports"
    for method in methods:
        others = [path for path in reports.iterdir() if not path.name.startswith(f"{method}.")]
        kept = {path: path.read_bytes() for path in others}
        for path in others:
            path.unlink()
        runner.uploaded("measure", {"matrix.method": method})
        for path, data in kept.items():
            path.write_bytes(data)
    for path in reports.iterdir():
        path.unlink()
    runner.downloaded("judge")
    script, environ = runner.script("judge", variables)
    judge = place.run(script.replace("--quant-html budget.html", ""), {**environ, **summary})
    assert "::error title=fp32 max_weights over::" in judge.printed
    assert not [job for job in jobs if "::error" in job.printed]
    assert "limits over" in (place.folder / "step.md").read_text()
    (place.folder / "budget.html").write_text("")
    runner.uploaded("judge", {})
    return place.folder / "artifacts/quantization-budget/budget.json", judge, jobs


def on_gitlab(place: Place) -> tuple[Path, Job, list[Job]]:
    pipeline = ci_files.read("gitlab.yml")
    (matrix,) = pipeline["measure"]["parallel"]["matrix"]
    script = "\n".join(ci_files.without_install(pipeline["measure"]["script"]))
    variables = {**pipeline["variables"], "QUANT_CACHE": place.environ["QUANT_CACHE"]}
    methods = [method for method in matrix["METHOD"] if method in METHODS]
    jobs = ended([place.start(script, {**variables, "METHOD": method}) for method in methods])
    (kept,) = pipeline["measure"]["artifacts"]["paths"]
    assert {path.name for path in (place.folder / kept).glob("*.json")} == {f"{method}.json" for method in METHODS}
    script = "\n".join(ci_files.without_install(pipeline["judge"]["script"]))
    judge = place.run(script.replace("--quant-html budget.html", ""), variables)
    assert "limits over" in (place.folder / "summary.md").read_text()
    assert (place.folder / pipeline["judge"]["artifacts"]["reports"]["junit"]).exists()
    return place.folder / "budget.json", judge, jobs


def on_kubernetes(place: Place) -> tuple[Path, Job, list[Job]]:
    _, measure, judge = yaml.safe_load_all((CI / "kubernetes.yaml").read_text())
    pods = []
    for job in (measure, judge):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        pods.append(
            (container["command"], *container["args"], {each["name"]: each["value"] for each in container["env"]})
        )
    (shell, script, environ), (_, last, _) = pods
    environ = {**environ, **place.environ}
    indexed = [{**environ, "JOB_COMPLETION_INDEX": str(index)} for index in range(len(METHODS))]
    jobs = ended([place.start(script, each, shell) for each in indexed])
    one_more = place.run(script, {**environ, "JOB_COMPLETION_INDEX": str(len(METHODS))}, shell)
    assert (one_more.code, one_more.printed) == (2, "budgets/builtin.yaml has no method number 4\n")
    # What starts them waits for one before it lets the other go.
    place.stand_in("kubectl", KUBECTL)
    started = place.run(str(CI / "kubernetes.sh"), {})
    assert started.code == 0, started.printed
    assert [call[1] for call in place.calls()] == ["delete", "apply", "get", "patch", "get", "logs", "wait"]
    return place.folder / "reports/budget.json", place.run(last, environ, shell), jobs


def on_slurm(place: Place) -> tuple[Path, Job, list[Job]]:
    place.stand_in("sbatch", SBATCH)
    (place.folder / "reports").mkdir()
    (place.folder / "reports/old.json").write_text("of an earlier array")
    submitted = place.run(f"{CI}/slurm/submit.sh --gpus=1", {})
    assert submitted.code == 0, submitted.printed
    array, last = place.calls()
    assert array[1:4] == ["--parsable", "--array=0-2", "--gpus=1"]
    assert last[1:3] == ["--parsable", "--dependency=afterany:1"]
    assert not (place.folder / "reports/old.json").exists()
    # `submit.sh` exports what the tasks read; sbatch hands the environment on.
    tasks = [{**ENVIRON, "SLURM_ARRAY_TASK_ID": str(index)} for index in range(len(METHODS))]
    jobs = ended([place.start(Path(array[-1]).read_text(), task, ("bash", "-c")) for task in tasks])
    judge = place.run(Path(last[-1]).read_text(), ENVIRON, ("bash", "-c"))
    assert "limits over" in (place.folder / "reports/summary.md").read_text()
    return place.folder / "reports/budget.json", judge, jobs


ON = [on_github, on_gitlab, on_kubernetes, on_slurm]


@pytest.mark.parametrize("on", ON)
def test_a_job_for_each_method_and_one_that_merges_give_the_verdicts_of_one_run(
    place: Place, on: Callable[[Place], tuple[Path, Job, list[Job]]]
) -> None:
    as_one_run(place, *on(place))


@pytest.mark.model
def test_three_processes_with_one_method_each_on_one_cache_are_one_run(tmp_path: Path) -> None:
    """With the built-in model."""
    place = checkout(tmp_path, "")
    text = BUDGET.replace("max_weights_ratio: 0.05", "min_token_agreement: 50, max_weights_ratio: 0.1")
    (tmp_path / "budgets/builtin.yaml").write_text(text)
    as_one_run(place, *on_slurm(place))


def test_a_job_that_left_no_report_is_named_by_the_one_that_merges(place: Place) -> None:
    script = (CI / "slurm/measure.sbatch").read_text()
    job = place.run(script, {**ENVIRON, "SLURM_ARRAY_TASK_ID": "0"}, ("bash", "-c"))
    judge = place.run((CI / "slurm/judge.sbatch").read_text(), ENVIRON, ("bash", "-c"))
    assert (job.code, judge.code) == (0, pytest.ExitCode.TESTS_FAILED), judge.printed
    judge_alone = "bf16: max_weights_ratio not measured: reports/fp32.json holds no measurement of it"
    assert judge_alone.partition("not measured: ")[2] in judge.printed


def test_what_is_no_verdict_fails_the_job_that_measures(place: Place) -> None:
    """A mistake in the budget, for one; a verdict does not."""
    (place.folder / "budgets/builtin.yaml").write_text(BUDGET.replace("max_weights:", "max_wights:"))
    for script in ((CI / "slurm/measure.sbatch").read_text(), GitHub("github.yml", place).script("measure", {
        "vars.QUANT_CACHE": "c", "matrix.method": "fp32"})[0]):  # fmt: skip
        job = place.run(script, {**ENVIRON, "METHOD": "fp32", "SLURM_ARRAY_TASK_ID": "0"}, ("bash", "-c"))
        assert job.code != 0, job.printed


def schema(name: str) -> Any:
    package = pytest.importorskip("check_jsonschema", reason="the extra `test` brings check-jsonschema")
    return json.loads((importlib.resources.files(package) / "builtin_schemas" / "vendor" / name).read_text())


@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("github.yml", "github-workflows.json"),
        ("github_gpus.yml", "github-workflows.json"),
        ("gitlab.yml", "gitlab-ci.json"),
    ],
)
def test_a_pipeline_has_the_form_that_its_service_publishes(file: str, form: str) -> None:
    of, content = schema(form), ci_files.read(file)
    # YAML 1.1 reads the key `on` as a truth.
    content = {"on" if key is True else key: value for key, value in content.items()}
    jsonschema.validate(content, of)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "jobs": {"a": {}}, "measure": {"script": 1}}, of)


def test_what_kubernetes_is_given_has_the_form_that_it_publishes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the extra `test` brings it")
    for resource in yaml.safe_load_all((CI / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(resource, "1.33", strict=True)
    resource["spec"]["completion"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, "1.33", strict=True)


def test_the_files_name_the_methods_that_the_shipped_budget_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SHIPPED), "--methods=json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert ci_files.read("gitlab.yml")["measure"]["parallel"]["matrix"] == [{"METHOD": methods}]
    (job,) = [
        each for each in yaml.safe_load_all((CI / "kubernetes.yaml").read_text()) if "completions" in each["spec"]
    ]
    assert job["spec"]["completions"] == job["spec"]["maxFailedIndexes"] == len(methods)


def test_the_methods_of_one_budget_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(
            BUDGET.replace("budget: {max_weights: 1 MiB, min_wordmath: 50}", "marks: []")
        )
    assert main(["check", str(tmp_path / "a.yaml"), "--methods"]) == 0
    assert capsys.readouterr().out == "bf16\nnf4\n", "fp32 has no limits, and so no tests"
    assert main(["check", str(tmp_path), "--methods"]) == 4
    assert "--methods lists those of one budget, and 2 were named" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file", sorted(path.relative_to(CI).as_posix() for path in CI.rglob("*") if path.suffix in (".sh", ".sbatch"))
)
def test_a_script_is_one_that_bash_reads(file: str) -> None:
    path = CI / file
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    assert path.stat().st_mode & 0o111, f"{file} can be started"


def test_the_page_names_every_file() -> None:
    named = set(re.findall(r"\]\(ci/([\w./]+)\)", (CI.parent / "ci.md").read_text()))
    assert named == {path.relative_to(CI).as_posix() for path in CI.rglob("*") if path.is_file()}
