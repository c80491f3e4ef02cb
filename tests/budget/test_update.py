"""`--quant-update`: what is written where, what stays, and what is said of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import STEADY, measured

from pytest_quantbudget.budget import update
from pytest_quantbudget.budget.find import Budgets
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.judge.noise import Noise
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.report.document import Judged

# The spread of five runs, of logarithms 0.0158: with Student's t at 99 % and two runs, 8.8 % of a time.
NOISE = Noise("fp16", 4, {"ttft": STEADY, "tokens_per_s": STEADY})
OTHER = "model: m\nbaseline: fp16\ntasks: {gsm8k: {questions: 1000}}\nmethods:\n  fp16: {}\n"


@pytest.fixture
def room(tmp_path: Path) -> Callable[..., str]:
    """Judges all limits of a budget on a stored measurement, as a run does, and writes them."""

    def write(text: str, mode: str = "auto", before: Callable[[Path], None] = lambda path: None) -> str:
        path = tmp_path / "b.yaml"
        path.write_bytes(text.encode())
        budgets = Budgets()
        budget = budgets.load(path)
        records = [
            replace(measured(budget, b=method.name != "fp16"), subject=method.subject) for method in budget.methods
        ]
        both = {method.name: record for method, record in zip(budget.methods, records, strict=True)}
        limits = [
            LimitReport(f"b.yaml::{m.name}::{limit.name}", limit.name, limit.line, judge(budget, m, limit, both))
            for m in budget.methods
            for limit in m.limits
        ]
        before(path)
        by_subject = {record.subject.key: record for record in records}
        updates, lines = update.run([Judged(budget, limits, NOISE, by_subject)], budgets.texts, mode)
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [], "no half a file stays"
        for done in updates.values():
            assert done.rate == 0.01
            assert bool(done.new) != bool(done.why)
        return "\n".join(line.text for line in lines)

    return write


Room = Callable[..., str]


def test_only_what_is_asked_for_is_written(room: Room, tmp_path: Path) -> None:
    text = f"{OTHER}  nf4: {{budget: {{max_weights: 9 GiB, max_gsm8k_drop: 0.2, max_ttft: auto}}}}  # \u00fc\n"
    said = room(text)
    assert (tmp_path / "b.yaml").read_text() == text.replace("auto", "54.4 ms")
    assert "b.yaml:6 nf4: max_ttft auto -> 54.4 ms: measured 50.0 ms, margin 8.80 % (" in said
    assert said.splitlines()[-1].startswith(
        "+  nf4: {budget: {max_weights: 9 GiB, max_gsm8k_drop: 0.2, max_ttft: 54.4 ms"
    )
    assert "max_weights 9" not in said
    said = room(text, "tighten")
    assert (tmp_path / "b.yaml").read_text() == text.replace("auto", "54.4 ms").replace("9 GiB", "6.01 GiB")
    assert "max_gsm8k_drop stays 0.2: 1.0 would be looser (measured 0.1 points, margin 0.9 points (" in said
    assert "only --quant-update=all writes" in said
    room(text, "all")
    assert "{max_weights: 6.01 GiB, max_gsm8k_drop: 1.0, max_ttft: 54.4 ms}" in (tmp_path / "b.yaml").read_text()
    settled = (tmp_path / "b.yaml").read_text()
    assert "no selected limit had to be written" in room(settled, "all")


def test_the_entry_of_this_device_is_written_and_its_rights_stay(room: Room, tmp_path: Path) -> None:
    text = OTHER + """  nf4:\r\n    budget: {"min_tokens_per_s": {"NVIDIA A*": auto, "NVIDIA H100*": 'auto'}} #\r\n"""
    (tmp_path / "b.yaml").touch()
    room(text, before=lambda path: path.chmod(0o640))
    assert (tmp_path / "b.yaml").read_bytes() == text.replace("'auto'", "116").encode()
    assert (tmp_path / "b.yaml").stat().st_mode & 0o777 == 0o640


WEIGHTS = f"{OTHER}  nf4: {{budget: {{max_weights: auto}}}}\n"


@pytest.mark.parametrize(
    ("text", "before", "why"),
    [
        (WEIGHTS, lambda path: path.write_text(WEIGHTS + "# seen\n"), "b.yaml was changed while the tests ran"),
        (WEIGHTS, lambda path: path.chmod(0o444), "b.yaml is read-only"),
        (WEIGHTS, lambda path: path.unlink(), "b.yaml cannot be written: No such file or directory"),
        (f"{OTHER}  nf4: {{budget: {{max_vram: 6 GiB, max_weights: auto}}}}\n", None,
         "max_weights stays auto: max_weights 6.01 GiB contradicts max_vram 6 GiB: the weights are part of that"),
        (f"{OTHER}  nf4: {{budget: {{max_gsm8k_flips: 0.5, max_gsm8k_drop: auto}}}}\n", None,
         "max_gsm8k_drop stays auto: max_gsm8k_drop 1.0 contradicts max_gsm8k_flips 0.5: a drop is at most"),
        (f'{OTHER}  nf4: {{budget: {{max_ttft: {{"NVIDIA L4": auto}}}}}}\n', None,
         "max_ttft stays as it is: no entry is for 'NVIDIA H100 80GB HBM3'"),
        (f"{OTHER}  nf4: {{budget: {{max_load_time: auto}}}}\n", None, "max_load_time stays auto: 0 runs of"),
        (f"{OTHER}  nf4: {{budget: &b {{max_weights: auto}}}}\n  int8: {{budget: *b}}\n", None,
         "max_weights stays auto: it has an anchor"),
    ],
    ids=["changed", "read-only", "gone", "weights", "drop", "device", "load time", "alias"],
)  # fmt: skip
def test_what_is_not_written_stays_and_says_why(
    room: Room, tmp_path: Path, text: str, before: Callable[[Path], None] | None, why: str
) -> None:
    said = room(text, before=before or (lambda path: None))
    assert why in said
    assert "nothing was written" in said
    path = tmp_path / "b.yaml"
    if "No such file" in why:
        assert not path.exists()
    else:
        assert path.read_text().startswith(text)


