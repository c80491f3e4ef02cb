"""Serves a checkpoint that auto-gptq or autoawq loads by its own loader, as far as measuring asks of a server.

    python server.py LIBRARY --model DIR --port N [--name NAME] [--options JSON] [--ends 0,1] [--device cuda:0]

`LIBRARY` is `auto-gptq` or `autoawq`. The script needs that library, with its torch and transformers, and nothing of
this project: it is run by its path, by any Python from 3.8 on. Prompts are token ids, and answers greedy:

- `POST /v1/completions` takes `prompt`, `max_tokens`, `ignore_eos`, `stream` and `prompt_logprobs` (0: of the prompt's
  own tokens; k: of the k likeliest besides; -1: of all), and gives `token_ids`; all as vLLM has it.
- `GET /v1/models` tells the size of the weights and the layers besides; `/version`, `/props` and `/health` are usual.
- `POST /together` with `{"size": n}`: prompts that come, n of one length at a time, are decoded as one batch.
- `GET /memory` tells what torch took of the GPUs at most since `POST /memory`.

Requests are answered one after the other. Why a model is not served stands in a line of JSON behind `REFUSED`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Beside this script, whatever the interpreter puts on its path.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
import loader  # type: ignore[import-not-found]

del sys.path[0]

REFUSED = "REFUSED "
FAILED = 3  # the exit code
BLOCK = 64  # positions whose log-probabilities are made at once
GATHER_S = 10.0  # until all prompts of a batch are there
WRITE_S = 60.0  # for a client to take a token
MOST_BODY = 64_000_000
SAID = 500  # characters of an error


class Asked(Exception):
    """A request that is not answered as it is."""


class Job:
    """A request: its prompt, how many tokens at most, and how many log-probabilities of the prompt (None: none)."""

    def __init__(self, body: Any, vocabulary: int, positions: int | None) -> None:
        prompt = body.get("prompt") if isinstance(body, dict) else None
        if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
            raise Asked("a prompt is a list of token ids here: there is no tokenizer")
        if not all(0 <= token < vocabulary for token in prompt):
            raise Asked(f"a token id of the prompt is none of the vocabulary of {vocabulary:,}")
        if body.get("temperature", 0):
            raise Asked("answers are greedy here: the temperature is 0")
        self.prompt: list[int] = prompt
        self.most, self.top = body.get("max_tokens", 16), body.get("prompt_logprobs")
        if type(self.most) is not int or self.most < 1:
            raise Asked("max_tokens is a whole number from 1")
        if self.top is not None and (type(self.top) is not int or self.top < -1):
            raise Asked("prompt_logprobs is a whole number from -1")
        if positions is not None and len(prompt) + self.most > positions:
            raise Asked(f"a prompt of {len(prompt):,} tokens and {self.most:,} more do not fit into {positions:,}")
        self.fixed, self.streams = bool(body.get("ignore_eos")), bool(body.get("stream"))
        self.tokens: list[int] = []
        self.finish = self.error = ""
        self.told: list[Any] | None = None
        # Takes tokens as they come; None for one who wants them together.
        self.send: Callable[[Job, int], None] | None = None
        self.done, self.gone = threading.Event(), False

    def add(self, token: int, ends: frozenset[int]) -> None:
        """Append a token, and send it: by the thread that made it, because another one would get its turn later."""
        self.tokens.append(token)
        if token in ends and not self.fixed:
            self.finish = "stop"
        elif len(self.tokens) >= self.most:
            self.finish = "length"
        if self.send is not None and not self.gone:
            try:
                self.send(self, token)
            except OSError:
                # Whoever has gone is not answered any further.
                self.gone = True


class Worker:
    """Runs the model on one request after the other; on `together` of them at once, where they are of one length."""

    def __init__(self, model: Any, ends: frozenset[int]) -> None:
        self.model, self.ends = model, ends
        self.waiting: queue.Queue[Job] = queue.Queue()
        self.together = 1

    def run(self) -> None:
        """Answer for ever."""
        import torch

        while True:
            batch = [self.waiting.get()]
            try:
                while len(batch) < self.together:
                    batch.append(self.waiting.get(timeout=GATHER_S))
            except queue.Empty:
                pass
            alike = len({len(job.prompt) for job in batch}) == 1
            for part in [batch] if alike else [[job] for job in batch]:
                try:
                    with torch.inference_mode():
                        self.answer(part)
                except Exception as error:  # noqa: BLE001  # whatever a library raises is the answer
                    traceback.print_exc()
                    for job in part:
                        job.error = " ".join(f"{type(error).__name__}: {error}".split())[:SAID]
                for job in part:
                    job.done.set()

    def answer(self, batch: list[Job]) -> None:
        """The prompts' tokens at once, and then one by one what follows."""
        import torch

        loader.forget(self.model)
        step = torch.tensor([job.prompt for job in batch], device=loader.place(self.model))
        past = None
        while True:
            given = self.model(input_ids=step, past_key_values=past, use_cache=True)
            last = given.logits[:, -1]
            if not bool(torch.isfinite(last).all()):
                raise ArithmeticError("logits became NaN or infinite")
            if past is None:
                for job, logits in zip(batch, given.logits):
                    job.told = None if job.top is None else list(told(logits, job.prompt, job.top))
            past = given.past_key_values
            chosen = last.argmax(-1)
            for job, token in zip(batch, chosen.tolist()):
                if not job.finish:
                    job.add(token, self.ends)
            if all(job.finish or job.gone for job in batch):
                return
            step = chosen[:, None]


