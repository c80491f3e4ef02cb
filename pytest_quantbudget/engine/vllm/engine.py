"""The engine `vllm`: vLLM's own server on a method's checkpoint, started here, and measured over HTTP.

What ships is the server, so that is what is measured. It runs in the interpreter of the method, which needs nothing of
this package.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import VLLM, Server
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import DUMMY, NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import Description, Ends, Hear, Lacking, Scored, Sequences
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai.conversation import ServerFailed
from pytest_quantbudget.engine.openai.http import ServerError
from pytest_quantbudget.engine.openai.own_server import OwnServer
from pytest_quantbudget.engine.openai.source import Ids, Source, check_adapters, find
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.engine.vllm import memory, operators, says
from pytest_quantbudget.engine.vllm.flags import flags
from pytest_quantbudget.models import hub, methods, quantization
from pytest_quantbudget.models.methods import Prepared

MODULE = "vllm.entrypoints.openai.api_server"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the largest ranks that vLLM can be told of
TOP = 128  # likeliest tokens of each position, where `max_logprobs` does not say how many
AT_ONCE = 256  # vLLM's own `max_num_seqs` on most GPUs
START_S = 3600.0  # weights of hundreds of GB, and graphs to capture; a method's `timeout` ends it sooner


def load(
    subject: Subject,
    gpus: Gpus | None = None,
    quantized: str | None = None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    prepared: Prepared | None = None,
) -> VLLMServer:
    """Start vLLM on the subject.

    Raises ValueError, in vLLM's own words, where it refuses the model or an option; Lacking where this CPU has not the
    operator that the checkpoint needs; ModuleNotFoundError where the interpreter has no vLLM; ServerFailed where it
    dies otherwise.
    """
    check_adapters(subject.engine_options.get("lora_modules"), trust)
    return VLLMServer(subject, find(subject, trust, pins, quantized), gpus or Gpus({}), trust)


def quantize(subject: Subject, trust: Trust, pin: str | None, cache: Path, temporary: Path) -> Path:
    """The directory of the subject's model with its adapter merged into it, made unless the `cache` has it."""
    from pytest_quantbudget.engine import merge

    source, revision = hub.fetch(subject.model, pin or subject.revision, trust)
    loading.check_format(methods.spec(subject.kind), source, ready=False, trust=trust)
    return merge.merged(subject, source, revision, cache, trust)[0]


def command(subject: Subject, source: Source, trust: Trust = NO_TRUST) -> list[str]:
    """What starts the server, but for its address. Raises ValueError where an option contradicts the method's kind."""
    given = dict(subject.engine_options)
    wanted: dict[str, Any] = {
        "model": str(source.folder),
        "served_model_name": name_of(subject),
        # What a model's own defaults for sampling change would not be the model's likeliest answer.
        "generation_config": "vllm",
        "max_logprobs": given.pop("max_logprobs", TOP),
        "uvicorn_log_level": "warning",
    }
    if subject.kind in DTYPES:
        for name in ("dtype", "quantization"):
            if name in given:
                raise ValueError(
                    f"engine_options: {name} does not go with {subject.kind}; `kind: checkpoint` takes it, with the "
                    f"model as its `checkpoint`"
                )
        wanted["dtype"] = DTYPES[subject.kind]
    if source.own is None:
        wanted |= {"load_format": DUMMY, "skip_tokenizer_init": True}
    elif not source.has_tokenizer:
        wanted["tokenizer"] = str(source.own)
    if trust.remote_code:
        wanted["trust_remote_code"] = True
    if source.own is not None and not trust.pickles:
        wanted["load_format"] = "safetensors"
    if source.adapter is not None:
        wanted |= {
            "enable_lora": True,
            "lora_modules": [{"name": source.adapter.name, "path": str(source.adapter.folder)}],
            "max_lora_rank": next((rank for rank in LORA_RANKS if rank >= source.adapter.rank), source.adapter.rank),
        }
    return [subject.python or sys.executable, "-m", MODULE, *flags({**wanted, **given})]


def name_of(subject: Subject) -> str:
    """The name that the model is served under."""
    return subject.checkpoint or subject.model


def asked(subject: Subject) -> str:
    """The name of what is measured: the subject's adapter, else the first of its options', else the model."""
    if subject.adapter is not None and not subject.adapter.merge:
        return subject.adapter.name
    adapters = subject.engine_options.get("lora_modules")
    first = adapters[0] if isinstance(adapters, list) and adapters else None
    if isinstance(first, str):
        return first.partition("=")[0]
    return str(first["name"]) if isinstance(first, dict) and "name" in first else name_of(subject)


