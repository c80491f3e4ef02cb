"""The engines auto-gptq and autoawq: their server, measured, on a real model under a stand-in for the libraries.

The libraries themselves need other releases of transformers: `test_real_archived.py` asks them.
"""

import json
import os
import shutil
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_archived
import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.archived import engine, loader
from pytest_quantbudget.engine.archived.engine import Archived
from pytest_quantbudget.engine.base import Decoded, Ends, Lacking, NotFinite, NotOffered
from pytest_quantbudget.engine.openai import conversation, probe
from pytest_quantbudget.engine.openai.conversation import ServerFailed
from pytest_quantbudget.engine.out_of_memory import Batching

pytestmark = pytest.mark.model
PROMPTS = ["Question: Adam has 3 apples and buys 4 more. How many apples does Adam have?\nAnswer:", "12 + 7 ="]
LONG = list(range(5, 75))
Start = Callable[..., Archived]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both libraries, and a checkpoint of each."""
    folder = tmp_path_factory.mktemp("archived")
    (folder / "site").mkdir()
    fake_archived.installed(folder / "site")
    fake_archived.checkpoint(folder / "gptq")
    fake_archived.checkpoint(folder / "awq", "awq")
    return folder


@pytest.fixture(scope="module")
def start(files: Path, counting: dict[str, str]) -> Iterator[Start]:
    """Starts servers, which are ended with the module."""
    begun: list[Archived] = []

    def started(kind: str = "auto-gptq", fault: str = "", **more: Any) -> Archived:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(files / "site"))
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv(fake_archived.FAULT, fault)
            for name, value in counting.items():
                patch.setenv(name, value)
            place = files / ("gptq" if kind == "auto-gptq" else "awq")
            begun.append(engine.load(subject(place, kind, **more)))
        return begun[-1]

    yield started
    for each in begun:
        each.close()


def subject(place: Path, kind: str = "auto-gptq", **more: Any) -> Subject:
    return Subject(str(BUILTIN_DIR), None, "own", str(place), {}, None, kind=kind, engine=kind, **more)


@pytest.fixture(scope="module")
def own(start: Start) -> Archived:
    return start(engine_options={"torch_dtype": "float32", "use_triton": False})


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same model in this process."""
    from pytest_quantbudget.engine.hf import load as loading
    from pytest_quantbudget.engine.hf.engine import Transformers

    return Transformers(loading.load(Subject(str(BUILTIN_DIR), None, "fp32", None, {}, None), None))


def answers(of: Any, drafts: list[list[int]] | None = None, most: int = 96) -> list[Decoded]:
    heard: dict[int, Decoded] = {}
    prompts = [of.tokenizer(text)["input_ids"] for text in PROMPTS]
    ends = Ends(of.tokenizer, of.describe().end_tokens, (), most)
    of.answer(prompts, ends, heard.update, Batching(), drafts)
    return [heard[i] for i in range(len(prompts))]


def test_what_was_loaded_is_described(own: Archived, files: Path) -> None:
    said = own.describe()
    assert said.weights is not None
    # The dense layer in place of the packed one has no bytes of its own; float32 has 4 a value.
    assert said.weights == 4 * 574_528 - 4 * 128 * 128 + 128 * 128 // 2 + 4 * 128 + 4 * 32
    assert said.receipt.parameters == 574_528
    assert said.receipt.quantized == 128 * 128
    assert said.receipt.main_bits == 4
    assert said.receipt.kernels == "1 QuantLinear (fake_archived_loader, 4 bits)"
    assert {layers.kind for layers in said.receipt.layers} == {"embedding", "lm_head", "linear", "norm"}
    assert said.positions == 512
    assert said.disk == (files / "gptq" / "model.safetensors").stat().st_size
    assert said.made_with == {"bits": 4, "group_size": 128, "act_order": False}
    assert said.packing is not None
    assert said.packing.label == "gptq int4 g128"
    assert not {"weights", "layers", "disk", "load_time", "agreement"} & said.untold.keys()
    assert said.facts is not None
    assert said.facts.version == "9.9"
    assert said.facts.details["library"] == "auto-gptq 9.9"
    wanted = (probe.TOKEN_PROMPTS, probe.RETURNED_IDS, probe.PROMPT_LOGPROBS, probe.FIXED_LENGTHS)
    assert [said.facts.capabilities[name] for name in wanted] == [probe.YES] * 4


def test_what_the_library_writes_beside_the_weights_is_not_written_into_the_checkpoint(
    own: Archived, files: Path
) -> None:
    assert own.describe().weights
    assert not list((files / "gptq").glob("packed_anew*"))


