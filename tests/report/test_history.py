"""The history: nothing is lost under parallel writers, and what is torn, foreign or hostile costs itself alone."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from stored_reports import COMMIT, TEXT, furnish, measured, read

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.gpus import Commit
from pytest_quantbudget.core.history import KeptFigure, KeptVerdict, MethodRun, unpacked
from pytest_quantbudget.core.verdict import OVER, LimitReport, Verdict
from pytest_quantbudget.report import history

RUN = MethodRun(
    1, "2026-01-01T000000Z-a", "2026-01-01T00:00:00Z", "b.yaml", "nf4", {"model": "m"},
    {"workload": {"new_tokens": "128"}}, {"model": "m", "kind": "fp16"},
    {"min_speedup": KeptFigure(1.5, "x", "2026-01-01T00:00:00Z", ("workload",), True, 1.0, 2.0, 5, "repeats", "1f")},
    {"max_vram": KeptVerdict("over", "over", 7.0, 6.0, "6 GiB", "GiB")}, {"torch": "2.13"}, "0123",
)  # fmt: skip
AT = "2026-01-02T03:04:05+00:00"


def kept(number: int, **more: object) -> MethodRun:
    at = f"2026-01-{number:02}T00:00:00Z"
    return replace(RUN, run=history.name_of(at), at=at, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("remote", [False, True], ids=["directory", "URL"])
def test_what_is_written_is_read_in_the_order_of_time(tmp_path: Path, remote: bool) -> None:
    place = f"memory://{tmp_path}" if remote else str(tmp_path / "deep" / "history")
    assert history.read(place) == history.Past()
    runs = [kept(3), kept(1), kept(2)]
    for run in runs:
        assert history.write(place, [run, replace(run, method="fp16")])
    assert not history.write(place, [])
    past = history.read(place)
    assert past.notes == ()
    assert [run.at[8:10] for run in past.runs] == ["01", "01", "02", "02", "03", "03"]
    assert past.runs[0] == replace(runs[1], method="fp16")


def add(place: str, number: int) -> None:
    for i in range(10):
        history.write(place, [kept(1, budget=f"{number}-{i}.yaml")])


@pytest.mark.parametrize("url", [False, True], ids=["directory", "file URL"])
def test_parallel_writers_lose_nothing(tmp_path: Path, url: bool) -> None:
    place = f"file://{tmp_path}" if url else str(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add, args=(place, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    past = history.read(place)
    assert past.notes == ()
    assert {run.budget for run in past.runs} == {f"{n}-{i}.yaml" for n in range(4) for i in range(10)}


def test_files_put_together_are_the_same_history_and_nothing_counts_twice(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        history.write(str(tmp_path), [kept(number)])
    before = history.read(str(tmp_path))
    whole = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    (tmp_path / "all.jsonl").write_bytes(whole)
    assert history.read(str(tmp_path)) == before
    assert len(before.runs) == 3


LINE = history.line(RUN)
BAD = {
    "torn": (LINE[:100], "2.jsonl:2 is left out (torn?): "),
    "foreign": ('{"event": "push"}\n', "2.jsonl:2 is left out: it is no line of a history"),
    "text": ("hello\n", "2.jsonl:2 is left out: "),
    "number": ("17\n", "2.jsonl:2 is left out: it is no line of a history"),
    "later": (
        LINE.replace('"version":1', '"version":2') + "\n",
        "it is of version 2, and this release reads version 1",
    ),
    "unknown": (LINE.replace('"commit"', '"more"') + "\n", "missing or unknown: more"),
    "nan": (LINE.replace("1.5", "NaN") + "\n", "NaN is not a finite number"),
    "time": (LINE.replace('"at":"2026-01-01T', '"at":"yesterday'), "is no time"),
    "outcomes": (LINE.replace('"1f"', '"x"') + "\n", "outcomes must be hexadecimal digits"),
    "deep": ("[" * 100_000 + "\n", "left out"),
    "escape": ('{"run": 1, "version": "\x1b[2J"}\n', "left out"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_costs_itself_alone(tmp_path: Path, bad: str) -> None:
    text, note = BAD[bad]
    good = [kept(1), kept(2), kept(3)]
    for run in (good[0], good[2]):
        history.write(str(tmp_path), [run])
    (tmp_path / "2.jsonl").write_text(f"{history.line(good[1])}\n{text}")
    past = history.read(str(tmp_path))
    assert list(past.runs) == good
    (told,) = past.notes
    assert told.startswith("history: 2.jsonl:2 is left out")
    assert note in told
    assert told.isprintable()


def test_what_is_no_file_of_a_history_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history.write(str(tmp_path), [RUN])
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".x.jsonl.half").write_text(LINE[:10])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    past = history.read(str(tmp_path))
    assert past.runs == (RUN,)
    assert past.notes == ("history: gone.jsonl cannot be read",)


def test_a_history_without_end_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_FILES", 2)
    monkeypatch.setattr(history, "MAX_FILE", 5_000)
    for number in (1, 2, 3):
        history.write(str(tmp_path), [kept(number)])
    (tmp_path / "9.jsonl").write_text("x" * 5_001)
    past = history.read(str(tmp_path))
    assert [run.at[8:10] for run in past.runs] == ["02", "03"]
    assert past.notes == (
        "history: 9.jsonl is 5,001 bytes long, and a file of a history has at most 5,000",
        "history: only the newest 2 files are read; 1 older ones are left out",
    )


def test_a_line_has_every_field_and_comes_back() -> None:
    assert codec.from_builtins(MethodRun, json.loads(LINE)) == RUN
    assert "\n" not in history.line(replace(RUN, method="a\nb\u2028c"))
    assert history.line(replace(RUN, method="a\nb\u2028c")).isascii()


def test_a_run_keeps_every_figure_with_what_it_was_measured_on(tmp_path: Path) -> None:
    budget = read(furnish(tmp_path), TEXT)
    records = {method.subject.key: measured(budget, method) for method in budget.methods}
    verdict = Verdict(OVER, "over", 7.0, 6.0, "6 GiB", "GiB", decision=OVER)
    limits = [LimitReport("b.yaml::nf4::max_vram", "max_vram", 14, verdict)]
    runs = history.runs_of([(budget, limits, "budgets/b.yaml")], records, "a CPU", AT, Commit("0123", True))
    assert [run.method for run in runs] == ["fp16", "nf4", "gptq-int4", "awq-int4"]
    fp16, nf4, _, awq = runs
    assert {run.run for run in runs} == {fp16.run}
    assert fp16.run.startswith("2026-01-02T030405Z-")
    assert (nf4.at, nf4.budget, nf4.commit) == ("2026-01-02T03:04:05Z", "budgets/b.yaml", "0123 and changes")
    assert nf4.verdicts == {"max_vram": KeptVerdict(OVER, OVER, 7.0, 6.0, "6 GiB", "GiB")}
    assert nf4.subject == {
        "model": "org/model", "revision": COMMIT, "kind": "nf4", "options": nf4.subject["options"],
        "load_format": "auto", "engine": "transformers", "device": "NVIDIA H100 80GB HBM3",
    }  # fmt: skip
    assert awq.subject["checkpoint"] == "org/awq"
    assert awq.subject["revision of the checkpoint"] == COMMIT
    assert awq.subject["adapter"] == "org/lora"
    assert {
        "max_weights",
        "max_vram",
        "min_tokens_per_s",
        "min_speedup",
        "max_ttft",
        "min_sums",
        "max_sums_drop",
        "max_kl",
    } <= (nf4.figures.keys())
    assert "min_speedup" not in fp16.figures, "the baseline is not compared with itself"
    score = nf4.figures["min_sums"]
    assert (score.value, score.n, score.of, score.parts) == (90.0, 10, "questions", ("task sums",))
    assert sum(unpacked(score.outcomes)) == 9
    with_outcomes = [name for name, figure in nf4.figures.items() if figure.outcomes]
    assert with_outcomes == ["min_sums"], "what else is counted of answers is no question of right or wrong"
    assert "max_sums_absent" in nf4.figures
    assert nf4.parts["task sums"]["questions"] == "10"
    assert nf4.parts["task sums"]["content"].startswith("sha256:")
    assert nf4.figures["min_speedup"].relative
    assert nf4.identity("min_speedup")["baseline: kind"] == "fp16"
    # Nothing of it is a path of this machine.
    assert str(tmp_path) not in "".join(map(history.line, runs))


def test_changes_are_told_in_the_order_of_the_file_and_of_like_runs_alone(tmp_path: Path) -> None:
    budget = read(furnish(tmp_path), TEXT)
    records = {method.subject.key: measured(budget, method) for method in budget.methods}
    before = history.runs_of([(budget, [], "b.yaml")], records, "a CPU", AT, None)
    nf4 = budget.method("nf4").subject.key
    lighter = {**records, nf4: replace(records[nf4], weights=2**29)}
    now = history.runs_of([(budget, [], "b.yaml")], lighter, "a CPU", "2026-01-03T00:00:00Z", None)
    found = history.changes(before, budget, now)
    assert list(dict.fromkeys(each.method for each in found)) == [method.name for method in budget.methods]
    moved = {each.name: each for each in found if each.method == "nf4"}
    weights = moved["max_weights"]
    assert weights.change == pytest.approx(-50.0)
    assert not weights.worse
    assert weights.beyond_noise
    assert list(weights.trend) == [2**30, 2**29]
    assert history.changes([replace(run, subject={"device": "T4"}) for run in before], budget, now) == []


def test_what_is_judged_again_is_not_kept_again(tmp_path: Path) -> None:
    budget = read(furnish(tmp_path), TEXT)
    records = {method.subject.key: measured(budget, method) for method in budget.methods}
    before = history.runs_of([(budget, [], "b.yaml")], records, "a CPU", AT, None)
    again = history.runs_of([(budget, [], "b.yaml")], records, "a CPU", AT, None)
    assert history.new(before, again) == []
    assert history.new(before[1:], again) == again[:1]
