"""A real llama-server measured over HTTP, and what is told where it dies, hangs, or is another than was meant."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness_room import furnished
from llama_servers import SLOTS, command, needs_server, write_builtin

from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import Subject, Task, Workload
from pytest_quantbudget.engine.base import Decoded, Ends, NotOffered
from pytest_quantbudget.engine.hf import load
from pytest_quantbudget.engine.hf.engine import Transformers
from pytest_quantbudget.engine.openai import conversation, engine, probe
from pytest_quantbudget.engine.openai.conversation import ServerFailed
from pytest_quantbudget.engine.openai.engine import OpenAI
from pytest_quantbudget.engine.openai.process import Running, free_port
from pytest_quantbudget.engine.out_of_memory import Batching

pytestmark = [pytest.mark.model, needs_server, pytest.mark.usefixtures("counted")]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_builtin(tmp_path_factory.mktemp("gguf") / "builtin-f32.gguf")


def served(server: Server) -> Subject:
    return Subject(str(BUILTIN_DIR), None, "prod", None, {}, None, kind="served", engine="openai", server=server)


def started(words: tuple[str, ...], **more: Any) -> OpenAI:
    folder = tempfile.gettempdir()
    return engine.load(served(Server(command=words, folder=folder, start_timeout_s=60.0, **more)))


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[OpenAI]:
    """A server that works."""
    loaded = started(command(gguf))
    yield loaded
    loaded.close()


@pytest.fixture
def own(gguf: Path) -> Iterator[OpenAI]:
    """A server that a test may break."""
    loaded = started(command(gguf))
    yield loaded
    loaded.close()


def answers(of: OpenAI, texts: list[str], most: int = 24) -> dict[int, Decoded]:
    heard: dict[int, Decoded] = {}
    prompts = [of.tokenizer(text)["input_ids"] for text in texts]
    of.answer(prompts, Ends(of.tokenizer, of.describe().end_tokens, (), most), heard.update, Batching())
    return heard


def test_what_the_server_says_of_itself_is_described(server: OpenAI) -> None:
    said = server.describe()
    assert said.weights == 2_298_112
    assert said.positions == 512
    assert said.load_time_s is not None
    assert said.facts is not None
    assert said.facts.capabilities[probe.TOKEN_PROMPTS] == probe.YES
    assert said.facts.capabilities[probe.RETURNED_IDS] == probe.YES
    assert said.facts.capabilities[probe.FIXED_LENGTHS] == probe.YES
    assert said.facts.capabilities[probe.SAME_TOKENIZER] == probe.YES
    assert said.facts.capabilities[probe.PROMPT_LOGPROBS] == "the server ignores `prompt_logprobs` and `echo`"
    assert set(said.untold) >= {"layers", "disk", "agreement", "vram"}
    assert (server.slots, said.notes) == (SLOTS, ())


def test_a_workload_of_fixed_lengths_is_timed(server: OpenAI) -> None:
    speed = server.time(Workload(24, 450, 2, 2))
    assert len(speed.ttft_s) == len(speed.decode_s) == 2
    with pytest.raises(NotOffered, match="the workload's batch_size is 5, and the server takes 4 sequences at once"):
        server.time(Workload(24, 12, SLOTS + 1, 1))
    with pytest.raises(ValueError, match="the workload needs 1012 tokens and the model has 512 positions"):
        server.time(Workload(1000, 12, 1, 1))


def test_answers_end_at_stop_texts_and_at_their_length(server: OpenAI) -> None:
    prompt = server.tokenizer("1 2 3 4 5 6 7 8 9")["input_ids"]
    heard: dict[int, Decoded] = {}
    server.answer([prompt], Ends(server.tokenizer, (), (), 5), heard.update, Batching())
    assert (len(heard[0].ids), heard[0].cut_off) == (5, True)
    stop = server.tokenizer.decode(heard[0].ids[:2]).strip()[-1]
    server.answer([prompt], Ends(server.tokenizer, (), (stop,), 5), heard.update, Batching())
    assert len(heard[0].ids) <= 2
    assert not heard[0].cut_off


def test_log_probabilities_that_it_lacks_are_a_skip(server: OpenAI) -> None:
    with pytest.raises(NotOffered, match="the server has no prompt log-probabilities: the server ignores"):
        list(server.score([([5, 6, 7], 1)]))


def test_one_that_runs_already_is_found_and_left_running(server: OpenAI) -> None:
    found = engine.load(served(Server(url=server.talk.client.url)))
    said = found.describe()
    assert (said.load_time_s, said.untold["load_time"]) == (None, "the server had been started before")
    assert answers(found, ["3 + 4 ="])[0].ids == answers(server, ["3 + 4 ="])[0].ids
    found.close()
    assert server.talk.running is not None
    assert server.talk.running.ended is None


def test_another_model_than_the_one_that_is_meant_is_told(server: OpenAI) -> None:
    with pytest.raises(ValueError, match=r"the server at http://127.0.0.1:\d+/v1 does not serve 'Qwen/Qwen3-8B'; "):
        engine.load(served(Server(url=server.talk.client.url, model="Qwen/Qwen3-8B")))


def test_one_that_is_not_there_is_told() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ServerFailed, match=rf"the server at {url} is not there: GET /v1/models: Connect call failed"):
        engine.load(served(Server(url=url)))


def test_a_port_in_use_is_told_before_anything_starts(gguf: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} is in use \(Address already in use\); leave `port` out"):
            started(command(gguf), port=port)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no-such-server", "{port}"), "the server's command 'no-such-server' cannot be started: No such file"),
        (("sh", "-c", "echo no memory; exit 3"), "the server ended with exit code 3"),
        (("sh", "-c", "kill -9 $$"), "the server was killed by signal 9"),
        (("sh", "-c", "ulimit -v 300000; exec {python} -c 'b = bytearray(10**9)'"), "the server ended with exit code"),
        ((sys.executable, "-m", "http.server", "{port}"), "GET /v1/models was answered with status 404"),
    ],
)  # fmt: skip
def test_one_that_does_not_start_is_told_with_the_end_of_its_log(words: tuple[str, ...], message: str) -> None:
    with pytest.raises((ValueError, ServerFailed)) as error:
        started(words)
    assert str(error.value).startswith(message), str(error.value)
    if "echo" in words[-1]:
        assert str(error.value).endswith("the end of its log:\nno memory")
    if "bytearray" in words[-1]:
        assert "MemoryError" in str(error.value)


def test_a_server_that_runs_out_of_memory_is_told_in_its_words(gguf: Path) -> None:
    words = list(command(gguf))
    words[words.index("--n_ctx") + 1] = str(10**8)
    with pytest.raises(ServerFailed) as error:
        started(("sh", "-c", 'ulimit -v 3000000; exec "$0" "$@"', *words))
    assert str(error.value).startswith("the server ended with exit code 1\n")
    assert "bad_alloc" in str(error.value)


def test_tasks_of_the_harness_are_answered_and_those_that_need_probabilities_are_not_offered(
    server: OpenAI, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from pytest_quantbudget.engine import harness

    room = furnished(tmp_path)
    words, choices = (
        Task("t", None, None, 0, None, 0, None, "strict", harness=str(room / name))
        for name in ("words.yaml", "choices.yaml")
    )
    told = harness.run(
        Transformers(load.load(replace(server.subject, kind="fp32", server=None), None)), words, Batching()
    )
    own = harness.run(server, words, Batching())
    assert [answer.text for answer in own.answers] == [answer.text for answer in told.answers]
    with pytest.raises(NotOffered, match="the server has no prompt log-probabilities"):
        harness.run(server, choices, Batching())


def test_a_file_that_is_no_model_is_told_in_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ServerFailed) as error:
        started(command(tmp_path / "x.gguf"))
    assert "the server ended with exit code 1" in str(error.value)
    assert "llama_server: " in str(error.value)


def test_one_that_is_killed_while_it_starts_is_told(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Running):
        def __init__(self, *what: Any) -> None:
            super().__init__(*what)
            os.kill(self.pid or 0, signal.SIGKILL)

    monkeypatch.setattr(engine, "Running", Killed)
    with pytest.raises(ServerFailed, match=r"^the server was killed by signal 9"):
        started(command(gguf))


def strike(of: OpenAI, number: int, after_s: float = 0.3) -> threading.Timer:
    """Send the server's process a signal in a moment."""
    assert of.talk.running is not None
    pid = of.talk.running.pid
    assert pid is not None

    def send() -> None:
        with contextlib.suppress(ProcessLookupError):  # the test is over
            os.kill(pid, number)

    timer = threading.Timer(after_s, send)
    timer.start()
    return timer


