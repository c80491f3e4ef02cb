"""Reports in the formats of other programs, read with what reads them."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import stored_reports
import yaml
from builders import REPORT
from gfm_pages import HOSTILE

from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Task
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report import figures
from pytest_quantbudget.report.document import MethodReport, Report
from pytest_quantbudget.report.exports import csv as table
from pytest_quantbudget.report.exports import ctrf, model_card

FORMULAS = ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1", "\N{FULLWIDTH EQUALS SIGN}1"]
# What the specification of the format requires and allows, as far as our documents use it.
CTRF = json.loads((Path(__file__).parents[1] / "data" / "ctrf.schema.json").read_text())


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Of a run of four methods, with verdicts."""
    budget = stored_reports.read(stored_reports.furnish(tmp_path), stored_reports.TEXT)
    found = stored_reports.report(budget)
    verdicts = stored_reports.judged(tmp_path, stored_reports.TEXT, found)
    methods = []
    for method in found.budgets[0].methods:
        names = [name.split()[1] for name in verdicts if name.split()[0] == method.name]
        limits = [LimitReport(f"b.yaml::{method.name}::{n}", n, 9, verdicts[f"{method.name} {n}"]) for n in names]
        methods.append(replace(method, limits=tuple(limits)))
    return replace(found, budgets=(replace(found.budgets[0], methods=tuple(methods)),))


def outcomes(*pairs: tuple[str, str]) -> Report:
    limits = tuple(
        LimitReport(f"b.yaml::nf4::{name}", name, 3, Verdict(outcome, f"it was {outcome}", unit="GiB"))
        for name, outcome in pairs
    )
    return replace(REPORT, budgets=(replace(REPORT.budgets[0], methods=(MethodReport("nf4", None, limits),), uses=()),))


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), strict=True))


def test_csv_has_a_row_a_limit_and_a_row_a_figure_in_base_units(report: Report) -> None:
    found = rows(table.text(report))
    limits = {(row["method"], row["name"]): row for row in found if row["row"] == "limit"}
    assert len(limits) == 8
    weights = limits["nf4", "max_weights"]
    assert (float(weights["value"]), weights["unit"], float(weights["limit"])) == (2**30, "B", 5 * 2**30)
    assert (weights["limit_text"], weights["outcome"], weights["anomalous"]) == ("5 GiB", "within", "false")
    drop = limits["nf4", "max_sums_drop"]
    assert (float(drop["value"]), drop["unit"], drop["n"], drop["of"]) == (10.0, "points", "10", "questions")
    figures = {(row["method"], row["name"]): row for row in found if row["row"] == "figure"}
    assert figures["nf4", "sums_drop"]["low"] == drop["low"]
    assert (figures["fp16", "ttft"]["unit"], figures["fp16", "ttft"]["device"]) == ("s", stored_reports.H100.name)


@pytest.mark.parametrize("text", [*FORMULAS, *HOSTILE])
def test_no_text_in_csv_is_a_formula_or_breaks_a_row(text: str) -> None:
    verdict = Verdict(OVER, text, 1.0, 2.0, text, text, of=text)
    limit = LimitReport(f"b.yaml::{text}::{text}", text, 3, verdict)
    budget = replace(
        REPORT.budgets[0], file=text, model=text, revision=text, uses=(), methods=(MethodReport(text, None, (limit,)),)
    )
    (row,) = rows(table.text(replace(REPORT, created=text, budgets=(budget,))))
    assert list(row) == list(table.COLUMNS)
    numbers = {"value", "limit", "line"}
    assert not [name for name, cell in row.items() if cell.startswith(table.FORMULA) and name not in numbers]
    assert all("\n" not in cell and "\t" not in cell for cell in row.values())


def test_a_negative_number_in_csv_stays_a_number() -> None:
    limit = LimitReport("b.yaml::nf4::max_kl", "max_kl", 3, Verdict(WITHIN, "fine", -2.5, 1.0, low=-4.0))
    budget = replace(REPORT.budgets[0], uses=(), methods=(MethodReport("nf4", None, (limit,)),))
    (row,) = rows(table.text(replace(REPORT, budgets=(budget,))))
    assert (float(row["value"]), float(row["low"])) == (-2.5, -4.0)


