"""Requests under load sent by guidellm, in an interpreter of its own, and its JSON read into the same records.

For those who compare with it (https://github.com/vllm-project/guidellm, written for version 0.8). It tells of each
request when it was sent, the time to first token and the mean wait between tokens, but no single wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.load import CONCURRENCY, LENGTH, TIMEOUT, Level, Load, Served
from pytest_quantbudget.engine.openai.http import Client
from pytest_quantbudget.engine.openai.process import Running

LOOK_S = 0.2  # between two looks whether it has ended


class GuidellmFailed(RuntimeError):
    """Guidellm ended without a result, with the end of what it printed."""


def words(client: Client, load: Load, way: str, value: float, tokenizer: Path, target: Path) -> list[str]:
    """The command for one level, whose JSON is written to `target`."""
    profile = f"kind=concurrent,streams={value:g}" if way == CONCURRENCY else f"kind=poisson,rate={value:g}"
    return [
        *(str(load.python), "-m", "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={client.url.removesuffix('/v1')},request_format=/v1/completions"),
        *("--profile", profile, "--constraint", f"kind=max_requests,count={load.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.new_tokens}"),
        *("--seed", f"kind=static,value={load.seed}", "--output", f"kind=json,path={target}"),
    ]


async def level(client: Client, load: Load, way: str, value: float, tokenizer: Path) -> tuple[Level, str]:
    """What guidellm tells of one level, and its version. Raises GuidellmFailed."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "guidellm.json"
        command = words(client, load, way, value, tokenizer, target)
        left_out = ("PYTHONPATH", "PYTHONHOME")
        environ = {name: held for name, held in os.environ.items() if name not in left_out}
        try:
            # Guarded as a server is: it ends with its workers, however this process ends.
            running = Running(command, None, {**environ, "HF_HUB_OFFLINE": "1"})
        except ValueError as error:
            raise GuidellmFailed(f"guidellm's interpreter {load.python} cannot be started") from error
        try:
            while running.ended is None:
                await asyncio.sleep(LOOK_S)
        finally:
            running.end()
        if running.code != 0 or not target.is_file():
            said = running.tail()
            last = said.splitlines()[-1] if said else "it printed nothing"
            raise GuidellmFailed(f"guidellm ended with status {running.code}: {last}\n{said}")
        try:
            found, version = read(json.loads(target.read_bytes()), load, way, value)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GuidellmFailed(f"guidellm's JSON has another form than that of version 0.8: {error!r}") from error
        if len(found.served) != load.requests:
            told = f"guidellm tells of {len(found.served):,} requests at {found.name}"
            raise GuidellmFailed(f"{told}, and {load.requests:,} were asked for")
        return found, version


def read(report: Mapping[str, Any], load: Load, way: str, value: float) -> tuple[Level, str]:
    """The requests of guidellm's only benchmark, and its version. Raises KeyError, TypeError or ValueError."""
    (benchmark,) = report["benchmarks"]
    found = benchmark["requests"]
    every: Sequence[tuple[str, Mapping[str, Any]]] = [
        *(("", each) for each in found["successful"]),
        *((kind, each) for kind in ("errored", "incomplete") for each in found[kind] or ()),
    ]
    began = min(float(each["request_start_time"]) for _, each in every)
    served = [_served(kind, each, load, began) for kind, each in every]
    served.sort(key=lambda each: each.sent_s)
    ends = [float(each["request_end_time"]) - began for kind, each in every if kind]
    seconds = max([*(each.sent_s + each.e2e_s for each in served if not each.error), *ends])
    behind = max(float(each.get("request_dispatch_delay") or 0.0) for _, each in every) if way != CONCURRENCY else 0.0
    return Level(way, value, seconds, tuple(served), behind), f"guidellm {report['metadata']['guidellm_version']}"


def _served(kind: str, each: Mapping[str, Any], load: Load, began: float) -> Served:
    """One request. The time from its first token to its last is one wait, because single ones are not told."""
    tokens = int(each["output_tokens"] or 0)
    first_s = float(each["time_to_first_token_ms"] or 0.0) / 1e3
    after_us = round(float(each["inter_token_latency_ms"] or 0.0) * 1e3 * (tokens - 1)) if tokens > 1 else 0
    late = first_s + after_us / 1e6 > load.timeout_s
    error = kind or (TIMEOUT if late else LENGTH if tokens != load.new_tokens or first_s <= 0 else "")
    return Served(
        round(float(each["request_start_time"]) - began, 6),
        first_s if tokens else 0.0,
        str(after_us) if tokens > 1 and first_s > 0 else "",
        tokens,
        error,
        int(each.get("cached_tokens") or 0),
    )