LONG = [f"{n} + {n} =" for n in range(400)]


def answer_for_ever(of: OpenAI) -> None:
    while True:
        answers(of, LONG, most=200)


def test_one_that_is_killed_while_it_answers_is_told_and_asked_no_more(own: OpenAI) -> None:
    strike(own, signal.SIGKILL)
    with pytest.raises(ServerFailed, match="the server was killed by signal 9"):
        answer_for_ever(own)
    began = time.monotonic()
    with pytest.raises(ServerFailed, match="the server was killed by signal 9"):
        own.time(Workload(8, 4, 1, 1))
    assert time.monotonic() - began < 5


def test_one_that_hangs_is_told(own: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "STALL_S", 1.0)
    monkeypatch.setattr(conversation, "HEALTH_S", 1.0)
    strike(own, signal.SIGSTOP)
    with pytest.raises(ServerFailed, match=r"the server hangs: nothing came for \d s, and POST /completion was not"):
        answer_for_ever(own)


def test_a_slow_answer_is_no_hang(own: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "STALL_S", 0.5)
    strike(own, signal.SIGSTOP, 0.2)
    strike(own, signal.SIGCONT, 2.5)
    assert len(answers(own, LONG[:40], most=200)) == 40


def test_nothing_is_left_of_a_server_that_was_ended(gguf: Path) -> None:
    loaded = started(command(gguf))
    assert loaded.talk.running is not None
    pid = loaded.talk.running.pid
    loaded.close()
    assert not Path(f"/proc/{pid}").exists()


