"""`--quant-from`: equal verdicts without the model and its libraries, and what is no report refused."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
from builders import IDS, REPORT

from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import Report


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--quant-from", "repotr.json"],
            "--quant-from: there is no report 'repotr.json'; did you mean 'report.json'?",
        ),
        (["--quant-from", "cut.json"], "--quant-from cut.json: *cut.json is not JSON that can be used"),
        (["--quant-from", "old.json"], "*old.json is a report of version 99; this release reads version 1"),
        (["--quant-from", "."], "--quant-from cut.json: *cut.json is not JSON that can be used"),
        (["--quant-from", "others"], "--quant-from others: no report is among 1 JSON files"),
        (["--quant-from", "others/package.json"], "*package.json is no report: --quant-report writes one"),
        (["--quant-from", "n*.json"], "--quant-from n*.json: there is no report (*.json)"),
        (["--quant-from", "repotr.json", "--quant-from", "old.json"], "there is no report 'repotr.json'; did you"),
        (
            ["--quant-from", "report.json", "--quant-refresh"],
            "judges a report and measures nothing; --quant-refresh is",
        ),
        (["--quant-from", "report.json", "--quant-no-cache"], "measures nothing; --quant-no-cache is about measuring"),
        (["--quant-from", "report.json", "--quant-cache", "x"], "measures nothing; --quant-cache is about measuring"),
        (["--quant-from", "report.json", "--quant-timeout", "1 h"], "measures nothing; --quant-timeout is"),
        (["--quant-from", "report.json", "--quant-report", "./report.json"], "--quant-report would overwrite the"),
    ],
)
def test_what_cannot_be_judged_again_is_a_usage_error(pytester: pytest.Pytester, args: list[str], words: str) -> None:
    document.write(pytester.path / "report.json", REPORT)
    (pytester.path / "cut.json").write_text('{"version": 1')
    (pytester.path / "old.json").write_text('{"version": 99}')
    (pytester.mkdir("others") / "package.json").write_text('{"version": "1.0"}')
    result = pytester.runpytest(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])


def told(path: str) -> tuple[Report, dict[str, Verdict]]:
    found = document.read(Path(path))
    return found, {limit.id: limit.verdict for b in found.budgets for m in b.methods for limit in m.limits}


NO_LIBRARIES = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "numpy"):
            raise RuntimeError(f"{name} was looked for")

sys.meta_path.insert(0, Refused())
"""


@pytest.mark.model
def test_a_report_is_judged_again_without_the_libraries(
    pytester: pytest.Pytester, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small.read_text().replace("max_wordmath_flips: 70", "max_wordmath_flips: 70, min_token_agreement: 90")
    text = text.replace(
        "min_token_agreement", "max_kl: 0.5, min_top1_agreement: 90, max_vram: 1 GiB, min_token_agreement"
    )
    small.write_text(text.replace("max_new_tokens: 96", "max_new_tokens: 96, divergence: true"))
    pytester.runpytest("--quant-budget", small.name, "--quant-report", "report.json").assert_outcomes(
        passed=8, skipped=1
    )

    (pytester.mkdir("bare") / "sitecustomize.py").write_text(NO_LIBRARIES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path / "bare"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    args = ("--quant-budget", small.name, "--quant-from", "report.json", "-W", "error")
    pytester.runpytest_subprocess(*args, "--quant-report", "again.json").assert_outcomes(passed=8, skipped=1)
    (first, before), (second, after) = told("report.json"), told("again.json")
    assert after == before
    assert len(before) == len(IDS) + 4
    assert (second.machine, second.commit) == (first.machine, first.commit)
    assert second.judged_from == document.JudgedFrom("report.json", first.created)
    assert [m.measurement for m in second.budgets[0].methods] == [m.measurement for m in first.budgets[0].methods]
    schema = Path(document.__file__).parents[1] / "schemas" / "report.schema.json"
    jsonschema.validate(json.loads(Path("again.json").read_text()), json.loads(schema.read_text()))

    # A changed limit, in two workers, from the report that was judged; and the fixtures beside it.
    small.write_text(small.read_text().replace("max_weights_ratio: 0.51", "max_weights_ratio: 0.49"))
    pytester.makepyfile(
        """
        def test_numbers(quant_measurement):
            assert len(quant_measurement.tasks[0].answers) == 12

        def test_model(quant_model):
            pass
        """
    )
    args = ("--quant-budget", small.name, "--quant-from", "again.json", "-W", "error")
    result = pytester.runpytest_subprocess(*args, "--quant-report", "third.json", "-n", "2", "-rs", ".")
    result.assert_outcomes(passed=7 + 2, failed=1, skipped=1 + 2)
    third, last = told("third.json")
    assert {id_ for id_, verdict in last.items() if verdict != before[id_]} == {"small.yaml::bf16::max_weights_ratio"}
    assert last["small.yaml::bf16::max_weights_ratio"].outcome == "over"
    assert third.judged_from == document.JudgedFrom("again.json", first.created)
    result.stdout.fnmatch_lines(
        [
            "fp32 * 2 within",
            "bf16 * 1 OVER*",
            f"judged from again.json, measured {first.created}",
            "*no model is loaded: again.json is judged (--quant-from)",
        ]
    )
    assert not [path for path in (pytester.path / "cache").rglob("*") if "hashes" not in path.parts and path.is_file()]
