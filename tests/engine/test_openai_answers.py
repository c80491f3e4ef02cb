"""What a server answers that is no answer: refused, broken off, no JSON, of another form; and what it cannot do."""

import contextlib
import json
import shutil
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, json_reply, reset, scripted, send, stream_reply

from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.base import Decoded, Ends, NotOffered
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai import engine, one_run, probe
from pytest_quantbudget.engine.openai.conversation import ServerFailed
from pytest_quantbudget.engine.out_of_memory import Batching

pytestmark = pytest.mark.model

MODELS = {"object": "list", "data": [{"id": "q", "max_model_len": 64}]}
MANY = 1_000_000  # events, more than buffers hold
OUT_OF_MEMORY = {"error": {"message": "CUDA out of memory", "code": 500}}


def completion(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """A server with token ids, which counts up from the prompt's last; as many tokens as are asked for."""
    ids = [5 + n for n in range(body["max_tokens"])]
    choice = {"text": "x" * len(ids), "token_ids": ids, "finish_reason": "length"}
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
    if "prompt_logprobs" in body:
        told = [{str(token): {"logprob": -0.5, "rank": 1 + token % 2}} for token in body["prompt"]]
        choice["prompt_logprobs"] = [None, *told[1:]]
    if not body.get("stream"):
        send(handler, json.dumps({"choices": [choice], "usage": usage}).encode())
        return
    events = [{"choices": [{"text": "x", "token_ids": [token], "finish_reason": None}]} for token in ids]
    last = {"choices": [{"text": "", "token_ids": [], "finish_reason": "length"}], "usage": usage}
    lines = [f"data: {json.dumps(event)}".encode() for event in (*events, last)]
    stream_reply(*lines, b"data: [DONE]", every_s=0.02)(handler, body)


def only_text(handler: BaseHTTPRequestHandler, body: Any) -> None:
    """A plain server: it knows no field that is not OpenAI's own."""
    if set(body) - {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "seed"}:
        send(handler, b'{"error": {"message": "Unrecognized request argument"}}', 400)
        return
    tokens = min(body["max_tokens"], 3)
    finish = "length" if tokens == body["max_tokens"] else "stop"
    whole = {
        "choices": [{"text": " 1 2"[:tokens], "finish_reason": finish}],
        "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens},
    }
    if body.get("stream"):
        stream_reply(f"data: {json.dumps(whole)}".encode(), b"data: [DONE]")(handler, body)
    else:
        send(handler, json.dumps(whole).encode())


def load(url: str, folder: Path = BUILTIN_DIR, **more: Any) -> engine.OpenAI:
    server = Server(url=url, start_timeout_s=20.0, **more)
    return engine.load(
        Subject(str(folder), None, "prod", None, {}, None, kind="served", engine="openai", server=server)
    )


def streamed(reply: Reply) -> Reply:
    """A good server whose streams are answered in another way."""
    return lambda handler, body: (reply if body.get("stream") else completion)(handler, body)


def ask(served: engine.OpenAI, drafts: list[list[int]] | None = None) -> Decoded:
    heard: dict[int, Decoded] = {}
    served.answer([[5, 6, 7]], Ends(served.tokenizer, (), (), 4), heard.update, Batching(), drafts)
    return heard[0]


def test_a_server_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": completion}) as url:
        served = load(url)
        assert served.describe().positions == 64
        answer = ask(served, drafts=[[8, 9, 11]])
        assert (answer.ids, answer.cut_off) == ([5, 6, 7, 8], True)
        assert (answer.agreed, answer.draft_logprob) == (1, -1.5)
        assert list(served.score([([5, 6, 7], 1)])) == [[(-0.5, True), (-0.5, False)]]
        with pytest.raises(ValueError, match="one token besides, needs 65 tokens and the model has 64 positions"):
            list(served.score([([5] * 64, 1)]))
        assert len(served.time(Workload(8, 4, 1, 2)).ttft_s) == 2
        served.close()


def test_a_plain_server_answers_in_text_and_says_what_it_lacks() -> None:
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": only_text}) as url:
        served = load(url)
        said = served.describe()
        assert said.notes == (
            "the server returns text alone: token ids are those that the model's tokenizer makes of it",
        )
        assert said.untold["agreement"].endswith("Unrecognized request argument")
        answer = ask(served)
        assert served.tokenizer.decode(answer.ids) == " 1 2"[:3]
        assert not answer.cut_off
        with pytest.raises(NotOffered, match="the server has no returned token ids: the server returns text alone"):
            served.time(Workload(8, 4, 1, 2))
        served.close()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (json_reply(OUT_OF_MEMORY, 500), "POST /v1/completions was answered with status 500: CUDA out of memory"),
        (stream_reply(b'data: {"choices": [{"tok'), "an event of POST /v1/completions is no JSON"),
        (stream_reply(b"data: <html>"), "an event of POST /v1/completions is no JSON: <html>"),
        (stream_reply(b"data: 5"), "an answer of the server has another form than OpenAI completions with token ids"),
        (stream_reply(b'data: {"choices": 7}'), "an answer of the server has another form than OpenAI comp"),
        (stream_reply(b'data: {"choices": [{"token_ids": ["x"]}]}'), "an answer of the server has another form than"),
        (stream_reply(b'data: {"choices": [{"token_ids": [5]}]}'), "the stream of an answer ended before the answer"),
        (stream_reply(b'data: {"error": {"message": "engine dead"}}'), "POST /v1/completions failed while it was answ"),
        (stream_reply(), "the stream of an answer ended before the answer did"),
        (reset, "POST /v1/completions: the connection ended before the answer was whole"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_told(reply: Reply, message: str) -> None:
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": streamed(reply)}) as url:
        served = load(url)
        with pytest.raises(ServerFailed) as error:
            ask(served)
        assert str(error.value).startswith(message), str(error.value)
        served.close()


def test_an_answer_that_never_ends_is_told() -> None:
    told = []

    def endless(handler: BaseHTTPRequestHandler, body: Any) -> None:
        if not body.get("stream"):
            only_text(handler, body)
            return
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            for number in range(MANY):
                told.append(number)
                handler.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')

    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": endless}) as url:
        served = load(url)
        with pytest.raises(ServerFailed, match="an answer does not end: 4 tokens were asked for, and 321 events came"):
            ask(served)
        served.close()
    assert len(told) < MANY


def test_a_refused_request_costs_no_other() -> None:
    refuse = json_reply({"error": {"message": "the prompt is too long"}}, 400)
    replies = {"/v1/models": json_reply(MODELS), "/v1/completions": streamed(refuse)}
    with scripted(replies) as url:
        served = load(url)
        with pytest.raises(ServerFailed, match="was answered with status 400: the prompt is too long"):
            ask(served)
        replies["/v1/completions"] = completion
        assert ask(served).ids == [5, 6, 7, 8]
        served.close()


def test_tokens_that_come_all_at_once_are_no_speed() -> None:
    whole = stream_reply(b'data: {"choices": [{"token_ids": [5, 6, 7, 8], "finish_reason": "length"}]}')
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": streamed(whole)}) as url:
        served = load(url)
        with pytest.raises(NotOffered, match="the server sent all tokens at once"):
            served.time(Workload(8, 4, 1, 2))
        served.close()


def test_chunks_that_come_one_upon_the_other_are_together() -> None:
    assert one_run.together([1.0]) == 1
    assert one_run.together([1.0, 1.002, 1.00201]) == 1
    assert one_run.together([1.0, 1.0, 1.00002, 1.00005, 1.002]) == 4
    assert one_run.together([1.0, 1.00002, 1.00004]) == 3


def test_tokens_that_come_together_with_the_first_are_no_speed() -> None:
    events = (b'data: {"choices": [{"token_ids": [5, 6, 7]}]}', b'data: {"choices": [{"token_ids": [8]}]}')
    ended = b'data: {"choices": [{"token_ids": [], "finish_reason": "length"}]}'
    reply = stream_reply(*events, ended, every_s=0.02)
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": streamed(reply)}) as url:
        served = load(url)
        with pytest.raises(NotOffered, match="the server sent 3 of 4 tokens together, as the first ones"):
            served.time(Workload(8, 4, 1, 2))
        served.close()


@pytest.mark.parametrize("waits", [1, one_run.TRIES])
def test_a_sequence_that_was_read_whole_before_another_began_is_no_speed(waits: int) -> None:
    """So it is once where the client had no processor for a while, and always where the server takes one at a time."""
    late: list[list[int]] = []

    def one_after_another(handler: BaseHTTPRequestHandler, body: Any) -> None:
        if body.get("stream") and len(body["prompt"]) == 8 and len(late) < 2 * waits:
            late.append(body["prompt"])
            # Of the two of a run, every second one waits for the other.
            time.sleep(0.0 if len(late) % 2 else 0.5)
        completion(handler, body)

    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": one_after_another}) as url:
        served = load(url)
        workload = Workload(8, 4, 2, 2)
        if waits == 1:
            speed = served.time(workload)
            assert len(speed.ttft_s) == 2
            assert speed.throttled[-1].startswith("1 run was left out: the server had decoded a sequence before")
        else:
            with pytest.raises(NotOffered, match="had decoded a sequence before it had the first token of another"):
                served.time(workload)
        served.close()


def test_fewer_tokens_than_were_asked_for_are_no_speed() -> None:
    few = stream_reply(b'data: {"choices": [{"token_ids": [5], "finish_reason": "stop"}]}')
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": streamed(few)}) as url:
        served = load(url)
        with pytest.raises(NotOffered, match="4 tokens were asked for, and the server gave 1"):
            served.time(Workload(8, 4, 1, 2))
        served.close()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (json_reply({"data": []}), "serves 0 models (none); name one as `server.model`"),
        (json_reply({"data": [{"id": "a"}, {"id": "b"}]}), "serves 2 models (a, b); name one as `server.model`"),
        (json_reply([1]), "lists no models: it is no OpenAI-compatible server"),
        (json_reply({"data": [{"name": "a"}]}), "lists no models: it is no OpenAI-compatible"),
        (lambda handler, body: send(handler, b"<html>"), "GET /v1/models is no JSON: <html>"),
        (json_reply({"error": "bad key sk-abcdefghijklmnopqrstuvwx"}, 401), "was answered with status 401: bad key"),
    ],
)  # fmt: skip
def test_what_is_no_server_or_serves_no_certain_model_is_told(models: Reply, message: str) -> None:
    with scripted({"/v1/models": models, "/v1/completions": completion}) as url:
        with pytest.raises((ValueError, ServerFailed)) as error:
            load(url)
        assert message in str(error.value)


