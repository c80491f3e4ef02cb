"""What vLLM says in its log and its metrics.

The lines are those of vLLM 0.32 (`v1/worker/gpu_model_runner.py`, `platforms/cuda.py`, `v1/engine/core.py`, and its
parser of flags); what another version says otherwise is not known, and nothing is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core import problems

PREFIX = re.compile(r"^\([^()]*pid=\d+\) (?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?", re.MULTILINE)
PARSER = re.compile(r"^\S+: error: (?P<words>.+)$", re.MULTILINE)
UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.+)")
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
INVALID = re.compile(r"ValidationError: \d+ validation errors? for (?P<what>\w+)\n(?P<body>(?:.+\n?)*)")
RAISED = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception)): (?P<words>.+)$", re.MULTILINE)
NO_MODULE = re.compile(r"No module named '?(?P<name>vllm)(?:'|$)", re.MULTILINE)
LOADED = re.compile(r"Model loading took (?P<gib>[\d.]+) GiB")
BACKEND = re.compile(r"Using (?:AttentionBackendEnum\.)?(?P<name>[A-Z][A-Z0-9_]+) (?:attention )?backend\b")
ENGINE = re.compile(r"Initializing a V1 LLM engine .*", re.MULTILINE)
CACHE = re.compile(r"^vllm:cache_config_info\{(?P<labels>.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# Of vLLM's own configuration, what changes figures.
SETTINGS = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_seq_len",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "enforce_eager",
    "enable_prefix_caching",
    "load_format",
)


@dataclass(frozen=True)
class Refusal:
    """Why vLLM did not start, in its own words; `module` is what its interpreter lacks."""

    words: str
    module: str | None = None


def refusal(log: str) -> Refusal | None:
    """Why vLLM did not start: what its parser of flags, its configuration, or its first error says; None for none.

    A flag that it does not know gets the nearest one of those that it lists with the refusal.
    """
    text = PREFIX.sub("", log)
    if found := NO_MODULE.search(text):
        return Refusal(found[0], found["name"])
    if found := PARSER.search(text):
        return Refusal(_of_parser(found["words"], text))
    if found := INVALID.search(text):
        return Refusal(_of_configuration(found["what"], found["body"]))
    if found := RAISED.search(text):
        return Refusal(f"{found['kind'].rpartition('.')[2]}: {found['words']}")
    return None


def _of_parser(words: str, text: str) -> str:
    unknown = UNKNOWN.fullmatch(words)
    if unknown is None:
        return words
    known = [flag.removeprefix("--").replace("-", "_") for flag in dict.fromkeys(FLAG.findall(_usage(text)))]
    names = [flag.removeprefix("--").replace("-", "_") for flag in FLAG.findall(unknown["words"])]
    return "; ".join(f"it knows no option {name}{_nearest(name, known)}" for name in names) if names else words


def _nearest(name: str, known: Sequence[str]) -> str:
    near = problems.nearest(name, known)
    # Not all of some hundred names.
    return near if "did you mean" in near else ""


def _usage(text: str) -> str:
    return text.partition("usage:")[2].partition(": error:")[0]


def _of_configuration(what: str, body: str) -> str:
    """Pydantic's report: a field's name alone in a line, then, indented, what is wrong with it."""
    said, field = [], ""
    for line in body.splitlines():
        if not line.startswith(" "):
            field = f"{line.strip()}: "
        elif "errors.pydantic.dev" not in line:
            said.append(f"{field}{line.partition(' [type=')[0].strip().removeprefix('Value error, ')}")
    return f"{what}: {'; '.join(said)}"


def loaded_bytes(log: str, ranks: int) -> int | None:
    """Bytes of GPU memory that loading the model took, on all ranks together; None where the log does not tell.

    vLLM rounds to 0.01 GiB. Of several ranks that are alike it may name the first one alone.
    """
    told = [float(found["gib"]) for found in LOADED.finditer(log)]
    if not told:
        return None
    return round((sum(told) if len(told) >= ranks else told[0] * ranks) * 2**30)


def settings(log: str) -> dict[str, str]:
    """What vLLM says of its own configuration and attention backend, as far as it changes figures."""
    line = found[0] if (found := ENGINE.search(log)) else ""
    told = {name: value[1] for name in SETTINGS if (value := re.search(rf"\b{name}=([^,\s]+)", line))}
    backend = BACKEND.search(log)
    return told | ({"attention backend": backend["name"]} if backend else {})


def cache(metrics: str) -> Mapping[str, Any]:
    """What `/metrics` says of the key-value cache: sizes by name, as numbers where they are some."""
    found = CACHE.search(metrics)
    return {name: _number(value) for name, value in LABEL.findall(found["labels"])} if found else {}


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def kv_tokens(told: Mapping[str, Any]) -> int | None:
    """How many tokens the key-value cache holds; of versions that do not say so, blocks times their size."""
    tokens = told.get("kv_cache_size_tokens")
    if isinstance(tokens, int):
        return tokens
    blocks, size = told.get("num_gpu_blocks"), told.get("block_size")
    return blocks * size if isinstance(blocks, int) and isinstance(size, int) else None