def test_ctrf_is_what_its_schema_says(report: Report) -> None:
    for each in (report, REPORT):
        jsonschema.validate(json.loads(ctrf.text(each)), CTRF, jsonschema.Draft7Validator)
    document = json.loads(ctrf.text(report))
    assert document["results"]["summary"] == {
        "tests": 8,
        "passed": 8,
        "failed": 0,
        "skipped": 0,
        "pending": 0,
        "other": 0,
        "suites": 1,
        "start": 1_767_225_600_000,
        "stop": 1_767_225_600_000,
    }
    test = next(test for test in document["results"]["tests"] if test["name"] == "nf4::max_weights")
    assert test["suite"] == ["b.yaml", "nf4"]
    assert (test["labels"]["measured"], test["labels"]["unit"], test["line"]) == (2**30, "B", 9)


def test_ctrf_fails_what_makes_a_run_fail() -> None:
    pairs = [("a", WITHIN), ("b", OVER), ("c", FAILED), ("d", NOT_RUN), ("e", SKIPPED)]
    tests = json.loads(ctrf.text(outcomes(*pairs)))["results"]["tests"]
    assert [test["status"] for test in tests] == ["passed", "failed", "failed", "failed", "skipped"]
    assert [test["rawStatus"] for test in tests] == [outcome for _, outcome in pairs]


def test_an_id_in_ctrf_is_that_of_the_same_limit_in_every_report() -> None:
    first, second = (json.loads(ctrf.text(outcomes(("a", x), ("b", x))))["results"]["tests"] for x in (WITHIN, OVER))
    assert [test["id"] for test in first] == [test["id"] for test in second]
    assert first[0]["id"] != first[1]["id"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_in_ctrf_are_texts(text: str) -> None:
    limit = LimitReport(f"{text}::{text}", text, 3, Verdict(text, text, float("inf"), unit=text, detail=text, of=text))
    machine = replace(REPORT.machine, cpu=text, platform=text, libraries={text: text})
    budget = replace(REPORT.budgets[0], file=text, model=text, uses=(), methods=(MethodReport(text, None, (limit,)),))
    document = json.loads(ctrf.text(replace(REPORT, machine=machine, budgets=(budget,))))
    jsonschema.validate(document, CTRF, jsonschema.Draft7Validator)
    assert all(character.isprintable() for character in json.dumps(document, ensure_ascii=False))


def front_matter(text: str) -> Any:
    before, middle, after = text.split("---\n")
    assert (before, after) == ("", "")
    return yaml.safe_load(middle)


def test_the_hub_reads_the_model_index_of_a_card_and_writes_the_same(report: Report) -> None:
    data = pytest.importorskip("huggingface_hub.repocard_data")
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card.text(report, "nf4") + "\n# nf4\n")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert card.data.model_name == "org/model"
    assert results["accuracy"].metric_value == 90.0
    assert (results["accuracy"].task_type, results["accuracy"].dataset_type) == ("text-generation", "sums")
    assert results["accuracy"].metric_args["questions"] == 10
    assert results["accuracy"].metric_args["low"] < 90.0 < results["accuracy"].metric_args["high"]
    assert results["perplexity"].metric_value == 7.3891
    index = front_matter(model_card.text(report, "nf4"))["model-index"]
    name, again = data.model_index_to_eval_results(index)
    assert data.eval_results_to_model_index(name, again) == index


def test_a_card_of_all_methods_names_each(report: Report) -> None:
    names = [entry["name"] for entry in front_matter(model_card.text(report))["model-index"]]
    assert names == ["org/model (fp16)", "org/model (nf4)", "org/model (gptq-int4)", "org/awq (awq-int4)"]