def test_a_limit_of_a_file_that_is_extended_is_left_to_that_files_own_run(room: Room, tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(WEIGHTS)
    text = "extends: parent.yaml\nmethods: {nf4: {budget: {max_ttft: auto}}}\n"
    said = room(text)
    assert (tmp_path / "b.yaml").read_text() == text.replace("auto", "54.4 ms")
    assert (tmp_path / "parent.yaml").read_text() == WEIGHTS
    assert "max_weights stays auto: it is in a file that this one extends; a run of that file writes it" in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--quant-update", "small.yaml"],
            "--quant-update small.yaml: 'small.yaml' is not one of --quant-update",
        ),
        (["small.yaml", "--quant-update=al"], "--quant-update=auto, --quant-update=tighten, --quant-update=all"),
        (["small.yaml", "--quant-update-rate", "0.05"], "--quant-update-rate belongs to --quant-update"),
        (["small.yaml", "--quant-update", "--quant-update-rate", "5 %"], "from 0.000001 to below 0.5, not '5 %'"),
        (["small.yaml", "--quant-update", "--quant-update-rate", "0.5"], "from 0.000001 to below 0.5, not '0.5'"),
    ],
)
def test_a_word_behind_the_option_is_not_taken_for_a_file(
    pytester: pytest.Pytester, small: Path, args: list[str], words: str
) -> None:
    result = pytester.runpytest(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])


@pytest.mark.model
def test_auto_is_filled_by_an_update_run_and_holds_in_the_next(pytester: pytest.Pytester, small: Path) -> None:
    before = small.read_text().replace("max_weights: 3 MiB", "max_load_time: auto,   max_weights: auto")
    before = before.replace("drop: 60", "drop: auto").replace("flips: 70", "flips: 'auto'")
    before = before.replace("ratio: 0.51", 'ratio: {"*": auto}   # counted\n     ')
    small.write_text(before)
    args = ("--quant-budget", small.name, "--quant-cache", "kept", "-W", "error", "-rs")
    more = ("--quant-update", "--quant-update-rate", "0.05", "--quant-report", "r.json", "-n", "1")
    result = pytester.runpytest_subprocess(*args, *more)
    result.assert_outcomes(passed=1, skipped=5)
    limits = [limit for m in json.loads(Path("r.json").read_text())["budgets"][0]["methods"] for limit in m["limits"]]
    updated = {limit["name"]: limit["updated"] for limit in limits if limit["updated"]}
    drop, flips = (updated[f"max_wordmath_{name}"]["new"] for name in ("drop", "flips"))
    after = before.replace("load_time: auto", f"load_time: {updated['max_load_time']['new']}")
    after = after.replace("weights: auto", "weights: 2.2 MiB").replace('"*": auto', '"*": 0.501')
    assert small.read_text() == after.replace("drop: auto", f"drop: {drop}").replace("'auto'", flips)
    assert 0 < float(drop) <= float(flips) < 60
    assert updated["max_weights"] == {
        "old": "auto", "new": "2.2 MiB", "words": "measured 2.19 MiB, margin 0.375 % (counted, not sampled)",
        "rate": 0.05, "why": "",
    }  # fmt: skip
    load_time = updated["max_load_time"]
    assert "(the spread of 6 runs of fp32)" in load_time["words"]
    written = ["max_load_time", "max_weights", "max_weights_ratio", "max_wordmath_drop", "max_wordmath_flips"]
    assert [name for name in updated if updated[name]["new"]] == written
    result.stdout.fnmatch_lines(
        [
            "*= --quant-update of small.yaml =*",
            "small.yaml:10 fp32: max_load_time auto -> *; at most 5 % of repeat runs fail",
            "small.yaml:10 fp32: max_weights auto -> 2.2 MiB: measured 2.19 MiB, *; at most 5 % of repeat runs fail",
            f"small.yaml:13 bf16: max_wordmath_drop auto -> {drop}: measured *bound of 12 questions*",
            "--- small.yaml",
            "-    budget: {max_load_time: auto,   max_weights: auto, min_wordmath: 50}",
            "+    budget: {max_load_time: *,   max_weights: 2.2 MiB, min_wordmath: 50}",
            "report written to r.json",
            "SKIPPED*fp32: max_weights has no number yet (`auto`): --quant-update writes one at the end of its run; "
            "measured 2.19 MiB",
        ]
    )
    # So few questions tell little: collection says so of the drop, in a warning.
    result = pytester.runpytest(*args[:4], "--quant-report", "r.json")
    result.assert_outcomes(passed=6)
    assert "--quant-update of" not in result.stdout.str()
    assert '"old"' not in Path("r.json").read_text()