def test_a_failure_while_it_is_probed_is_no_lack_of_a_capability() -> None:
    def fails(handler: BaseHTTPRequestHandler, body: Any) -> None:
        (json_reply(OUT_OF_MEMORY, 500) if "prompt_logprobs" in body else completion)(handler, body)

    why = "was answered with status 500: CUDA out of memory"
    replies = {"/v1/models": json_reply(MODELS), "/v1/completions": fails}
    with scripted(replies) as url, pytest.raises(ServerFailed, match=why):
        load(url)


def test_what_a_server_says_that_it_has_not_built_is_no_failure() -> None:
    def lacks(handler: BaseHTTPRequestHandler, body: Any) -> None:
        (json_reply({"error": "not implemented"}, 501) if "prompt_logprobs" in body else completion)(handler, body)

    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": lacks}) as url:
        served = load(url)
        assert served.found.lacks(probe.PROMPT_LOGPROBS) == "the server ignores `prompt_logprobs` and `echo`"
        served.close()


def test_one_that_is_starting_is_waited_for() -> None:
    said = iter([503, 503])

    def models(handler: BaseHTTPRequestHandler, body: Any) -> None:
        status = next(said, 200)
        json_reply(MODELS if status == 200 else {"error": {"message": "loading"}}, status)(handler, body)

    with scripted({"/v1/models": models, "/v1/completions": completion}) as url:
        load(url).close()


