"""What a server counts of speculative decoding and of its prefix cache, as its metrics or its answers tell it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pytest_quantbudget.engine.openai.http import Client, ServerError

UNDRAFTED = "no speculative decoding: neither the server's metrics nor its answers tell of drafts"
# The names of vLLM (its documentation, "Production Metrics") and of llama-server (llama.cpp, tools/server/README.md).
DRAFTS = ("vllm:spec_decode_num_drafts_total", "llamacpp:spec_decode_num_drafts_total")
ACCEPTED = ("vllm:spec_decode_num_accepted_tokens_total", "llamacpp:spec_decode_num_accepted_tokens_total")
CACHED = ("vllm:prefix_cache_hits_total", "llamacpp:prompt_tokens_cached_total")
SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+-?\d+)?")


@dataclass(frozen=True)
class Counts:
    """Drafts, the tokens of them that were accepted, and tokens of prompts that came from the prefix cache."""

    drafts: int = 0
    accepted: int = 0
    cached: int = 0

    def __add__(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(self.drafts + other.drafts, self.accepted + other.accepted, self.cached + other.cached)

    def __sub__(self, other: Counts) -> Counts:
        """What has come since; nothing where a counter has begun anew."""
        return Counts(
            max(0, self.drafts - other.drafts),
            max(0, self.accepted - other.accepted),
            max(0, self.cached - other.cached),
        )

    @classmethod
    def of_answers(cls, drafted: int, accepted: int, made: int) -> Counts:
        """From answers of a llama-server without metrics: of the tokens `made`, each that was not accepted took a step.

        Steps without a draft count with the others.
        """
        return cls(made - accepted, accepted) if drafted and accepted < made else cls()


def parsed(text: str) -> dict[str, float]:
    """Prometheus's text format: each name's values over all of its labels, in sum."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        sample = SAMPLE.fullmatch(line.strip())
        if sample is None or line.startswith("#"):
            continue
        try:
            value = float(sample[2])
        except ValueError:
            continue
        if math.isfinite(value):
            found[sample[1]] = found.get(sample[1], 0.0) + value
    return found


async def read(client: Client) -> Counts | None:
    """What the server's metrics count up to now; None where it has none."""
    try:
        found = parsed(await client.text(client.root("metrics"), 10.0))
    except ServerError:
        return None
    return Counts(*(int(sum(found.get(name, 0.0) for name in names)) for names in (DRAFTS, ACCEPTED, CACHED)))
