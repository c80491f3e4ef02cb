"""The fault table: each fault for real, in a run of its own beside a healthy method. See docs/faults.md."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import rows
from faults.rows import Row
from faults.running import Ended, Room, Running

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.measure import run_folder

Groups = Callable[[str], Ended]
Record = Callable[[str, object], None]
OK, FAILED, INTERRUPTED, USAGE = 0, 1, 2, 4


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    (made.path / "healthy.yaml").write_text(rows.HEALTHY)
    yield made
    made.remove()


@pytest.fixture(scope="session")
def silent_hub() -> Iterator[str]:
    """A server that takes every connection, and never says anything."""
    kept: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="session")
def group(silent_hub: str) -> Groups:
    """Rows that share a run of pytest: the run is made when the first of them asks for it."""
    ended: dict[str, Ended] = {}

    def run(name: str) -> Ended:
        if name not in ended:
            made = Room(fakes=("bitsandbytes",) if name == "calm" else ("bitsandbytes", "gptqmodel"))
            made.environ.update({"HF_ENDPOINT": silent_hub, **rows.ENVIRON[name]})
            if name == "fresh":  # sockets have paths of at most 107 bytes
                made.temporary = made.base / ("tmp" * 30)
                made.temporary.mkdir()
            for row in rows.GROUPS[name]:
                row.write(made.path)
            (made.path / "healthy.yaml").write_text(rows.HEALTHY)
            budgets = [row.budget for row in rows.GROUPS[name]] + ["healthy.yaml"]
            try:
                ended[name] = made.run(*[part for budget in budgets for part in ("--quant-budget", budget)])
            finally:
                made.remove()
        return ended[name]

    return run


@pytest.fixture
def quick(room: Room) -> Room:
    """A room whose runs measure with the simulated engine: for faults outside of the measuring process."""
    room.preload = "simulated.preload"
    return room


def left(record: Record, ended: Ended, tests: int, lost: int = 0) -> None:
    """Figures for the summary, and nothing may be left behind, unless pytest itself was killed."""
    record("fault", {"tests": tests, "lost": lost, "orphans": len(ended.orphans), "locks": len(ended.locks)})
    assert ended.orphans == [], ended.output
    assert ended.locks == []
    assert ended.folders == [] or ended.code == -signal.SIGKILL


ROWS = [pytest.param(name, row, id=row.name) for name, mine in rows.GROUPS.items() for row in mine]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_fault_costs_its_own_tests(name: str, row: Row, group: Groups, record_property: Record) -> None:
    ended = group(name)
    verdicts = ended.verdicts(row.budget)
    wanted = {f"{row.method}::{limit}" for limit in rows.LIMITS}
    left(record_property, ended, len(row.hits), len(wanted - set(verdicts)))
    assert set(verdicts) == wanted
    said = set()
    for test, verdict in verdicts.items():
        limit = test.partition("::")[2]
        if limit in row.hits:
            assert verdict["outcome"] == row.outcome, verdict
            said.add(verdict["message"].removeprefix(f"{row.method}: {limit} not measured: "))
        else:
            assert verdict["outcome"] == "within", verdict
    assert len(said) == (1 if row.hits else 0)
    for words in said:
        assert re.fullmatch(row.words, words), words
    if row.note:
        (note,) = ended.measurement(row.budget, row.method)["notes"]
        assert re.fullmatch(row.note, note), note
    model = row.model or row.name
    assert ended.starts[f"{row.method}:{model.rpartition('/')[2]}"] == row.starts
    assert healthy(ended) == ["within", "within"]
    assert ended.code == (OK if name == "calm" else FAILED)


def healthy(ended: Ended, budget: str = "healthy.yaml") -> list[str]:
    return [verdict["outcome"] for verdict in ended.verdicts(budget).values()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda data: b"", "questions.jsonl:1: holds no questions", id="empty-questions"),
        pytest.param(lambda data: data[:5000], "questions.jsonl:*: *was the file truncated*", id="cut-questions"),
        pytest.param(
            lambda data: data + data[:400].split(b"\n")[0] + b"\n",
            "questions.jsonl:*repeats the question of line 1",
            id="same-question-twice",
        ),
    ],
)
def test_a_broken_question_file_ends_the_run_before_anything_is_measured(
    room: Room, record_property: Record, change: Callable[[bytes], bytes], words: str
) -> None:
    (room.path / "questions.jsonl").write_bytes(change((BUILTIN_DIR / "questions.jsonl").read_bytes()))
    (room.path / "broken.yaml").write_text(rows.HEALTHY.replace("file: builtin", "file: questions.jsonl"))
    ended = room.run("--quant-budget", "healthy.yaml", "--quant-budget", "broken.yaml")
    left(record_property, ended, 0)
    assert ended.code == USAGE, ended.output
    pytest.LineMatcher(ended.output.splitlines()).fnmatch_lines([f"*{words}*"])
    assert not ended.starts
    assert ended.report is None


def mounted(room: Room, folder: str, options: str) -> list[str]:
    """A command that runs another with a small file system of its own mounted on a folder of the room."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting needs a user who may")
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {options} none {room.base / folder} && exec "$@"', "sh"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param("size=8k", "cannot be written (No space left on device)", id="full-cache"),
        pytest.param("ro", "cannot be written (Read-only file system)", id="read-only-cache", marks=pytest.mark.slow),
    ],
)
def test_a_cache_that_takes_nothing_costs_no_figure(
    quick: Room, record_property: Record, options: str, words: str
) -> None:
    ended = quick.run("--quant-budget", "healthy.yaml", wrap=mounted(quick, "cache", options))
    left(record_property, ended, 0)
    assert healthy(ended) == ["within", "within"]
    assert ended.code == OK
    assert f"note: the cache {quick.base / 'cache'}/results {words}" in ended.output
    assert ended.starts == {"fp32:builtin": 1}


