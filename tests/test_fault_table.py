"""The fault table: each fault for real, in a run of its own beside a healthy method. See docs/faults.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from faults import rows
from faults.rows import Row
from faults.running import Ended, Room

Groups = Callable[[str], Ended]


@pytest.fixture(scope="session")
def group() -> Iterator[Groups]:
    """Rows that share a run of pytest: the run is made when the first of them asks for it."""
    ended: dict[str, Ended] = {}
    rooms: list[Room] = []

    def run(name: str) -> Ended:
        if name not in ended:
            rooms.append(Room(fakes=("bitsandbytes", "gptqmodel")))
            mine = {"broken": rows.BROKEN}[name]
            for row in mine:
                row.write(rooms[-1].path)
            (rooms[-1].path / "healthy.yaml").write_text(rows.HEALTHY)
            budgets = [row.budget for row in mine] + ["healthy.yaml"]
            ended[name] = rooms[-1].run(*[part for budget in budgets for part in ("--quant-budget", budget)])
        return ended[name]

    yield run
    for room in rooms:
        room.remove()


def nothing_is_left(ended: Ended, record: Callable[[str, object], None], tests: int, lost: int = 0) -> None:
    record("fault", {"tests": tests, "lost": lost, "orphans": len(ended.orphans), "locks": len(ended.locks)})
    assert ended.orphans == []
    assert ended.locks == []
    assert ended.folders == []


@pytest.mark.parametrize("row", rows.BROKEN, ids=lambda row: row.name)
def test_a_fault_costs_its_own_tests(
    row: Row, group: Groups, record_property: Callable[[str, object], None]
) -> None:
    ended = group("broken")
    check(row, ended, record_property)
    assert ended.code == pytest.ExitCode.TESTS_FAILED, ended.output


def check(row: Row, ended: Ended, record: Callable[[str, object], None]) -> None:
    verdicts = ended.verdicts(row.budget)
    wanted = {f"{row.method}::{limit}" for limit in rows.LIMITS}
    nothing_is_left(ended, record, len(row.hits), len(wanted - set(verdicts)))
    assert set(verdicts) == wanted
    said = set()
    for name, verdict in verdicts.items():
        limit = name.partition("::")[2]
        if limit not in row.hits:
            assert verdict["outcome"] == "within", verdict
            continue
        assert verdict["outcome"] == row.outcome, verdict
        said.add(verdict["message"].removeprefix(f"{row.method}: {limit} not measured: "))
    assert len(said) == (1 if row.hits else 0)
    for words in said:
        assert re.fullmatch(row.words, words), words
    assert ended.starts[f"{row.method}:{row.model or row.name}"] == row.starts
    healthy = ended.verdicts("healthy.yaml")
    assert [verdict["outcome"] for verdict in healthy.values()] == ["within", "within"]
