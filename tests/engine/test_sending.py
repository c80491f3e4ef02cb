"""Requests under load: sent as told, counted by token ids, failed ones told by kind."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_streams import Script, ScriptedServer

from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.engine.base import Engine, NotOffered
from pytest_quantbudget.engine.openai import counters
from pytest_quantbudget.engine.openai import load as sending
from pytest_quantbudget.engine.openai.conversation import Conversation
from pytest_quantbudget.engine.openai.dialects import LlamaServer, OpenAI, OpenAIWithIds
from pytest_quantbudget.engine.openai.http import Client

GOOD = Script([(0.02, [7]), (0.01, [8, 9]), (0.01, [10])], usage={"completion_tokens": 4})


class Words:
    """A tokenizer of a thousand words, of which two are special."""

    all_special_ids = (0, 1)

    def __len__(self) -> int:
        return 1000

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 + int(word) for word in text.split()]}


@contextmanager
def served(
    script: Callable[[int], Script], *metrics: str, health: int = 200
) -> Iterator[tuple[ScriptedServer, Conversation]]:
    """A scripted server, and a conversation with it."""
    server = ScriptedServer(script, metrics, health)
    talk = Conversation(Client(server.url), None)
    talk.dialect = OpenAIWithIds(talk.client, "m")
    try:
        yield server, talk
    finally:
        talk.close()
        server.close()


def load(**more: Any) -> Load:
    return Load(**{"prompt_tokens": 5, "new_tokens": 4, "concurrency": (2,), "requests": 6, "warmup": 0, **more})


def sent(talk: Conversation, **more: Any) -> LoadResult:
    return sending.run(talk, load(**more), Words())


def test_tokens_are_counted_by_their_ids_and_waits_by_chunks() -> None:
    with served(lambda _: GOOD) as (_, talk):
        (level,) = sent(talk).levels
    assert [each.tokens for each in level.served] == [4] * 6
    assert [len(each.waits_s) for each in level.served] == [2] * 6
    assert not level.errors
    # The server pauses at least so long before what it sends.
    assert min(each.ttft_s for each in level.served) >= 0.02
    assert min(each.e2e_s for each in level.served) >= 0.04
    assert all(each.tpot_s == pytest.approx(sum(each.waits_s) / 3) for each in level.served)
    assert level.seconds >= 3 * 0.04
    # What a stream says after its last token is no part of the level.
    assert level.seconds == max(each.sent_s + each.e2e_s for each in level.served)
    assert level.throughput == pytest.approx(24 / level.seconds)


def test_how_many_requests_have_ended_is_told_warm_up_and_failures_included(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TELL_S", 0.0)
    told = []
    with served(lambda number: Script(status=429) if number == 4 else GOOD) as (_, talk):
        wanted = load(concurrency=(1, 2), warmup=1)
        sending.run(talk, wanted, Words(), tell=lambda done, total: told.append((done, total)))
    assert told == [(done, 14) for done in range(1, 15)]


def test_as_many_requests_are_open_as_there_may_be_and_all_prompts_differ() -> None:
    with served(lambda _: GOOD) as (server, talk):
        result = sent(talk, concurrency=(1, 4), requests=12, warmup=3)
    assert [level.name for level in result.levels] == ["concurrency 1", "concurrency 4"]
    assert [len(level.served) for level in result.levels] == [12, 12]
    prompts = [prompt for _, prompt, _ in server.prompts]
    assert len(prompts) == len(set(prompts)) == 2 * (3 + 12)
    assert {len(prompt) for prompt in prompts} == {5}
    assert min(map(min, prompts)) >= 2  # no special tokens
    assert max(opened for _, _, opened in server.prompts[:15]) == 1
    assert max(opened for _, _, opened in server.prompts[18:]) == 4


def test_a_seed_gives_the_same_prompts_and_another_one_others() -> None:
    one, same, other = (sending.prompts(load(seed=seed), Words()) for seed in (1, 1, 2))
    assert (first := [next(one) for _ in range(5)]) == [next(same) for _ in range(5)]
    assert first != [next(other) for _ in range(5)]


def test_a_server_that_runs_already_gets_prompts_that_no_run_has_sent_yet() -> None:
    with served(lambda _: GOOD) as (server, talk):
        again = Conversation(Client(server.url), None)
        again.close()
        drawn = [list(itertools.islice(sending.prompts(load(), Words(), one.salt), 50)) for one in (talk, again)]
        sent(talk)
    assert not {tuple(prompt) for prompt in drawn[0]} & {tuple(prompt) for prompt in drawn[1]}
    assert [list(prompt) for _, prompt, _ in server.prompts] == drawn[0][:6]


def test_a_rate_sends_at_times_of_a_poisson_process_whatever_is_open() -> None:
    slow = Script([(0.5, [1, 2, 3, 4])])
    with served(lambda _: slow) as (server, talk):
        (level,) = sent(talk, concurrency=(), rate=(200.0,), requests=60).levels
    assert level.name == "200 requests/s"
    assert max(opened for _, _, opened in server.prompts) > 30  # nobody waited for an answer
    times = [each.sent_s for each in level.served]
    assert times == sorted(times)
    assert times[0] < 0.1
    # The planned times are drawn by the seed; those of sending can only be later, by what is told.
    drawn = sending.Generator(talk, load(), iter(()))
    due = 0.0
    for each in level.served:
        assert due - 1e-5 <= each.sent_s <= due + level.behind_s + 1e-5
        due += drawn.times.expovariate(200.0)


@pytest.mark.parametrize("more", [{"concurrency": (2,)}, {"concurrency": (), "rate": (50.0,)}], ids=["open", "rate"])
def test_no_request_waits_for_prompts_that_are_being_drawn(more: dict[str, Any]) -> None:
    def slowly() -> Iterator[list[int]]:
        for number in itertools.count():
            time.sleep(0.1)
            yield [2 + number] * 5

    with served(lambda _: GOOD) as (_, talk):
        generator = sending.Generator(talk, load(**more), slowly())
        (level,) = talk.run(generator.result()).levels
    assert level.served[0].sent_s < 0.1
    assert level.behind_s < 0.3


def test_more_chunks_than_tokens_that_are_told_are_a_wrong_length() -> None:
    chunks = Script([(0.01, [number]) for number in range(7, 12)], usage={"completion_tokens": 4})
    with served(lambda _: chunks) as (_, talk):
        talk.dialect = OpenAI(talk.client, "m")
        (level,) = sent(talk).levels
    assert {each.error for each in level.served} == {"wrong length"}
    assert {each.tokens for each in level.served} == {5}


@pytest.mark.parametrize(
    ("script", "error", "tokens"),
    [
        (Script([(0, [7]), (0, [8])], ends="error"), "failed midway", 2),
        (Script([(0, [7])], ends="garbage"), "garbled answer", 1),
        (Script([(0, [7, 8])], ends="hang"), "timeout", 2),
        (Script([(0, [7, 8])], ends="cut"), "connection lost", 2),
        (Script([(0, [7, 8])]), "wrong length", 2),
        (Script([(0, [7, 8, 9]), (0, [10, 11])]), "wrong length", 5),
        (Script(), "wrong length", 0),
        (Script(status=429), "status 429", 0),
        (Script(status=503), "status 503", 0),
    ],
    ids=lambda value: value.ends + str(value.status) if isinstance(value, Script) else str(value),
)
def test_a_failed_request_is_told_by_its_kind_and_costs_no_other(script: Script, error: str, tokens: int) -> None:
    with served(lambda number: script if number in (2, 4) else GOOD) as (_, talk):
        (level,) = sent(talk, timeout_s=0.5).levels
    assert level.errors == {error: 2}
    assert {each.tokens for each in level.served if each.error} == {tokens}
    assert len(level.whole) == 4
    assert level.throughput == pytest.approx(16 / level.seconds)


def test_a_stream_without_token_ids_is_counted_by_the_usage() -> None:
    with served(lambda _: replace(GOOD, told=("text",))) as (_, talk):
        (level,) = sent(talk).levels
    assert [(each.tokens, len(each.waits_s), each.error) for each in level.served] == [(4, 2, "")] * 6


def test_tokens_of_which_no_chunk_tells_are_a_failure_of_their_request_alone() -> None:
    silent = replace(GOOD, told=())
    with served(lambda number: silent if number in (2, 4) else GOOD) as (_, talk):
        (level,) = sent(talk).levels
    assert level.errors == {"no token streamed": 2}
    assert len(level.whole) == 4


def test_a_server_that_cuts_one_request_off_and_refuses_another_is_there() -> None:
    with served(lambda number: Script(ends="cut") if number == 2 else GOOD, health=429) as (_, talk):
        (level,) = sent(talk).levels
    assert level.errors == {"connection lost": 1}


def test_tokens_from_a_prefix_cache_are_noted_from_answers_and_from_metrics() -> None:
    cached = replace(GOOD, usage={"prompt_tokens_details": {"cached_tokens": 3}})
    with served(lambda number: cached if number < 2 else GOOD) as (_, talk):
        (level,) = sent(talk).levels
    assert sorted(each.cached for each in level.served) == [0, 0, 0, 0, 3, 3]
    before, after = (f'vllm:prefix_cache_hits_total{{engine="0"}} {count}.0\n' for count in (16, 48))
    with served(lambda _: GOOD, before, after) as (_, talk):
        assert sent(talk).notes == ("32 tokens of prompts came from a prefix cache, as the server's metrics say",)
    # Where the answers tell it, of each prompt, the metrics say nothing more.
    with served(lambda _: cached, before, after) as (_, talk):
        assert sent(talk).notes == ()


def metrics(drafts: int, accepted: int) -> str:
    return f"""# HELP vllm:spec_decode_num_drafts_total Number of drafts.
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m, of {{braces}}"}} {drafts}.0
vllm:spec_decode_num_drafts_total{{engine="1",model_name="m"}} {drafts} 1700000000
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {accepted}e0
vllm:spec_decode_num_accepted_tokens_total{{engine="1"}} NaN
nonsense
"""


def test_the_acceptance_length_is_that_of_the_levels_alone() -> None:
    told = [metrics(*counts) for counts in ((100, 1), (110, 31), (200, 40), (210, 50))]
    with served(lambda _: GOOD, *told) as (_, talk):
        result = sent(talk, concurrency=(1, 2))
    assert (result.drafts, result.accepted) == (40, 40)
    assert result.acceptance_length == 2.0


def test_without_drafts_there_is_no_acceptance_length_and_why_is_said() -> None:
    # The last is of a server that has begun to count anew.
    for told in ((), (metrics(5, 5), metrics(5, 5)), ("x 1\n", "x 2\n"), (metrics(9, 9), metrics(2, 2))):
        with served(lambda _: GOOD, *told) as (_, talk):
            result = sent(talk)
        assert (result.acceptance_length, result.undrafted) == (None, counters.UNDRAFTED)


def test_llama_servers_drafts_are_told_by_its_answers() -> None:
    client = Client("http://127.0.0.1:1/v1")
    end = {"stop": True, "stop_type": "limit", "tokens": [], "timings": {"draft_n": 9, "draft_n_accepted": 6}}
    piece = LlamaServer(client, "m").read({**end, "tokens_predicted": 10})
    assert (piece.drafted, piece.accepted) == (9, 6)
    # Of ten tokens six were accepted, so that four steps were made: 2.5 tokens each.
    counts = counters.Counts.of_answers(9, 6, 10)
    assert 1 + counts.accepted / counts.drafts == 2.5
    assert counters.Counts.of_answers(0, 0, 10) == counters.Counts()


def test_tokens_that_a_server_counts_and_does_not_send_are_counted() -> None:
    hidden = Script([(0, [7]), (0, [8])], usage={"completion_tokens": 4})
    with served(lambda _: hidden) as (_, talk):
        (level,) = sent(talk).levels
    assert [(each.tokens, len(each.waits_s)) for each in level.whole] == [(4, 1)] * 6


def test_where_only_text_comes_the_server_is_asked_for_the_number_of_tokens() -> None:
    with served(lambda _: GOOD) as (_, talk):
        talk.dialect = OpenAI(talk.client, "m")
        (level,) = sent(talk).levels
    assert not level.errors
    assert {each.tokens for each in level.served} == {4}


def test_prompts_are_cut_from_a_text_where_one_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, range(40))))
    drawn = sending.prompts(load(file=str(text)), Words())
    found = [next(drawn) for _ in range(36)]
    assert sorted(found) == [list(range(start, start + 5)) for start in range(2, 38)]
    with pytest.raises(ValueError, match=r"text.txt holds 40 tokens, too few for as many different prompts of 5"):
        next(drawn)


@pytest.mark.parametrize(("tokens", "words"), [(1, "the vocabulary holds 998 tokens, too few"), (50, "holds 3 tokens")])
def test_prompts_that_there_are_not_enough_of_are_told(tokens: int, words: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("1 2 3")
    drawn = sending.prompts(load(prompt_tokens=tokens, file=str(text) if tokens > 1 else None), Words())
    with pytest.raises(ValueError, match=words):
        list(itertools.islice(drawn, 999))


def test_an_engine_without_a_queue_says_so() -> None:
    class Bare(Engine):
        name = "transformers"

        def describe(self) -> Any:
            """Nothing."""

        def close(self) -> None:
            """Nothing to give back."""

    with pytest.raises(NotOffered, match="transformers has no queue of requests"):
        Bare().load(load())