def test_a_full_temporary_disk_costs_no_figure(quick: Room, record_property: Record) -> None:
    """Full by what the run itself writes there: the first method's answers fit, the second's do not."""
    many = rows.HEALTHY.replace("questions: 12", "questions: 100")
    (quick.path / "many.yaml").write_text(many)
    (quick.path / "more.yaml").write_text(many.replace("fp32", "bf16"))
    budgets = [part for name in ("many", "more", "healthy") for part in ("--quant-budget", f"{name}.yaml")]
    ended = quick.run(*budgets, wrap=mounted(quick, "tmp", "size=48k"))
    left(record_property, ended, 0)
    assert ended.code == OK, ended.output
    assert [healthy(ended, f"{name}.yaml") for name in ("many", "more", "healthy")] == [["within", "within"]] * 3
    assert f"note: the folder for temporary files {quick.temporary} takes nothing (No space left" in ended.output
    assert ended.starts == {"fp32:builtin": 1, "bf16:builtin": 1}


@pytest.mark.slow
def test_two_runs_on_one_cache_measure_once(quick: Room, record_property: Record) -> None:
    both = rows.HEALTHY.replace("50}}}", "50}}, bf16: {budget: {max_weights: 3 MiB, min_wordmath: 50}}}")
    (quick.path / "both.yaml").write_text(both)
    first, second = (quick.start("--quant-budget", "both.yaml") for _ in range(2))
    ended = [first.wait(leave=False), second.wait()]
    for one in ended:
        assert healthy(one, "both.yaml") == ["within"] * 4
        assert one.code == OK
    left(record_property, ended[1], 0)
    assert ended[1].starts == {"fp32:builtin": 1, "bf16:builtin": 1}


@pytest.mark.slow
def test_timings_from_the_future_are_taken_again(quick: Room, record_property: Record) -> None:
    """As they are left by a clock that was ahead, and has jumped back since."""
    timed = rows.HEALTHY.replace("max_weights: 3 MiB", "max_ttft: 10 s")
    (quick.path / "timed.yaml").write_text(timed)
    assert quick.run("--quant-budget", "timed.yaml").code == OK
    assert rows.into_the_future(quick.base / "cache" / "results") >= 4
    ended = quick.run("--quant-budget", "timed.yaml")
    left(record_property, ended, 1)
    assert ended.code == OK
    assert healthy(ended, "timed.yaml") == ["within", "within"]
    measured = ended.measurement("timed.yaml", "fp32")
    assert [speed["origin"]["reused"] for speed in measured["speeds"]] == [False]
    assert [task["origin"]["reused"] for task in measured["tasks"]] == [True]


def hanging(room: Room, *more: str) -> Running:
    """A run whose healthy method is measured, and in which another hangs."""
    room.fake("bitsandbytes")
    rows.HANG.write(room.path)
    running = room.start("--quant-budget", "healthy.yaml", "--quant-budget", rows.HANG.budget, *more)
    running.until("hanging.txt")
    return running


def test_killed_pytest_takes_its_processes_along(
    room: Room, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = hanging(room)
    assert len(room.processes()) >= 4, "pytest, the fork server, a measuring process, what that has started"
    running.send(signal.SIGKILL)
    ended = running.wait()
    left(record_property, ended, 2)
    assert ended.code == -signal.SIGKILL
    assert sorted(Path(folder).name.partition("-")[0] for folder in ended.folders) == ["pymp", "quantbudget"]
    monkeypatch.setattr("tempfile.tempdir", str(room.temporary))
    run_folder.sweep()  # as the next run does
    assert not any(Path(folder).exists() for folder in ended.folders)


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT], ids=lambda number: number.name
)
def test_an_interrupted_run_reports_what_it_has(
    room: Room, record_property: Record, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    running = hanging(room, *workers)
    if number == signal.SIGINT:
        running.send_all(number)  # as a terminal does
    else:
        running.send(number)
    ended = running.wait()
    left(record_property, ended, 2)
    assert ended.code == INTERRUPTED, ended.output
    assert set(healthy(ended, rows.HANG.budget)) == {"not run"}
    assert len(healthy(ended)) == 2
    if not workers:
        assert healthy(ended) == ["within", "within"]