class VLLMServer(OwnServer):
    """vLLM's server. Prompts are token ids of the tokenizer of the budget's model."""

    name = VLLM

    def __init__(self, subject: Subject, source: Source, gpus: Gpus, trust: Trust = NO_TRUST) -> None:
        self.subject, self.source = subject, source
        self.most_told = subject.engine_options.get("max_logprobs", TOP)
        words = [*command(subject, source, trust), "--host=127.0.0.1", "--port={port}"]
        lacks = operators.needed(source.packed) if not gpus.cards else None
        if lacks is not None and operators.missing(words[0], lacks, self.environ()):
            raise Lacking(
                f"vLLM's build for this CPU lacks the operator {lacks}, which this checkpoint needs "
                f"({quantization.read(source.packed).label}); with AVX-512 it has it"
            )
        server = Server(command=tuple(words), model=asked(subject), start_timeout_s=START_S)
        super().__init__(subject, server, source.own or source.folder, source.revision, gpus, trust)
        if self._scores_alone:
            self.scored_at_once = 1

    def read_tokenizer(self, trust: Trust) -> Any:
        """That of the budget's model; of dummy weights ids alone."""
        return super().read_tokenizer(trust) if self.source.own is not None else Ids(self.folder)

    def environ(self) -> Mapping[str, str]:
        """This process's, without what would lead to other packages or ask for a key; nothing is reported to anyone."""
        left_out = {"VLLM_API_KEY"} | ({"PYTHONPATH", "PYTHONHOME"} if self.subject.python else set())
        own = {name: value for name, value in os.environ.items() if name not in left_out}
        return {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **own, "PYTHONSAFEPATH": "1"}

    def _prepare(self, revision: str) -> None:
        try:
            super()._prepare(revision)
        except ServerFailed as error:
            running = self.talk.running
            refused = says.refusal(running.output()) if running is not None and running.ended else None
            if refused is None:
                raise
            if refused.module is not None:
                lacks = f"{self.subject.python or sys.executable} has no module {refused.module}"
                raise ModuleNotFoundError(lacks, name=refused.module) from error
            raise ValueError(f"vLLM refuses it: {refused.words}") from error

    def described(self, entry: Mapping[str, Any], revision: str, seconds: float | None) -> Description:
        """What the log, the metrics and the checkpoint's files tell."""
        found = super().described(entry, revision, seconds)
        assert found.facts is not None
        assert self.talk.running is not None
        log = self.talk.running.output()
        told = says.cache(self.talk.run(self._metrics()))
        settings = says.settings(log)
        ranks = math.prod(int(settings.get(f"{kind}_parallel_size", 1)) for kind in ("tensor", "pipeline"))
        weights = says.loaded_bytes(log, ranks)
        notes = [*found.notes, *self.source.notes]
        if weights is None and self.source.weights is not None and not self.gpus.cards:
            weights = self.source.weights
            notes.append(f"on a CPU vLLM does not tell the size of its weights: it is that of {self.source.counted}")
        kv = told.get("kv_cache_memory_bytes")
        buffers = {"model": weights, "kv": kv if isinstance(kv, int) else None}
        untold = {name: why for name, why in found.untold.items() if name not in ("disk", "vram", "weights")}
        if weights is None:
            untold["weights"] = "vLLM's log does not tell the size of its weights"
        untold |= {
            "vram_reserved": "what torch's allocator reserves within vLLM's processes, these do not tell",
            "vram_process": "max_vram counts vLLM's whole processes",
        }
        if self.gpus.cards and self._held()[0] is None:
            untold["vram"] = self._held()[1]
        self.slots = self._slots(told)
        facts = replace(
            found.facts,
            buffers={name: size for name, size in buffers.items() if size is not None},
            kv_tokens=says.kv_tokens(told),
            details={
                **found.facts.details,
                **settings,
                **({"checkpoint": quantization.read(self.source.packed).label} if self.source.packed else {}),
                "command": " ".join(self.server.command[1:]),
            },
        )
        return replace(
            found,
            positions=found.positions or _whole(settings.get("max_seq_len")),
            weights=weights,
            disk=self.source.disk,
            notes=tuple(notes),
            made_with=self.source.made_with,
            packing=self.source.packing,
            facts=facts,
            untold=untold,
        )

    def _slots(self, told: Mapping[str, Any]) -> int:
        """How many sequences it takes at once: as many as it is told to, and as its cache holds of the longest."""
        most, room = self.subject.engine_options.get("max_num_seqs", AT_ONCE), told.get("kv_cache_max_concurrency")
        limits = [each for each in (most, room) if isinstance(each, int | float) and math.isfinite(each)]
        return max(1, int(min(limits, default=AT_ONCE)))

    async def _metrics(self) -> str:
        try:
            return await self.talk.client.text(self.talk.client.root("metrics"))
        except ServerError:
            return ""

    def time(self, workload: Workload) -> Speed:
        """As any server, and what its processes hold of the GPUs afterwards: vLLM takes all of it when it starts."""
        speed = super().time(workload)
        held = self._held()[0] if self.gpus.cards else None
        return replace(speed, peak_allocated=held, peaks=(held,) if held else ())

    def _held(self) -> tuple[int | None, str]:
        """As `memory.of_server`."""
        assert self.talk.running is not None
        return memory.of_server(self.gpus, memory.family(self.talk.running.pid or 0))

    @property
    def _scores_alone(self) -> bool:
        """Whether the server dies of a prompt that it scores beside anything else: on a CPU with LoRA (vLLM 0.32)."""
        lora = self.source.adapter is not None or bool(self.subject.engine_options.get("enable_lora"))
        return lora and not self.gpus.cards

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        """As any server; one at a time where it scores alone, because answers and drafts are scored in between."""
        if self._scores_alone:
            batching.size = 1
        super().answer(prompts, ends, hear, batching, drafts, what)

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """As of any server; one at a time where the server takes no more."""
        for part in [[each] for each in sequences] if self._scores_alone else [sequences]:
            yield from super().score(part)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
