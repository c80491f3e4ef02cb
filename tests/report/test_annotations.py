"""Workflow commands of GitHub Actions: one a limit that failed, on its line, and no more than GitHub shows."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import REPORT

from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, UNDECIDED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.report.annotations import MOST, Place, lines, place
from pytest_quantbudget.report.document import MethodReport, Report


def report(*limits: tuple[str, str, str]) -> Report:
    found = tuple(
        LimitReport(f"b.yaml::nf4::{name}", name, 3, Verdict(outcome, message)) for name, outcome, message in limits
    )
    methods = (MethodReport("nf4", None, found),)
    return replace(REPORT, budgets=(replace(REPORT.budgets[0], methods=methods, uses=()),))


def test_what_failed_is_an_error_on_its_line_and_what_passed_undecided_a_warning() -> None:
    found = report(
        ("max_vram", SKIPPED, "no GPU"),
        ("max_kl", WITHIN, "all is well"),
        ("max_ttft", NOT_RUN, "selected and never judged"),
        ("max_drop", OVER, "nf4: max_drop measured 5 %, limit 2 %"),
        ("max_load_time", FAILED, "it crashed"),
    )
    places = {f"b.yaml::nf4::{name}": Place("b/b.yaml", i) for i, name in enumerate(["max_drop", "max_ttft"], 5)}
    assert [*lines(found, places)] == [
        "::error file=b/b.yaml,line=5,title=nf4 max_drop over::nf4: max_drop measured 5 %25, limit 2 %25",
        "::error title=nf4 max_load_time failed::it crashed",
        "::error file=b/b.yaml,line=6,title=nf4 max_ttft not run::selected and never judged",
    ]
    (open_,) = (limit for method in found.budgets[0].methods for limit in method.limits if limit.name == "max_kl")
    undecided = replace(open_, verdict=replace(open_.verdict, decision=UNDECIDED))
    budget = replace(found.budgets[0], methods=(MethodReport("nf4", None, (undecided,)),))
    assert [*lines(replace(found, budgets=(budget,)), {})] == ["::warning title=nf4 max_kl undecided::all is well"]
    gain = replace(open_, verdict=replace(open_.verdict, anomalous=True))
    budget = replace(found.budgets[0], methods=(MethodReport("nf4", None, (gain,)),))
    assert [*lines(replace(found, budgets=(budget,)), {})] == ["::warning title=nf4 max_kl anomalous::all is well"]


def test_no_name_and_no_message_ends_a_command_or_begins_another() -> None:
    name = "a:b,c=d%\r\ne"
    (line,) = lines(
        report((name, OVER, "50 %\r\n::set-output name=x::y\n::stop-commands::z\x1b[0m\u202e")),
        {f"b.yaml::nf4::{name}": Place("a,b:c%.yaml", 3)},
    )
    assert not set(line) & set("\r\n")
    head, _, message = line.removeprefix("::").partition("::")
    assert head == "error file=a%2Cb%3Ac%25.yaml,line=3,title=nf4 a%3Ab%2Cc=d%25\ufffd\ufffde over"
    assert message == "50 %25%0A\ufffd:set-output name=x::y%0A\ufffd:stop-commands::z\ufffd[0m\ufffd"


def test_github_shows_ten_of_a_kind_and_the_tenth_says_how_many_more() -> None:
    ten = [*lines(report(*((f"max_{i}", OVER, "over") for i in range(MOST))), {})]
    assert len(ten) == MOST
    assert "more" not in ten[-1]
    many = [*lines(report(*((f"max_{i:02}", OVER, "over") for i in range(MOST + 15))), {})]
    assert len(many) == MOST
    assert many[-1].startswith("::error title=16 more limits are not within::nf4 max_09, nf4 max_10, ")


@pytest.mark.parametrize(
    ("repositories", "file", "workspace", "shown"),
    [
        (["."], "budgets/b.yaml", ".", "budgets/b.yaml"),
        (["./sub"], "sub/budgets/b.yaml", ".", "budgets/b.yaml"),
        ([".", "./module"], "module/b.yaml", ".", "module/b.yaml"),
        ([".", "./module"], "module/b.yaml", None, "b.yaml"),
        (["."], "work/b.yaml", "work", None),
        ([], "b.yaml", ".", None),
    ],
)
def test_paths_are_relative_to_the_repository_that_github_sees(
    tmp_path: Path, repositories: list[str], file: str, workspace: str | None, shown: str | None
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    for each in repositories:
        (tmp_path / each / ".git").mkdir(parents=True)
    found = place(tmp_path / file, 7, tmp_path / workspace if workspace else None)
    assert found == (Place(shown, 7) if shown else None)
