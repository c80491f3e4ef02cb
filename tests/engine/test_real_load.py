"""Requests under load on a real llama-server: with drafts, killed and stopped while requests are open."""

import os
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_servers import command, needs_server, write_builtin

from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.engine.openai import conversation, counters, engine, llama_server
from pytest_quantbudget.engine.openai.conversation import ServerFailed


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_builtin(tmp_path_factory.mktemp("gguf") / "builtin-f32.gguf")


@contextmanager
def real_server(gguf: Path, *more: str) -> Iterator[engine.OpenAI]:
    server = Server(command=command(gguf, *more), folder=tempfile.gettempdir(), start_timeout_s=60.0)
    subject = Subject(str(BUILTIN_DIR), None, "prod", None, {}, None, kind="served", engine="openai", server=server)
    loaded = engine.load(subject)
    try:
        yield loaded
    finally:
        loaded.close()


@needs_server
@pytest.mark.model
def test_a_real_server_is_put_under_load(gguf: Path) -> None:
    with real_server(gguf) as server:
        told: list[tuple[int, int]] = []
        result = server.load(Load(32, 16, (1, 4), (), 12, None, 3), lambda done, total: told.append((done, total)))
        rate = server.load(Load(32, 16, (), (50.0,), 12))
        with pytest.raises(ValueError, match="the load needs 600 tokens and the model has 512 positions"):
            server.load(Load(500, 100, (1,)))
    assert [(level.name, len(level.whole)) for level in result.levels] == [("concurrency 1", 12), ("concurrency 4", 12)]
    assert [(level.name, len(level.whole)) for level in rate.levels] == [("50 requests/s", 12)]
    for level in (*result.levels, *rate.levels):
        assert {each.tokens for each in level.served} == {16}
        assert {each.cached for each in level.served} == {0}
        assert statistics.median(each.ttft_s for each in level.served) < level.seconds
    assert result.undrafted == counters.UNDRAFTED
    # Five of these warmed up.
    assert told[-1] == (2 * 12 + 5, 2 * 12 + 5)


@needs_server
@pytest.mark.model
def test_a_real_server_with_a_draft_model_has_an_acceptance_length(gguf: Path) -> None:
    words = ("--speculative.types", "draft-simple", "--speculative.draft.mparams.path", str(gguf))
    with real_server(gguf, *words) as server:
        result = server.load(Load(32, 16, (1, 2), (), 8))

        # The same work, as the answers alone tell it.
        async def none(_: Any) -> None:
            return None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counters, "read", none)
            of_answers = server.load(Load(32, 16, (1, 2), (), 8))
    assert [len(level.whole) for level in result.levels] == [8, 8]
    for found in (result, of_answers):
        assert found.acceptance_length is not None
        assert 1 < found.acceptance_length <= 4  # a draft has three tokens
        assert found.undrafted == ""
    assert of_answers.drafts is not None
    assert of_answers.accepted is not None
    assert of_answers.drafts + of_answers.accepted == 2 * 8 * 16


@needs_server
def test_a_kind_of_draft_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    llama_server.apply(parameters, "speculative.types", "draft-simple, ngram-mod")
    assert [each.name.rpartition("TYPE_")[2] for each in parameters.speculative.types] == ["DRAFT_SIMPLE", "NGRAM_MOD"]
    with pytest.raises(ValueError, match=r"--speculative.types takes none, draft-simple, .*, not 'draft-simpel'"):
        llama_server.apply(parameters, "speculative.types", "draft-simpel")


def under_fire(server: engine.OpenAI, number: int) -> None:
    """Put a server under load whose process gets a signal while requests are open."""
    running = server.talk.running
    assert running is not None
    assert running.pid is not None
    threading.Timer(0.3, os.kill, (running.pid, number)).start()
    server.load(Load(32, 64, (2,), (), 1000, 0))


@needs_server
@pytest.mark.model
def test_a_real_server_that_is_killed_under_load_is_told(gguf: Path) -> None:
    with real_server(gguf) as server, pytest.raises(ServerFailed, match="the server was killed by signal 9"):
        under_fire(server, signal.SIGKILL)


@needs_server
@pytest.mark.model
def test_a_real_server_that_hangs_under_load_is_told(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "STALL_S", 1.0)
    monkeypatch.setattr(conversation, "HEALTH_S", 1.0)
    with real_server(gguf) as server, pytest.raises(ServerFailed, match="the server hangs: nothing came for"):
        under_fire(server, signal.SIGSTOP)