def test_it_answers_and_scores_as_transformers_does(own: Archived, reference: Any) -> None:
    theirs = answers(reference)
    ours = answers(own)
    assert [each.ids for each in ours] == [each.ids for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.cut_off == other.cut_off
    drafts = [each.ids for each in theirs]
    judged = answers(own, drafts)
    assert [each.agreed for each in judged] == list(map(len, drafts))
    wrong = [[each.ids[0] + 1, *each.ids[1:]] for each in theirs]
    assert answers(own, wrong)[0].agreed == answers(reference, wrong)[0].agreed < len(drafts[0])


def test_all_log_probabilities_of_a_position_are_told(own: Archived, reference: Any) -> None:
    (rows,) = own.tops([(LONG, 1)])
    logits = [block for _, block in reference.logits([(LONG, 1)])]
    import torch

    theirs = torch.cat(logits).float().log_softmax(-1)
    assert theirs.shape == (len(LONG) - 1, 640)
    assert all(len(row) == 640 for row in rows)
    for row, values in zip(rows, theirs.tolist(), strict=True):
        assert [row[token] for token in range(640)] == pytest.approx(values, abs=1e-3)
    (scored,) = own.score([(LONG, 1)])
    assert [each.logprob for each in scored] == pytest.approx([row[t] for row, t in zip(rows, LONG[1:], strict=True)])


def test_a_workload_is_timed_as_one_batch(own: Archived) -> None:
    speed = own.time(Workload(12, 120, 3, 2))
    assert len(speed.decode_s) == 2
    assert speed.peak_allocated is None
    # Afterwards one request is one batch again: this one does not wait for two others.
    assert own.slots == 1
    assert answers(own, most=3)[0].cut_off


def test_there_is_no_queue_to_put_under_load(own: Archived) -> None:
    with pytest.raises(NotOffered, match="auto-gptq has no queue of requests"):
        own.load(Load(16, 8, (4,)))


def ask(of: Archived, body: Any, path: str = "/v1/completions") -> tuple[int, Any]:
    """What a request is answered with."""
    url = of.talk.client.url.removesuffix("/v1") + path
    request = urllib.request.Request(url, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": "Once"}, "a prompt is a list of token ids here: there is no tokenizer"),
        ({"prompt": []}, "a prompt is a list of token ids here: there is no tokenizer"),
        ([1, 2], "a prompt is a list of token ids here: there is no tokenizer"),
        ({"prompt": [1, 640]}, "a token id of the prompt is none of the vocabulary of 640"),
        ({"prompt": [1, -1]}, "a token id of the prompt is none of the vocabulary of 640"),
        ({"prompt": [1], "max_tokens": 512}, "a prompt of 1 tokens and 512 more do not fit into 512"),
        ({"prompt": [1], "max_tokens": "many"}, "max_tokens is a whole number from 1"),
        ({"prompt": [1], "temperature": 1}, "answers are greedy here: the temperature is 0"),
        ({"prompt": [1], "prompt_logprobs": -2}, "prompt_logprobs is a whole number from -1"),
    ],
)
def test_what_it_does_not_answer_it_refuses_in_words(own: Archived, body: Any, words: str) -> None:
    assert ask(own, body) == (400, words)


def test_end_tokens_end_an_answer_unless_they_are_to_be_ignored(own: Archived) -> None:
    prompt = own.tokenizer(PROMPTS[0])["input_ids"]
    _, ended = ask(own, {"prompt": prompt, "max_tokens": 200})
    _, fixed = ask(own, {"prompt": prompt, "max_tokens": 200, "ignore_eos": True})
    (one,), (other,) = ended["choices"], fixed["choices"]
    assert (one["finish_reason"], other["finish_reason"]) == ("stop", "length")
    assert one["token_ids"][-1] in own.end_tokens()
    assert other["token_ids"][: len(one["token_ids"])] == one["token_ids"]
    assert len(other["token_ids"]) == 200


def test_an_unreadable_request_and_an_unknown_path_are_told(own: Archived) -> None:
    assert ask(own, {"prompt": [1]}, "/v1/chat/completions") == (404, "there is no /v1/chat/completions")
    assert ask(own, {}, "/together") == (400, "the request cannot be read: KeyError: 'size'")