def left(mark: str) -> list[str]:
    """The processes whose command names something."""
    ps = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in ps.stdout.splitlines() if mark in line]


def test_a_kill_of_pytest_leaves_no_server(gguf: Path, tmp_path: Path) -> None:
    # A name that no other run's server has.
    name = f"{tmp_path.name}-{os.getpid()}.gguf"
    words = [word.replace(str(gguf), name) for word in command(gguf)]
    (tmp_path / name).write_bytes(gguf.read_bytes())
    budget = {
        "model": "builtin",
        "workload": {"prompt_tokens": 64, "new_tokens": 400, "repeats": 1000},
        "methods": {"prod": {"engine": "openai", "server": {"command": words}, "budget": {"max_ttft": "1 s"}}},
    }
    (tmp_path / "b.yaml").write_text(json.dumps(budget))
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "pytest", "--quant-budget", "b.yaml", "--quant-allow-commands"]
    run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True, env=environ)
    try:
        # The server and its guard.
        wait_for(lambda: len(left(name)) == 2, 120)
        time.sleep(2)
    finally:
        run.kill()
        run.wait()
    wait_for(lambda: not left(name), 20)


def wait_for(is_so: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_processes_that_left_the_servers_group_are_ended_too(tmp_path: Path) -> None:
    script = f"(setsid sleep 543.21 &); sleep 543.21 & echo $$ > {tmp_path / 'up'}; sleep 543.21"
    running = Running(["sh", "-c", script], str(tmp_path), os.environ)
    wait_for((tmp_path / "up").exists, 10)
    assert len(left("sleep 543.21")) >= 3
    running.end()
    assert left("sleep 543.21") == []


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    running = Running(["sh", "-c", "echo first; seq 1 400000; echo last"], str(tmp_path), os.environ)
    wait_for(lambda: running.ended is not None, 30)
    output = running.output()
    assert output.startswith("first\n1\n")
    assert running.tail().endswith("400000\nlast")
    assert len(output) < 1_000_000
    running.end()


def test_the_key_comes_from_the_environment(server: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = served(replace(Server(url=server.talk.client.url), api_key_env="LLM_KEY"))
    monkeypatch.delenv("LLM_KEY", raising=False)
    with pytest.raises(ValueError, match="the environment variable LLM_KEY, which holds the server's key, is not set"):
        engine.load(wanted)
    monkeypatch.setenv("LLM_KEY", "xyz-123")
    found = engine.load(wanted)
    assert found.talk.client.key == "xyz-123"
    found.close()


def test_tokens_that_a_stream_leaves_out_are_asked_for_again(server: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-server streams no id of a token whose text ends within a character: here, of every third one."""
    prompt = server.tokenizer("1 2 3 4 5 6 7 8 9")["input_ids"]
    (whole,) = answers(server, ["1 2 3 4 5 6 7 8 9"]).values()
    dialect, read = server.found.dialect, server.found.dialect.read

    def without(event: Any) -> Any:
        piece = read(event)
        partial = len(piece.ids or ()) == 1 and (piece.tokens or 0) % 3 == 0
        return replace(piece, ids=()) if partial else piece

    monkeypatch.setattr(dialect, "read", without)
    heard: dict[int, Decoded] = {}
    ends = Ends(server.tokenizer, server.describe().end_tokens, (), 24)
    server.answer([prompt], ends, heard.update, Batching())
    assert len(whole.ids) > 6
    assert (heard[0].ids, heard[0].cut_off) == (whole.ids, whole.cut_off)