def test_a_card_takes_the_figures_of_each_method_once(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []
    original = figures._figure

    def counted(budget: Any, method: MethodReport, kind: Any, cpu: str) -> Any:
        taken.append((method.name, kind.name))
        return original(budget, method, kind, cpu)

    monkeypatch.setattr(figures, "_figure", counted)
    model_card.text(report)
    assert {name for name, _ in taken} == {"fp16", "nf4", "gptq-int4", "awq-int4"}
    assert len(taken) == len(set(taken))


def test_a_task_of_the_hubs_own_set_names_it(report: Report) -> None:
    def on_hub(task: Task) -> Task:
        return replace(task, name="gsm8k", file=None, shots=5)

    (budget,) = report.budgets
    methods = []
    for method in budget.methods:
        record = method.measurement
        assert record is not None
        tasks = tuple(replace(result, task=on_hub(result.task)) for result in record.tasks)
        methods.append(replace(method, measurement=replace(record, tasks=tasks)))
    found = replace(budget, tasks=tuple(map(on_hub, budget.tasks)), methods=tuple(methods))
    (entry,) = front_matter(model_card.text(replace(report, budgets=(found,)), "nf4"))["model-index"]
    assert entry["results"][0]["dataset"] == {
        "type": "openai/gsm8k",
        "name": "gsm8k",
        "config": "main",
        "split": "test",
        "args": {"num_few_shot": 5},
    }


def test_the_hub_reads_a_file_of_eval_results(report: Report) -> None:
    text = model_card.text(report, "nf4", {"sums": "acme/sums:plus_one"})
    parse = pytest.importorskip("huggingface_hub").parse_eval_result_entries
    (entry,) = parse(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("acme/sums", "plus_one", 90.0)
    assert entry.date == report.created
    assert entry.notes.startswith("nf4 by pytest-quantbudget, 10 questions, ")


@pytest.mark.parametrize(
    ("method", "benchmarks", "words"),
    [
        ("nf5", {}, "no measured method 'nf5'; did you mean 'nf4'?"),
        (None, {"sums": "a/b:c"}, "a model on the hub is one method: --method says which of fp16, nf4,"),
        ("nf4", {"sum": "a/b:c"}, "no score of a task 'sum'; did you mean 'sums'?"),
        ("nf4", {"sums": "a/b"}, "'a/b' is not DATASET:TASK"),
    ],
)
def test_what_a_card_cannot_say_is_refused_in_words(
    report: Report, method: str | None, benchmarks: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        model_card.text(report, method, benchmarks)


def test_a_report_without_scores_makes_no_card(report: Report) -> None:
    def bare(record: Measurement | None) -> Measurement | None:
        return replace(record, tasks=(), perplexities=()) if record is not None else None

    (budget,) = report.budgets
    methods = tuple(replace(method, measurement=bare(method.measurement)) for method in budget.methods)
    with pytest.raises(ValueError, match="no score of a task, and no perplexity"):
        model_card.text(replace(report, budgets=(replace(budget, methods=methods),)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_in_a_card_stay_names(report: Report, text: str) -> None:
    (budget,) = report.budgets
    methods = tuple(replace(method, name=text) for method in budget.methods[1:2])
    found = model_card.text(replace(report, budgets=(replace(budget, model=text, methods=methods, baseline=None),)))
    (entry,) = front_matter(found)["model-index"]
    assert set(entry) == {"name", "results"}
    assert found.isascii()


def test_reports_of_two_machines_are_told_apart(report: Report) -> None:
    (budget,) = report.budgets
    two = replace(report, budgets=tuple(replace(budget, machine=name) for name in ("NVIDIA L4", "NVIDIA H100")))
    assert {row["machine"] for row in rows(table.text(two))} == {"NVIDIA L4", "NVIDIA H100"}
    tests = json.loads(ctrf.text(two))["results"]["tests"]
    assert len({test["id"] for test in tests}) == len(tests) == 16
    assert {test["suite"][0] for test in tests} == {"b.yaml on NVIDIA L4", "b.yaml on NVIDIA H100"}