def told(logits: Any, prompt: list[int], top: int) -> Iterator[dict[str, Any] | None]:
    """Of each token of a prompt but the first its log-probability (nats) and rank, and those of the likeliest.

    `logits` have the shape (tokens, vocabulary).
    """
    import torch

    yield None
    for start in range(0, len(prompt) - 1, BLOCK):
        own = torch.tensor(prompt[start + 1 : start + 1 + BLOCK], device=logits.device)[:, None]
        rows = logits[start : start + len(own)].float()
        if not bool(torch.isfinite(rows).all()):
            raise ArithmeticError("logits of the prompt are NaN or infinite")
        rows = rows.log_softmax(-1)
        mine = rows.gather(1, own)
        ranks = (rows > mine).sum(1) + 1
        values, names = rows.topk(rows.shape[1] if top < 0 else min(top, rows.shape[1]))
        of_top = zip(names.tolist(), values.tolist())
        of_own = zip(own[:, 0].tolist(), mine[:, 0].tolist(), ranks.tolist())
        for (tokens, logprobs), (token, logprob, rank) in zip(of_top, of_own):
            row = {str(each): {"logprob": v, "rank": i} for i, (each, v) in enumerate(zip(tokens, logprobs), 1)}
            yield {**row, str(token): {"logprob": logprob, "rank": rank}}


