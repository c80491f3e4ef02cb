"""`use`: a test of its own, which rests on all limits of its file; and a stored baseline through pytest."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import outcomes
from stored_reports import furnish, read, report

from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.report import document

TEXT = """
model: org/model
use: {uses}
baseline: fp16
workload: {{prompt_tokens: 16, new_tokens: 8, repeats: 2}}
tasks: {{sums: {{file: sums.jsonl, questions: 10}}}}
methods:
  fp16: {{budget: {{max_weights: {fp16}, min_sums: 50}}}}
  nf4: {{budget: {{max_weights: {nf4}, max_sums_drop: 20, min_tokens_per_s: 1}}}}
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Judge a budget by the report of its own measurements, in which some were changed."""
    room = furnish(pytester.path)

    def run(
        *args: str, uses: str = "production", fp16: str = "5 GiB", nf4: str = "2 GiB", change: object = None
    ) -> pytest.RunResult:
        budget = read(room, TEXT.format(uses=uses, fp16=fp16, nf4=nf4))
        changes = {"nf4": change} if change else {}
        document.write(room / "r.json", report(budget, **changes))  # type: ignore[arg-type]
        options = ("--quant-from", "r.json", "--quant-report", "o.json", "-p", "no:cacheprovider")
        return pytester.runpytest(*(args or ("--quant-budget", "b.yaml")), *options)

    return run


def test_a_use_is_a_test_of_its_own(run: Run) -> None:
    result = run()
    result.assert_outcomes(passed=6)
    (told,) = document.read(Path("o.json")).budgets[0].uses
    assert (told.id, told.line, told.verdict.outcome) == ("b.yaml::use::production", 3, "within")
    assert told.verdict.message.startswith("use: production: nf4, the least memory of the 2 that meet all their limits")
    advice = document.read(Path("o.json")).budgets[0].advice
    assert advice is not None
    assert advice.fit("edge").method == "nf4"
    result.stdout.fnmatch_lines(
        [
            "advice: meet all limits: fp16, nf4 (*undecided)",
            "advice: by weights and sums (without tokens/s of 1 of 2 methods), none is better than nf4",
            "advice: production: nf4, *",
        ]
    )


def test_it_fails_where_no_method_meets_all_its_limits(run: Run) -> None:
    result = run(fp16="3 GiB", nf4="0.5 GiB")
    result.assert_outcomes(passed=3, failed=3)
    found = outcomes(Path("o.json"))
    assert found["b.yaml::nf4::max_weights"] == "over"
    result.stdout.fnmatch_lines(
        [
            "*no method that may be taken is known to meet all its limits: fp16 misses max_weights; nf4 misses max_we*",
            "b.yaml:3: this line",
            "*use: production*",
            "not met: use: production: no method*",
            "FAILED b.yaml::use::production - *",
        ]
    )


@pytest.mark.parametrize("args", [("b.yaml::use::production",), ("--quant-budget", "b.yaml", "-k", "production")])
def test_it_rests_on_all_limits_also_where_it_is_selected_alone(run: Run, args: tuple[str, ...]) -> None:
    run(*args).assert_outcomes(passed=1, deselected=0 if len(args) == 1 else 5)
    result = run(*args, fp16="3 GiB", nf4="0.5 GiB")
    result.assert_outcomes(failed=1, deselected=0 if len(args) == 1 else 5)


def test_what_was_skipped_has_not_met_its_limits_and_is_not_said_to_miss_them(run: Run) -> None:
    def on_cpu(own: Measurement) -> Measurement:
        return replace(own, failures=(), speeds=())

    result = run(nf4="auto", fp16="3 GiB")
    result.assert_outcomes(passed=3, failed=1, skipped=2)
    (told,) = document.read(Path("o.json")).budgets[0].uses
    assert told.verdict.outcome == "skipped"
    assert "nf4 is unknown (max_weights skipped: has no number yet" in told.verdict.message
    run("--quant-budget", "b.yaml", "--quant-fail-on-skip", nf4="auto", fp16="3 GiB").assert_outcomes(
        passed=3, failed=3
    )
    # What could not be measured is a failure.
    run(fp16="3 GiB", change=on_cpu).assert_outcomes(passed=3, failed=3)
    (told,) = document.read(Path("o.json")).budgets[0].uses
    assert (told.verdict.outcome, "nf4 is unknown (min_tokens_per_s failed" in told.verdict.message) == ("over", True)


def test_several_uses_and_workers(run: Run, pytester: pytest.Pytester) -> None:
    run(uses="[development, edge]").assert_outcomes(passed=7)
    options = ("--quant-budget", "b.yaml", "--quant-from", "r.json", "--quant-report", "o.json", "-n", "2")
    result = pytester.runpytest_subprocess(*options, "--junitxml", "j.xml", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=7)
    assert [use.id for use in document.read(Path("o.json")).budgets[0].uses] == [
        "b.yaml::use::development",
        "b.yaml::use::edge",
    ]
    assert '<property name="quant.method" value="use"' in Path("j.xml").read_text()


@pytest.mark.parametrize(
    ("id_", "words"),
    [
        ("b.yaml::use::producton", "use has no limit 'producton'; did you mean 'production'?"),
        ("b.yaml::us::production", "has no method 'us'; did you mean 'use'?"),
    ],
)
def test_an_id_that_names_nothing_is_told(run: Run, id_: str, words: str) -> None:
    result = run(id_)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{words}"])


def test_limits_are_written_beside_a_use(run: Run) -> None:
    run("--quant-budget", "b.yaml", "--quant-update", nf4="auto").assert_outcomes(passed=5, skipped=1)
    assert "nf4: {budget: {max_weights: 1073741824 B" in Path("b.yaml").read_text().replace("1 GiB", "1073741824 B")


def test_the_release_before_is_the_baseline(run: Run, pytester: pytest.Pytester) -> None:
    """And its report is not overwritten."""
    run()
    pytester.path.joinpath("v1.json").write_text(Path("r.json").read_text())
    text = TEXT.format(uses="edge", fp16="5 GiB", nf4="2 GiB")
    new = text.replace("baseline: fp16", "baseline: {report: v1.json, method: nf4}").replace(
        "max_sums_drop: 20", "max_weights_ratio: 1.01, max_sums_drop: 20"
    )
    asks = ("--quant-budget", "b.yaml", "--quant-from", "r.json", "-p", "no:cacheprovider")
    pytester.path.joinpath("b.yaml").write_text(new)
    result = pytester.runpytest(*asks, "--quant-report", "v2.json")
    result.assert_outcomes(passed=6, failed=1)  # without hashes of prompts, answers do not go together
    result.stdout.fnmatch_lines(
        ["*does not tell what was asked*", "nf4 of v1.json *", "*against nf4 of v1.json, measured*"]
    )
    assert json.loads(Path("v2.json").read_text())["budgets"][0]["stored"]["method"] == "nf4"
    result = pytester.runpytest(*asks, "--quant-report", "./v1.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quant-report would overwrite the baseline of b.yaml"])
    # A budget that takes limits as they were measured.
    pytester.path.joinpath("b.yaml").write_text(new.replace("max_weights_ratio: 1.01", "max_weights_ratio: auto"))
    pytester.runpytest(*asks, "--quant-update").assert_outcomes(passed=5, failed=1, skipped=1)
    assert "max_weights_ratio: 1," in Path("b.yaml").read_text()