def test_a_server_that_gives_fewer_tokens_than_are_asked_for_is_not_put_under_load() -> None:
    def ends(handler: BaseHTTPRequestHandler, body: Any) -> None:
        completion(handler, {**body, "max_tokens": min(body["max_tokens"], 5)})

    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": ends}) as url:
        served = load(url)
        with pytest.raises(NotOffered, match="the server has no fixed lengths: 8 tokens were asked for, and 5 came"):
            served.load(Load(8, 4, (1,), (), 1))
        served.close()


def test_a_prompt_that_is_counted_otherwise_was_not_taken_as_token_ids() -> None:
    def recounts(handler: BaseHTTPRequestHandler, body: Any) -> None:
        # It takes the ids for a text.
        only_text(handler, {**body, "prompt": str(body["prompt"])})

    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": recounts}) as url:
        served = load(url)
        with pytest.raises(
            NotOffered, match=r"the server has no token-id prompts: a prompt of \d+ token ids was counted"
        ):
            ask(served)
        served.close()


def test_a_server_in_another_interpreter_gets_no_path_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    bare = engine.OpenAI.__new__(engine.OpenAI)
    for python, path in ((None, "/elsewhere"), ("/venv/bin/python", None)):
        bare.subject = Subject("m", None, "prod", None, {}, None, kind="served", engine="openai", python=python)
        assert bare.environ().get("PYTHONPATH") == path


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://gpu.example.org:8000/v1", "gpu.example.org"),
        ("http://127.0.0.5/v1", "cpu"),
        ("http://[::1]:1/v1", "cpu"),
        (None, "cpu"),
    ],
)
def test_of_another_machine_no_device_is_known(url: str | None, name: str) -> None:
    bare = engine.OpenAI.__new__(engine.OpenAI)
    bare.server, bare.gpus = Server(url), Gpus({})
    device = bare.device()
    assert (device.name, device.threads > 0) == (name, name == "cpu")


TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [assistant]"
RENDERED = f"[user] {probe.SAMPLE} [assistant]"


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ({}, probe.UNTOLD),
        ({"/apply-template": {"prompt": RENDERED}}, probe.YES),
        ({"/apply-template": {"prompt": "<|im_start|>user"}}, "it makes <|im_start|>user, and the model's makes [user"),
        ({"/tokenize": {"tokens": [7, 8]}}, "it makes [7, 8], and the model's makes ["),
    ],
    ids=["no endpoint", "the same", "another text", "other tokens"],
)  # fmt: skip
def test_the_servers_chat_template_is_held_against_the_models(
    replies: dict[str, Any], said: str, tmp_path: Path
) -> None:
    shutil.copytree(BUILTIN_DIR, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    served = {path: json_reply(value) for path, value in replies.items()}
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": completion, **served}) as url:
        found = load(url, tmp_path / "model")
        told = found.found.capabilities[probe.SAME_TEMPLATE]
        assert told[: len(said)] == said
        other = [note for note in found.describe().notes if "chat template" in note]
        assert len(other) == (0 if told in (probe.YES, probe.UNTOLD) else 1)
        found.close()


def test_a_template_of_the_server_alone_is_told_and_no_note() -> None:
    own = {"/apply-template": json_reply({"prompt": "<|im_start|>user"})}
    with scripted({"/v1/models": json_reply(MODELS), "/v1/completions": completion, **own}) as url:
        found = load(url)
        assert (
            found.found.capabilities[probe.SAME_TEMPLATE]
            == "the model has none, and the server's makes <|im_start|>user"
        )
        assert not any("chat template" in note for note in found.describe().notes)
        found.close()


def test_what_echo_tells_is_read() -> None:
    told = {"token_logprobs": [None, -0.1, -2.0], "top_logprobs": [None, {"a": -0.1}, {"b": -0.3}]}
    assert probe.of_echo({"choices": [{"logprobs": told}]}, [5, 6, 7], 1) == [(-0.1, True), (-2.0, False)]
    assert probe.of_echo({"choices": [{"logprobs": None}]}, [5, 6, 7], 1) is None
    without = {**told, "top_logprobs": [None, None, None]}
    assert probe.of_echo({"choices": [{"logprobs": without}]}, [5, 6, 7], 1) is None
    assert probe.of_prompt({"choices": [{"prompt_logprobs": [None]}]}, [5, 6, 7], 1) is None


def test_a_key_that_breaks_a_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_KEY", "abc\nHost: evil")
    with pytest.raises(ValueError, match="the key in LLM_KEY holds a line break"):
        load("http://127.0.0.1:1/v1", api_key_env="LLM_KEY")
