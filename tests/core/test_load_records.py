"""Records of requests under load: what cannot be true is refused."""

import math

import pytest

from pytest_quantbudget.core.load import Level, Load, LoadResult, Served

SERVED = Served(0.0, 0.5, "250000 250000", 4)


def test_figures_of_a_request_are_those_of_its_chunks() -> None:
    assert SERVED.waits_s == (0.25, 0.25)
    assert (SERVED.first_s, SERVED.e2e_s) == (0.5, 1.0)
    assert SERVED.tpot_s == pytest.approx(0.5 / 3)
    failed = Served(0.0, 0.5, "250000", 2, "timeout")
    assert failed.first_s == failed.e2e_s == failed.tpot_s == math.inf


def test_of_a_level_only_whole_answers_count_as_throughput() -> None:
    level = Level("rate", 2.5, 2.0, (SERVED, Served(0.1, error="timeout"), Served(0.2, error="timeout")))
    assert (level.name, level.throughput, level.errors) == ("2.5 requests/s", 2.0, {"timeout": 2})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-1.0, 0.5, "", 1), "finite and not below 0"),
        ((math.nan, 0.5, "", 1), "finite and not below 0"),
        ((0.0, math.inf, "", 1), "finite and not below 0"),
        ((0.0, 0.5, "1 -2", 3), "whole numbers of microseconds"),
        ((0.0, 0.5, "1  2", 3), "whole numbers of microseconds"),
        ((0.0, 0.5, "1.5", 3), "whole numbers of microseconds"),
        ((0.0, 0.5, "9" * 16, 3), "whole numbers of microseconds"),
        ((0.0, 0.5, "1 2", 2), "3 chunks of an answer hold 2 tokens"),
        ((0.0, 0.0, "", 0), "0 chunks of an answer hold 0 tokens"),
    ],
)
def test_a_request_that_cannot_have_been_is_refused(values: tuple[float, float, str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Served(*values)


def test_a_result_has_the_levels_of_its_load() -> None:
    load = Load(8, 4, (1,), (), 1)
    level = Level("concurrency", 1, 1.0, (SERVED,))
    assert LoadResult(load, (level,)).acceptance_length is None
    assert LoadResult(load, (level,), drafts=4, accepted=6).acceptance_length == 2.5
    for levels in ((), (level, level), (Level("concurrency", 2, 1.0, (SERVED,)),), (Level("rate", 1, 1.0, (SERVED,)),)):
        with pytest.raises(ValueError, match="the levels are not those of the load"):
            LoadResult(load, levels)
    with pytest.raises(ValueError, match="accepted tokens need drafts"):
        LoadResult(load, (level,), accepted=3)
    with pytest.raises(ValueError, match="a level needs requests"):
        Level("concurrency", 1, 0.0, (SERVED,))


def test_where_the_text_and_the_interpreter_lie_changes_no_figure() -> None:
    one, same = (Load(file=f"{place}/text.txt", tool="guidellm", python=f"{place}/python") for place in ("/a", "/b"))
    assert one.key("hash") == same.key("hash") != one.key("another hash")
    assert one.key("hash") != Load(file="/a/text.txt").key("hash")


def test_as_many_requests_warm_up_as_may_be_open() -> None:
    assert [Load().warmup_at(*level) for level in (("concurrency", 32), ("rate", 0.5))] == [32, 8]
    assert Load(warmup=0).warmup_at("concurrency", 32) == 0