class Handler(BaseHTTPRequestHandler):
    """One connection. `worker`, and the `facts` by path, are the server's."""

    protocol_version = "HTTP/1.1"
    # Else small events wait for each other.
    disable_nagle_algorithm = True
    worker: Worker
    facts: dict[str, Any]

    def do_GET(self) -> None:
        """What the server tells."""
        if self.path == "/memory":
            self.say(loader.memory())
        elif self.path in self.facts:
            self.say(self.facts[self.path])
        else:
            self.fail(f"there is no {self.path[:60]}", 404)

    def do_POST(self) -> None:
        """What it does."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= MOST_BODY:
                raise Asked(f"a request has at most {MOST_BODY:,} bytes")
            body = json.loads(self.rfile.read(length) or b"{}")
            if self.path == "/memory":
                self.say(loader.memory(anew=True))
            elif self.path == "/together":
                self.worker.together = max(1, int(body["size"]))
                self.say({"size": self.worker.together})
            elif self.path == "/v1/completions":
                of_model = self.facts["/v1/models"]["data"][0]
                self.complete(Job(body, of_model["vocabulary"], of_model["max_model_len"]))
            else:
                self.fail(f"there is no {self.path[:60]}", 404)
        except Asked as error:
            self.fail(str(error), 400)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.fail(f"the request cannot be read: {type(error).__name__}: {error}"[:SAID], 400)

    def complete(self, job: Job) -> None:
        """Answer a request, token by token where a stream is asked for."""
        if job.streams:
            self.stream(job)
            return
        self.worker.waiting.put(job)
        job.done.wait()
        if job.error:
            self.fail(job.error, 500)
        else:
            self.say({**answer(job, job.tokens, job.finish), **usage(job)})

    def stream(self, job: Job) -> None:
        """Events of one token each, and of the usage."""
        self.connection.settimeout(WRITE_S)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            job.send = self.token
            self.worker.waiting.put(job)
            job.done.wait()
            if job.gone:
                raise OSError
            if job.error:
                self.event(json.dumps({"error": {"message": job.error}}))
            else:
                self.event(json.dumps({"object": "text_completion", "choices": [], **usage(job)}))
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            self.connection.settimeout(None)

    def token(self, job: Job, token: int) -> None:
        """The event of one token."""
        self.event(json.dumps(answer(job, [token], job.finish)))

    def event(self, text: str) -> None:
        """One event, as one chunk."""
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def fail(self, words: str, status: int) -> None:
        """An answer that says why there is none."""
        self.say({"error": {"message": words}}, status)

    def say(self, value: Any, status: int = 200) -> None:
        """A whole answer."""
        data = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what goes wrong is worth the log alone."""


def answer(job: Job, tokens: list[int], finish: str) -> dict[str, Any]:
    """An answer, or a part of one."""
    choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": tokens, "finish_reason": finish or None}
    if job.told is not None:
        choice["prompt_logprobs"] = job.told
    return {"object": "text_completion", "choices": [choice]}


def usage(job: Job) -> dict[str, Any]:
    """How many tokens there were in all."""
    return {"usage": {"prompt_tokens": len(job.prompt), "completion_tokens": len(job.tokens)}}


def told_of(model: Any, library: str, name: str) -> dict[str, Any]:
    """What is told of the model, by path."""
    facts, config = loader.facts(library, model), model.config
    entry = {
        "id": name,
        "object": "model",
        "max_model_len": getattr(config, "max_position_embeddings", None),
        "vocabulary": config.vocab_size,
        "layers": loader.layers(model),
        "meta": facts,
    }
    return {
        "/v1/models": {"object": "list", "data": [entry]},
        "/version": {"version": loader.version(library) or "of an unknown release"},
        "/props": {"total_slots": 1},
        "/health": {"status": "ok"},
    }


def main(words: list[str]) -> None:
    """Load the model, and serve it until a signal ends that. Raises Refused."""
    parser = argparse.ArgumentParser(description="Serve what auto-gptq or autoawq loads.")
    parser.add_argument("library", choices=sorted(loader.LIBRARIES))
    parser.add_argument("--model", type=Path, required=True, help="the directory of the checkpoint")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", help="what the model is called")
    parser.add_argument("--options", type=json.loads, default={}, help="of the library's loader, as JSON")
    parser.add_argument("--ends", default="", help="ids of the tokens that end an answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--pickles", action="store_true", help="read other files than safetensors")
    asked = parser.parse_args(words)
    trust, pickles = asked.trust_remote_code, asked.pickles
    model = loader.load(asked.library, asked.model, asked.options, asked.device, trust=trust, pickles=pickles)
    ends = frozenset(int(token) for token in asked.ends.split(",") if token)
    Handler.worker = Worker(model, ends)
    Handler.facts = told_of(model, asked.library, asked.name or asked.model.name)
    threading.Thread(target=Handler.worker.run, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", asked.port), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except loader.Refused as error:
        traceback.print_exc()
        sys.exit(f"{REFUSED}{json.dumps({'kind': error.kind, 'words': str(error), 'module': error.module})}")
    except Exception as error:  # noqa: BLE001  # whatever the library raises is why
        traceback.print_exc()
        said = " ".join(str(error).split())[:SAID]
        sys.exit(f"{REFUSED}{json.dumps({'kind': 'value', 'words': f'{type(error).__name__}: {said}', 'module': ''})}")