def test_whoever_goes_leaves_the_server_free(own: Archived) -> None:
    prompt = own.tokenizer(PROMPTS[1])["input_ids"]
    body = {"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "stream": True}
    url = f"{own.talk.client.url}/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as stream:
        assert stream.readline().startswith(b"data: ")
    assert answers(own, most=2)[0].ids


def test_what_fails_while_it_answers_is_told(own: Archived) -> None:
    """Long sequences do; whatever the library raises is the answer, and the next request is answered again."""
    starts = 465
    assert ask(own, {"prompt": LONG[:1] * starts, "max_tokens": 2})[0] == 200
    words = "ArithmeticError: logits became NaN or infinite"
    assert ask(own, {"prompt": LONG[:1] * starts, "max_tokens": 20, "ignore_eos": True}) == (500, words)
    words = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert ask(own, {"prompt": LONG[:1] * 495, "max_tokens": 2}) == (500, words)
    body = {"prompt": LONG[:1] * starts, "max_tokens": 20, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(f"{own.talk.client.url}/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as stream:
        events = stream.read().decode().split("\n\n")
    assert events[-3] == 'data: {"error": {"message": "ArithmeticError: logits became NaN or infinite"}}'
    assert answers(own, most=2)[0].ids


def strike(of: Archived, number: int) -> None:
    """Send the server's process a signal in a moment."""
    assert of.talk.running is not None
    pid = of.talk.running.pid
    assert pid is not None
    threading.Timer(0.3, os.kill, (pid, number)).start()


def answer_for_ever(of: Archived) -> None:
    for _ in range(500):
        answers(of)


def test_autoawq_is_served_alike_and_told_where_it_hangs(
    start: Start, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start("autoawq", engine_options={"fuse_layers": False})
    assert [each.ids for each in answers(served, most=12)] == [each.ids for each in answers(reference, most=12)]
    assert served.describe().made_with == {"bits": 4, "group_size": 128, "zero_point": True}
    monkeypatch.setattr(conversation, "STALL_S", 1.0)
    monkeypatch.setattr(conversation, "HEALTH_S", 1.0)
    strike(served, signal.SIGSTOP)
    words = r"^the server hangs: nothing came for \d+ s, and POST /v1/completions was not answered"
    with pytest.raises(ServerFailed, match=words):
        answer_for_ever(served)


def test_one_that_is_killed_is_told(own: Archived) -> None:
    """The last test that asks this server."""
    strike(own, signal.SIGKILL)
    with pytest.raises(ServerFailed, match=r"^the server was killed by signal 9"):
        answer_for_ever(own)


# What is not loaded


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("import", Lacking, r"^auto-gptq 9.9 does not load it here: Please install intel_extension_for_pytorch$"),
        ("refuse", ValueError, r"^auto-gptq refuses it: TypeError: qwen3 isn't supported yet\.$"),
        ("die", ServerFailed, "^the server ended with exit code 7"),
    ],
)
def test_what_the_library_does_not_load_is_told(start: Start, fault: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        start(fault=fault)


def test_an_option_that_the_release_does_not_have_is_told(start: Start) -> None:
    with pytest.raises(
        ValueError, match=r"^auto-gptq refuses it: the loader of auto-gptq 9.9 has no option use_marlin$"
    ):
        start(engine_options={"use_marlin": True})


def test_a_module_that_is_missing_is_a_skip_in_words(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match="auto-gptq cannot be imported: No module named 'auto_gptq'"
    ) as caught:
        engine.load(subject(files / "gptq"))
    assert caught.value.name == "auto_gptq"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "zero",
            "^all 5,120 logits are 0: the weights do nothing; the output layer is tied to the embeddings, and auto-",
        ),
        (
            "nan",
            "^5,120 of 5,120 logits are NaN or infinite on 8 random tokens; the output layer is tied to the embedd",
        ),
    ],
)
def test_logits_that_are_no_numbers_or_all_alike_are_not_served(
    files: Path, fault: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(files / "site")
    monkeypatch.setenv(fake_archived.FAULT, fault)
    shutil.copytree(files / "gptq", tmp_path / "gptq")
    with pytest.raises(loader.Refused, match=words) as caught:
        # Where pickled files are allowed, those that are safe come first all the same.
        loader.load("auto-gptq", tmp_path / "gptq", {}, "cpu", trust=False, pickles=fault == "zero")
    error = engine.as_error("auto-gptq", {"kind": caught.value.kind, "words": str(caught.value), "module": ""})
    assert isinstance(error, NotFinite)
    assert str(error).startswith("as auto-gptq loads it, ")


# Rotary embeddings


@pytest.mark.parametrize(
    ("told", "read", "words"),
    [
        (
            {"rope_theta": 1e5},
            {"rope_theta": 10000.0},
            r'rope_theta 100000 .*: it takes 10000; add "rope_theta": 100000',
        ),
        (
            {"rope_theta": 1e4, "rope_type": "llama3"},
            {"rope_theta": 1e4},
            r"rope_type llama3 .*; add it to config.json",
        ),
        ({"rope_theta": 1e4, "rope_type": "llama3"}, {"rope_theta": 1e4, "rope_scaling": {"factor": 8}}, ""),
        ({"rope_theta": 1e5}, {}, ""),
        ({"rope_theta": 1e4}, {"rope_theta": 10000}, ""),
        (None, {"rope_theta": 10000}, ""),
    ],
)
def test_rotary_embeddings_that_an_older_transformers_does_not_read_are_refused(
    told: Any, read: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": told} if told else {}))
    model = SimpleNamespace(config=SimpleNamespace(**read))
    if not words:
        loader.check_rotary(tmp_path, model)
        return
    with pytest.raises(loader.Refused, match=words):
        loader.check_rotary(tmp_path, model)


# What a server says


def test_a_line_that_is_no_refusal_is_none() -> None:
    assert engine.refusal("one\ntwo") is None
    assert engine.refusal("REFUSED {}") is None
    assert engine.refusal('REFUSED {"kind": "value", "words": "no", "module": ""}\nmore') == {
        "kind": "value",
        "words": "no",
        "module": "",
    }
