"""The trends of a history as lines."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.core.history import KeptFigure, KeptVerdict, MethodRun
from pytest_quantbudget.report import history, trends

STEADY = (100.0, 101.0, 99.5, 100.5, 99.0, 100.2)


def run(number: int, value: float, **more: object) -> MethodRun:
    at = f"2026-01-{number:02}T00:00:00Z"
    kept = MethodRun(
        1, f"r{number}", at, "budgets/gate.yaml", "nf4",
        {"model": "org/m", "revision": "0123456789abcdef", "device": "NVIDIA L4"},
        {"workload": {"new_tokens": "128"}}, {},
        {
            "min_tokens_per_s": KeptFigure(value, "tokens/s", at, ("workload",)),
            "max_weights": KeptFigure(2.0**30, "GiB", at),
        },
        {"min_tokens_per_s": KeptVerdict("over" if value < 85 else "within", limit_text="85", unit="tokens/s")},
        {"torch": "2.12" if number < 7 else "2.13"}, f"{number}abc",
    )  # fmt: skip
    return replace(kept, **more)  # type: ignore[arg-type]


RUNS = [run(i, value) for i, value in enumerate((*STEADY, 80.0, 81.0, 79.0, 80.0), 1)]
ELSEWHERE = run(5, 40.0, run="t4", subject={**RUNS[0].subject, "device": "Tesla T4"})


@pytest.fixture
def place(tmp_path: Path) -> str:
    for each in (*RUNS, ELSEWHERE, run(3, 1.0, method="fp16")):
        history.write(str(tmp_path), [replace(each, run=history.name_of(each.at))])
    return str(tmp_path)


def test_a_trend_names_the_run_at_which_it_got_worse(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", place, "--method", "nf4"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{place}: 10 runs, 2026-01-01T00:00:00Z to 2026-01-10T00:00:00Z"
    assert lines == [
        "nf4 min_tokens_per_s  ████▇█▁▂▁▁  100 tokens/s to 80.0 tokens/s, 10 runs, limit 85",
        "    NVIDIA L4, org/m at 0123456789ab, budgets/gate.yaml, 2026-01-01T00:00:00Z to 2026-01-10T00:00:00Z",
        "    worse beyond the noise from run 7 on (2026-01-07T00:00:00Z, commit 7abc): 20.2 % less; torch 2.12 is 2.13",
        "    min_tokens_per_s was over in run 7 (2026-01-07T00:00:00Z), 8 (2026-01-08T00:00:00Z), "
        "9 (2026-01-09T00:00:00Z), 10 (2026-01-10T00:00:00Z)",
        "nf4 min_tokens_per_s  ▄  40.0 tokens/s, 1 run, limit 85",
        "    Tesla T4, org/m at 0123456789ab, budgets/gate.yaml, 2026-01-05T00:00:00Z to 2026-01-05T00:00:00Z",
        "    not compared with the runs above: device was Tesla T4 and is NVIDIA L4",
        "    min_tokens_per_s was over in run 1 (2026-01-05T00:00:00Z)",
    ]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], {"nf4 min_tokens_per_s", "fp16 min_tokens_per_s"}),
        (["--method", "fp*"], {"fp16 min_tokens_per_s"}),
        (["--limit", "weights"], {"nf4 max_weights", "fp16 max_weights"}),
        (["--limit", "max_change_weights", "--method", "nf4"], {"nf4 max_weights"}),
        (["--budget", "gate.yaml", "--limit", "*tokens*"], {"nf4 min_tokens_per_s", "fp16 min_tokens_per_s"}),
    ],
)
def test_what_is_asked_for_is_shown(
    place: str, options: list[str], shown: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", place, *options]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {line.partition("  ")[0] for line in lines if not line.startswith(" ")} == shown


def test_the_last_runs_alone_are_shown_and_judged_by_all(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", place, "--method", "nf4", "--last", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "nf4 min_tokens_per_s  ▅█▁▅  80.0 tokens/s to 80.0 tokens/s, 4 runs, limit 85"
    assert "    worse beyond the noise from run 1 on (2026-01-07" in "\n".join(lines)


def test_what_is_not_there_is_told(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(tmp_path / "nothing")]) == 4
    assert "holds no runs: --quant-history adds them" in capsys.readouterr().err
    assert main(["history", place, "--method", "int8"]) == 4
    assert "holds nothing of that: budgets budgets/gate.yaml; methods fp16, nf4" in capsys.readouterr().err
    assert main(["history", "nowhere://x"]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_a_hostile_history_steers_no_terminal() -> None:
    odd = run(1, 1.0, method="\x1b[2J", budget="::error::x", commit="\u202e")
    told = list(trends.lines(trends.trends(history.Past((odd, replace(odd, at="2026-01-02T00:00:00Z"))))))
    assert told
    assert all(line.isprintable() for line in told)


def test_bars_lie_between_the_least_and_the_greatest() -> None:
    assert trends.spark([1, 2, 3]) == "▁▅█"
    assert trends.spark([5, 5]) == "▄▄"
    assert trends.spark([1, 2], trends.PLAIN) == "18"
    assert len(trends.spark(list(range(200)))) == trends.LONGEST
