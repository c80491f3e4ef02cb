"""The JSON report, the JUnit properties, and the table printed again without a model."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.core.budget import Budget, Source
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.core.verdict import OVER, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report import document, table
from pytest_quantbudget.report.document import BudgetReport, MethodReport


@pytest.fixture
def reported(pytester: pytest.Pytester, measured_small: Path) -> pytest.RunResult:
    """A run with every kind of report; one limit is over, one has no value for this device."""
    small = measured_small
    text = small.read_text().replace("max_weights_ratio: 0.51", "max_weights_ratio: 0.49")
    small.write_text(text.replace("{max_weights: 3 MiB", '{min_tokens_per_s: {"NVIDIA H100*": 60}, max_weights: 3 MiB'))
    return pytester.runpytest("--quant-budget", small.name, "--quant-report", "r.json", "--junitxml", "j.xml", "-v")


@pytest.mark.model
def test_reports_agree_and_hold_what_they_promise(reported: pytest.RunResult) -> None:
    reported.assert_outcomes(passed=4, failed=1, skipped=1)
    data = json.loads(Path("r.json").read_text())
    schema = json.loads((Path(document.__file__).parents[1] / "schemas" / "report.schema.json").read_text())
    jsonschema.validate(data, schema)
    assert data["version"] == 1
    assert data["machine"]["libraries"]["torch"]
    assert data["machine"]["cores"] >= 1
    (budget,) = data["budgets"]
    fp32, bf16 = budget["methods"]
    assert budget["baseline"] == "fp32"
    assert len(fp32["measurement"]["tasks"][0]["answers"]) == 12
    assert len(fp32["measurement"]["speeds"][0]["decode_s"]) == 2
    assert fp32["measurement"]["speeds"][0]["roofline"]["fraction"] > 0
    assert fp32["measurement"]["placement"] == {"cpu": "all"}
    assert fp32["measurement"]["revision"].startswith("sha256:")
    assert fp32["measurement"]["replies"][budget["prompt"]]
    for method in (fp32, bf16):
        assert method["estimate"]["weights"] == method["measurement"]["weights"]
    limits = {limit["name"]: limit for limit in (*fp32["limits"], *bf16["limits"])}
    over = limits["max_weights_ratio"]["verdict"]
    assert (over["outcome"], over["limit"]) == ("over", 0.49)
    assert over["measured"] == pytest.approx(0.5, abs=0.001)
    unlimited = limits["min_tokens_per_s"]["verdict"]
    assert unlimited["outcome"] == "skipped"
    assert unlimited["measured"] > 0
    assert "has no limit for 'cpu' (only for 'NVIDIA H100*'); measured" in unlimited["message"]

    cases = {c.attrib["name"]: c for c in ET.parse("j.xml").iter("testcase")}
    properties = {p.attrib["name"]: p.attrib["value"] for p in cases["max_weights_ratio"].iter("property")}
    assert properties["quant.method"] == "bf16"
    assert properties["quant.outcome"] == "over"
    assert float(properties["quant.measured"]) == over["measured"]


@pytest.mark.model
def test_verbose_runs_show_that_the_model_talks(reported: pytest.RunResult) -> None:
    reported.stdout.fnmatch_lines(["replies to 'The three primary colours are':", "  fp32: *", "  bf16: *"])


def test_the_table_is_printed_again_from_the_report(
    reported: pytest.RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [line for line in reported.outlines if line.startswith(("method ", "fp32 ", "bf16 ", "on cpu"))]
    capsys.readouterr()
    assert main(["table", "r.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith(("method ", "fp32 ", "bf16 ", "on cpu"))] == before


@pytest.mark.model
def test_the_share_of_the_roofline_stands_beside_the_speed_and_who_else_was_on_the_gpu_below(
    reported: pytest.RunResult,
) -> None:
    data = json.loads(Path("r.json").read_text())
    speed = data["budgets"][0]["methods"][0]["measurement"]["speeds"][0]
    speed["roofline"]["fraction"] = 0.7149
    speed["occupants"] = [{"gpu": "GPU-1", "pid": 123, "name": "python", "memory": 2**30, "before": True}]
    Path("r2.json").write_text(json.dumps(data))
    lines = [line.text for line in table.lines(document.read(Path("r2.json")))]
    assert lines[1].split()[:5] == ["method", "weights", "ratio", "tokens/s", "roofline"]
    assert lines[2].split()[5:7] == ["71", "%"]
    assert "fp32: the GPU was shared while it was timed: pid 123 python, 1.00 GiB" in lines


@pytest.mark.model
def test_answers_that_were_cut_off_are_shown(reported: pytest.RunResult) -> None:
    data = json.loads(Path("r.json").read_text())
    for method, count in zip(data["budgets"][0]["methods"], (0, 3), strict=True):
        for answer in method["measurement"]["tasks"][0]["answers"][:count]:
            answer["cut_off"] = True
    Path("r2.json").write_text(json.dumps(data))
    lines = [line.text for line in table.lines(document.read(Path("r2.json")))]
    assert "wordmath: answers truncated after 96 tokens: bf16 3 of 12" in lines
    assert not any("truncated" in line for line in reported.outlines)


@pytest.mark.model
def test_weights_that_were_not_foreseen_are_shown(reported: pytest.RunResult) -> None:
    data = json.loads(Path("r.json").read_text())
    fp32, bf16 = (method["estimate"] for method in data["budgets"][0]["methods"])
    fp32["weights"] = fp32["weights"] * 104 // 100
    bf16["weights"] = bf16["weights"] * 94 // 100
    Path("r2.json").write_text(json.dumps(data))
    told = [line.text for line in table.lines(document.read(Path("r2.json"))) if "predicted" in line.text]
    assert told == ["bf16: 1.03 MiB of weights were predicted, and 1.10 MiB measured"]
    assert not any("predicted" in line for line in reported.outlines)
    # More than a lower bound is as it should be, and less is not.
    for method, share in ((fp32, 50), (bf16, 106)):
        method["weights"], method["at_least"] = method["weights"] * share // 100, True
    bf16["weights"] = bf16["weights"] * 106 * 100 // (94 * 100)
    Path("r2.json").write_text(json.dumps(data))
    told = [line.text for line in table.lines(document.read(Path("r2.json"))) if "predicted" in line.text]
    assert told == ["bf16: at least 1.23 MiB of weights were predicted, and 1.10 MiB measured"]


def test_the_command_line_checks_budgets_and_refuses_what_is_no_report(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "small.yaml"]) == 0
    assert "small.yaml: 2 methods, 5 limits" in capsys.readouterr().out
    small.write_text(small.read_text().replace("methods:", "method:"))
    assert main(["check", "small.yaml"]) == 4
    assert "has no key 'method'; did you mean 'methods'?" in capsys.readouterr().err
    Path("r.json").write_text('{"version": 99}')
    assert main(["table", "r.json"]) == 4
    assert "is a report of version 99; this release reads version 1" in capsys.readouterr().err


@pytest.mark.model
def test_model_output_cannot_steer_the_terminal(reported: pytest.RunResult) -> None:
    report = document.read(Path("r.json"))
    text = Path("r.json").read_text().replace("The three primary colours are", "\\u001b[31mred\\u0007")
    Path("r2.json").write_text(text)
    assert report.budgets
    lines = [line.text for line in table.lines(document.read(Path("r2.json")), replies=True)]
    assert not any(c in line for line in lines for c in "\x1b\x07\r")
    assert any("red" in line for line in lines)


def test_several_drops_over_their_limits_are_read_together() -> None:
    drops = {"a": 0.04, "b": 0.01, "c": 0.9}
    judged = {x: Verdict(OVER if p < 0.5 else WITHIN, f"nf4: {x}", p_over=p) for x, p in drops.items()}
    limits = tuple(LimitReport(f"b.yaml::nf4::{x}", x, 1, verdict) for x, verdict in judged.items())
    found = document._together([*limits, LimitReport("b.yaml::nf4::d", "d", 1, Verdict(OVER, "d"))])
    # Holm: the smallest of three times 3, the next times 2.
    assert [(each.id[-1], each.p_over, round(each.adjusted, 6)) for each in found] == [
        ("a", 0.04, 0.08),
        ("b", 0.01, 0.03),
        ("c", 0.9, 0.9),
    ]
    budget = BudgetReport(
        "b.yaml", "m", None, "fp16", Workload(1, 2, 1, 1), "", (), (MethodReport("nf4", None, limits),), together=found
    )
    (line,) = table._together(budget)
    assert line.text == (
        "3 drop limits together (Holm), over: nf4::a maybe by chance (p 0.08), nf4::b beyond chance (p 0.03)"
    )


def test_the_text_of_a_budget_is_held_without_secrets_and_up_to_a_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Budget]
) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "hunter22hunter22")
    long = Source(str(tmp_path / "base.yaml"), "x" * document.MAX_SOURCE)
    own = Source(str(tmp_path / "sub" / "own.yaml"), "url: http://user:hunter22hunter22@host\n")
    budget = replace(load("max_vram: 7 GiB"), sources=(own, long, long))
    first, second = document._sources(tmp_path, budget)
    assert (first.file, second.file) == (str(Path("sub", "own.yaml")), "base.yaml")
    assert "hunter22" not in first.text
    assert len(first.text) + len(second.text) == document.MAX_SOURCE


def test_a_report_of_another_form_is_told_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.json"
    old.write_text('{"version": 1, "budgets": []}')
    assert main(["table", str(old)]) == 4
    why = "missing or unknown: commit, created, machine"
    assert capsys.readouterr().err == f"ERROR: {old} has another form than this release's reports: Report: {why}\n"
