"""What runs a model, and with which adapter; what an engine tells of itself; what a budget may start or reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRANSFORMERS, LLAMA_CPP, VLLM, OPENAI = "transformers", "llama.cpp", "vllm", "openai"
AUTO_GPTQ, AUTOAWQ = "auto-gptq", "autoawq"


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server: one that runs at `url`, or one that `command` starts in the directory `folder`.

    It is told to listen on `port`; any free one where that is None.

    `model` is the name that it serves the model under, None for its only one. `api_key_env` names the environment
    variable that holds the key. `start_timeout_s`, in seconds, is how long it may take until it answers.
    """

    url: str | None = None
    command: tuple[str, ...] = ()
    folder: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    start_timeout_s: float = 600.0
    port: int | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: the hub id or the absolute directory `name`, and its `revision` once that is known.

    It runs beside the weights, or is merged into them.
    """

    name: str
    merge: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself; sizes in bytes.

    `buffers` are named `model`, `kv` and `compute`. `kv_tokens` is how many tokens the key-value cache holds.
    `capabilities` of a server: `yes`, or why not, by name. `details` are other facts for the report.
    """

    name: str
    version: str | None = None
    buffers: dict[str, int] = field(default_factory=dict)
    kv_tokens: int | None = None
    capabilities: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Permissions:
    """What only the command line and the ini file may allow: a budget by itself runs no program and reaches no host.

    `interpreters` are those that may run a measuring process, by name. With `commands`, a budget's server may be
    started. `hosts` are those besides this machine that a server may be on. With `everything`, nothing is refused,
    because nothing is started: a budget is only looked at, or was measured elsewhere.
    """

    interpreters: Mapping[str, Path] = field(default_factory=dict)
    commands: bool = False
    hosts: frozenset[str] = frozenset()
    everything: bool = False


NO_PERMISSIONS = Permissions()
