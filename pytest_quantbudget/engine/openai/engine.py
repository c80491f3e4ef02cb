"""The engine `openai`: any OpenAI-compatible server, started by a command or found at a URL, measured over HTTP."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_quantbudget.core import cores
from pytest_quantbudget.core.engines import OPENAI, EngineFacts, Server
from pytest_quantbudget.core.layers import Receipt
from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.core.measurement import Device, Speed
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import (
    Decoded,
    Description,
    Ends,
    Engine,
    Hear,
    NotOffered,
    Scored,
    Sequences,
    Tell,
)
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai import llama_server, probe
from pytest_quantbudget.engine.openai.conversation import Conversation, at_once
from pytest_quantbudget.engine.openai.dialects import Asking
from pytest_quantbudget.engine.openai.http import Client, Late, Refused, ServerError, Unreachable
from pytest_quantbudget.engine.openai.load import ordinary
from pytest_quantbudget.engine.openai.one_run import Bunched, one_run
from pytest_quantbudget.engine.openai.process import LOOPBACK, Running, free_port
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.engine.timing import timed
from pytest_quantbudget.models import checkpoint, hub
from pytest_quantbudget.models.methods import Prepared

AT_ONCE = 32  # requests where the budget says `auto` and the server does not tell how many it takes
POLL_S = 0.2
STARTING = 503  # the status of a server that is not ready yet


def load(
    subject: Subject,
    gpus: Gpus | None = None,
    quantized: str | None = None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    prepared: Prepared | None = None,
) -> OpenAI:
    """Start the subject's server, or find the one that runs, and ask what it can.

    Raises ValueError where it cannot be started, is not what it should be, or serves another model; ServerFailed where
    it dies or hangs.
    """
    assert subject.server is not None
    # A server that runs has its weights; one that is started is not to spend its time to start on a download.
    weights = subject.checkpoint is None and any("{model}" in word for word in subject.server.command)
    pin = pins[0] if pins else subject.revision
    folder, revision = hub.fetched(subject.model, pin, trust, weights=weights)
    return OpenAI(subject, subject.server, folder, revision, gpus or Gpus({}), trust)


class OpenAI(Engine):
    """A server. Prompts are token ids of the tokenizer of the budget's model."""

    name = OPENAI

    def __init__(
        self, subject: Subject, server: Server, folder: Path, revision: str, gpus: Gpus, trust: Trust = NO_TRUST
    ) -> None:
        self.subject, self.server, self.folder, self.gpus = subject, server, folder, gpus
        self.tokenizer = self.read_tokenizer(trust)
        running, url = None, server.url
        if url is None:
            port = free_port(server.port)
            url = f"http://{LOOPBACK}:{port}/v1"
            words = {
                "port": str(port),
                "model": subject.checkpoint or subject.model,
                "python": subject.python or sys.executable,
                "llama_server": llama_server.__file__,
            }
            running = Running([_filled(word, words) for word in server.command], server.folder, self.environ())
        self.talk = Conversation(Client(url, _key(server)), running)
        try:
            self._prepare(revision)
        except BaseException:
            self.close()
            raise

    def read_tokenizer(self, trust: Trust) -> Any:
        """That of the budget's model."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=trust.remote_code)

    def environ(self) -> Mapping[str, str]:
        """The environment of a server that is started: without what would lead another interpreter to packages here."""
        if self.subject.python is None:
            return os.environ
        return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def _prepare(self, revision: str) -> None:
        """Wait until the server answers, and find out what it is and can."""
        began = time.perf_counter()

        def left() -> float:
            return max(POLL_S, began + self.server.start_timeout_s - time.perf_counter())

        listed = self.talk.run(self._ready(began + self.server.start_timeout_s))
        entry = probe.chosen(listed, self.server.model, self.talk.client.url)
        self.model = str(entry["id"])
        self.found = self.talk.run(probe.probe(self.talk.client, self.model, self.tokenizer, left()))
        self.talk.dialect = self.found.dialect
        if self.found.lacks(probe.TOKEN_PROMPTS) is None:
            self.talk.health_prompt = [int(token) for token in self.tokenizer(probe.SAMPLE)["input_ids"]]
        self.talk.run(self.talk.health(left()))
        seconds = time.perf_counter() - began if self.talk.running is not None else None
        self._description = self.described(entry, revision, seconds)

    async def _ready(self, until: float) -> list[dict[str, Any]]:
        """The models that the server lists, once it does."""
        said, starting = "", False
        while True:
            try:
                return await probe.models(self.talk.client, max(POLL_S, until - time.perf_counter()))
            except (Unreachable, Late) as error:
                said = str(error)
            except Refused as error:
                if error.status != STARTING:
                    raise
                said, starting = str(error), True
            if time.perf_counter() > until or (self.talk.running is None and not starting):
                late = f"was not ready within {self.server.start_timeout_s:g} s"
                what = late if starting or self.talk.running is not None else "is not there"
                raise ServerError(f"the server at {self.talk.client.url} {what}: {said}")
            await asyncio.sleep(POLL_S)

    def described(self, entry: Mapping[str, Any], revision: str, seconds: float | None) -> Description:
        """What the server says of itself; of the rest why it is not known."""
        meta = _mapping(entry.get("meta"))
        size, trained = meta.get("size"), entry.get("max_model_len")
        props = self._told("props")
        slot = _mapping(props.get("default_generation_settings")).get("n_ctx")
        self.slots: int | None = props.get("total_slots") if isinstance(props.get("total_slots"), int) else None
        version = self._told("version").get("version") or props.get("build_info")
        does_not_tell = "the server does not tell"
        untold = {
            "layers": f"{does_not_tell} which layers its model has",
            "energy": "counters are read between prefill and decoding, and when a server is there it does not tell",
            "disk": "the files of a served model are not looked at",
            **dict.fromkeys(("vram", "vram_reserved", "vram_process"), "what a server holds of a GPU is not asked for"),
        }
        if not isinstance(size, int) or size < 1:
            untold["weights"], size = f"{does_not_tell} the size of its weights", None
        if seconds is None:
            untold["load_time"] = "the server had been started before"
        lacks = self.found.lacks(probe.PROMPT_LOGPROBS)
        if lacks is not None:
            untold["agreement"] = f"the server does not give the log-probabilities of a prompt's tokens: {lacks}"
        facts = EngineFacts(
            self.name,
            str(version) if version else None,
            kv_tokens=slot * self.slots if isinstance(slot, int) and self.slots is not None else None,
            capabilities=self.found.capabilities,
            details={
                "model": self.model,
                "asked by": self.found.dialect.name,
                **{key: value for key, value in meta.items() if isinstance(value, int | float | str)},
            },
        )
        return Description(
            revision,
            self.device(),
            seconds,
            size,
            Receipt(()),
            {},
            notes=tuple(self.notes()),
            positions=next((each for each in (slot, trained) if isinstance(each, int)), None),
            end_tokens=self.end_tokens(),
            facts=facts,
            untold=untold,
        )

    def notes(self) -> Iterator[str]:
        """What is odd."""
        capabilities = self.found.capabilities
        if self.found.lacks(probe.RETURNED_IDS):
            yield f"{capabilities[probe.RETURNED_IDS]}: token ids are those that the model's tokenizer makes of it"
        if capabilities[probe.SAME_TOKENIZER].startswith("it makes"):
            yield f"the server has another tokenizer than the budget's model: {capabilities[probe.SAME_TOKENIZER]}"
        if capabilities[probe.SAME_TEMPLATE].startswith("it makes"):
            words = capabilities[probe.SAME_TEMPLATE]
            yield f"the server's chat template is not the model's, through which tasks are asked: {words}"

    def device(self) -> Device:
        """This machine's, unless the server is on another."""
        host = urlsplit(self.server.url or "").hostname
        if host is not None and host not in ("localhost", "::1") and not host.startswith("127."):
            return Device(host, None, None, None, None, 0)
        return self.gpus.device(cores.usable())

    def end_tokens(self) -> tuple[int, ...]:
        """Those of the model's generation config, and the tokenizer's own; the server may know others."""
        told = checkpoint.generation(self.folder).get("eos_token_id")
        several = told if isinstance(told, list) else [told]
        return tuple({end for end in (*several, self.tokenizer.eos_token_id) if isinstance(end, int)})

    def _told(self, name: str) -> dict[str, Any]:
        """What an endpoint beside the API says, where there is one."""

        async def ask() -> Any:
            try:
                return await self.talk.client.json(self.talk.client.root(name))
            except ServerError:
                return {}

        answer = self.talk.run(ask())
        return _mapping(answer)

    def describe(self) -> Description:
        """As it was when the server had become ready."""
        return self._description

    def time(self, workload: Workload) -> Speed:
        """Streams of unique random prompts, `batch_size` at once; end tokens are ignored.

        Time to first token runs from the first request to the moment when the first token of every sequence is there.
        What is decoded before that does not count: the decode time is that of the tokens after it, scaled to all. Where
        the server tells a longer one by its own clock, that counts: on a busy machine tokens are read late, together.
        Raises NotOffered where the server does not give just as many tokens as it is asked for, or does not decode all
        sequences at once.
        """
        self.check_positions(workload.prompt_tokens + workload.new_tokens, "the workload")
        for needed in (probe.TOKEN_PROMPTS, probe.RETURNED_IDS, probe.FIXED_LENGTHS):
            self._need(needed)
        if self.slots is not None and workload.batch_size > self.slots:
            many = f"{self.slots} sequence{'s' if self.slots > 1 else ''} at once"
            raise NotOffered(f"the workload's batch_size is {workload.batch_size}, and the server takes {many}")
        known, drawn = ordinary(self.tokenizer), random.Random(f"0{self.talk.salt}")
        void: list[Bunched] = []

        def run() -> tuple[float, float]:
            return one_run(self.talk, workload, lambda: drawn.choices(known, k=workload.prompt_tokens), void)

        speed = timed(workload, run, self.gpus)
        if void:
            words = f"{len(void)} run{'s were' if len(void) > 1 else ' was'} left out: {void[-1]}"
            speed = replace(speed, throttled=(*speed.throttled, words))
        return speed

    def load(self, load: Load, tell: Tell = lambda done, total: None) -> LoadResult:
        """Streams of prompts of fixed lengths, no two alike; end tokens are ignored.

        Raises NotOffered where the server does not give just as many tokens as it is asked for.
        """
        from pytest_quantbudget.engine.openai import load as sending

        self.check_positions(load.prompt_tokens + load.new_tokens, "the load")
        for needed in (probe.TOKEN_PROMPTS, probe.FIXED_LENGTHS):
            self._need(needed)
        if load.tool is not None and self.talk.client.key is not None:
            raise NotOffered(f"{load.tool} would show the server's key on its command line")
        return sending.run(self.talk, load, self.tokenizer, self.folder, tell)

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        """At the server's own concurrency. Drafts are scored, where the server gives log-probabilities of a prompt."""
        self._need(probe.TOKEN_PROMPTS)
        batching.size = batching.size or self.slots or AT_ONCE
        scores = self.found.lacks(probe.PROMPT_LOGPROBS) is None

        async def one(i: int) -> None:
            decoded = await self._answer(prompts[i], ends)
            if scores and drafts is not None:
                told = await self._score([*prompts[i], *drafts[i]], len(prompts[i]))
                decoded.agreed = sum(token.greedy for token in told)
                decoded.draft_logprob = sum(token.logprob for token in told)
            elif scores and decoded.ids:
                decoded.logprob = sum(v for v, _ in await self._score([*prompts[i], *decoded.ids], len(prompts[i])))
            hear({i: decoded})

        self.talk.run(at_once(batching.size, [functools.partial(one, i) for i in range(len(prompts))]))

    async def _answer(self, prompt: Sequence[int], ends: Ends) -> Decoded:
        began, decoded, text, finish, told, made = time.perf_counter(), Decoded(), "", "", 0, 0
        asking = Asking(prompt, ends.most)
        pieces = self.talk.pieces(asking)
        try:
            async for _, piece in pieces:
                text, finish = text + piece.text, piece.finish or finish
                told, made = told + len(piece.ids or ()), piece.tokens or made
                for token in piece.ids or ():
                    if not decoded.done:
                        ends.add(decoded, token)
                if decoded.done or any(stop in text for stop in ends.texts):
                    break
        finally:
            # An answer that is complete is not worth the server's time any more.
            await pieces.aclose()
        dialect = self.found.dialect
        if dialect.gives_ids and told < made:
            # llama-server's stream leaves out tokens that end within a character.
            whole = dialect.read(await self.talk.json(dialect.path(), dialect.body(asking, stream=False)))
            decoded, finish = Decoded(), whole.finish
            for token in whole.ids or ():
                if not decoded.done:
                    ends.add(decoded, token)
        if not dialect.gives_ids:
            decoded.ids = [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        if not decoded.done and not finish and not any(stop in text for stop in ends.texts):
            raise ServerError("the stream of an answer ended before the answer did")
        if not decoded.done:
            decoded.done, decoded.cut_off = True, finish == "length"
        decoded.seconds = time.perf_counter() - began
        return decoded

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """As many at once as the server takes."""
        self._need(probe.PROMPT_LOGPROBS)
        longest = max((len(ids) for ids, _ in sequences), default=0)
        self.check_positions(longest + 1, "scoring by a server, which makes one token besides,")
        count = self.slots or AT_ONCE
        for start in range(0, len(sequences), count):
            part = sequences[start : start + count]
            yield from self.talk.run(self._scores(part))

    async def _scores(self, sequences: Sequences) -> list[list[Scored]]:
        return list(await asyncio.gather(*(self._score(ids, first) for ids, first in sequences)))

    async def _score(self, ids: Sequence[int], first: int) -> list[Scored]:
        """Of each token from `first` on its log-probability given those before it, and whether it is the likeliest."""
        path = self.talk.client.api("completions")
        body: dict[str, Any] = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
        body |= {"echo": True, "logprobs": 1} if self.found.echo else {"prompt_logprobs": 0}
        answer = await self.talk.json(path, body)
        told = (probe.of_echo if self.found.echo else probe.of_prompt)(answer, ids, first)
        if told is None:
            raise ServerError("the log-probabilities of a prompt have another form than when the server was probed")
        return told

    def _need(self, capability: str) -> None:
        """Raise NotOffered where the server lacks a capability."""
        lacks = self.found.lacks(capability)
        if lacks is not None:
            raise NotOffered(f"the server has no {capability}: {lacks}")

    def close(self) -> None:
        """End a server that was started here."""
        self.talk.close()


def _mapping(value: Any) -> dict[str, Any]:
    """What a server says, where it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}


def _filled(word: str, values: Mapping[str, str]) -> str:
    """A word of a command, with what is in braces filled in; other braces stay."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _key(server: Server) -> str | None:
    """The server's key. Raises ValueError where its variable is not set."""
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env)
    if not key:
        raise ValueError(f"the environment variable {server.api_key_env}, which holds the server's key, is not set")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"the key in {server.api_key_env} holds a line break or another character that no key has")
    return key
