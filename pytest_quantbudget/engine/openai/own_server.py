"""What servers share that an engine starts itself on a method's files: their end tokens, and their likeliest tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from pytest_quantbudget.engine.base import Sequences
from pytest_quantbudget.engine.openai import probe
from pytest_quantbudget.engine.openai.engine import OpenAI
from pytest_quantbudget.engine.openai.http import MAX_BODY, ServerError
from pytest_quantbudget.engine.openai.source import Source
from pytest_quantbudget.models import checkpoint

ENTRY_BYTES = 100  # of a token's log-probability, rank and text in JSON


class OwnServer(OpenAI):
    """A server on a `source`. It gives `prompt_logprobs` as vLLM does, `most_told` for each position (-1: all)."""

    source: Source
    most_told = -1
    # Answers with log-probabilities are long.
    scored_at_once = 16

    def end_tokens(self) -> tuple[int, ...]:
        """At which it ends: those of the checkpoint's generation config or its own, and the tokenizer's."""
        told = [found(self.source.folder).get("eos_token_id") for found in (checkpoint.generation, checkpoint.config)]
        ends = [end for each in told for end in (each if isinstance(each, list) else [each])]
        return tuple(dict.fromkeys([*(end for end in ends if isinstance(end, int)), *super().end_tokens()]))

    def tops(self, sequences: Sequences) -> Iterator[list[Mapping[int, float]]]:
        """As many of the likeliest tokens as are told, and as fit into one answer."""
        self._need(probe.PROMPT_LOGPROBS)
        for start in range(0, len(sequences), self.scored_at_once):
            part = sequences[start : start + self.scored_at_once]
            yield from self.talk.run(self._all_tops(part))

    async def _all_tops(self, sequences: Sequences) -> list[list[Mapping[int, float]]]:
        return list(await asyncio.gather(*(self._tops(list(ids), first) for ids, first in sequences)))

    async def _tops(self, ids: list[int], first: int) -> list[Mapping[int, float]]:
        most = told_at_once(self.most_told, len(self.tokenizer), len(ids))
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": most}
        answer = await self.talk.json(self.talk.client.api("completions"), body)
        rows: list[Mapping[int, float]] = []
        try:
            told = answer["choices"][0]["prompt_logprobs"][first:]
            rows = [{int(token): float(each["logprob"]) for token, each in row.items()} for row in told]
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            pass
        if len(rows) != len(ids) - first or not all(rows):
            raise ServerError(
                "the log-probabilities of a prompt have another form than when the server was asked first"
            )
        return rows


def told_at_once(wanted: int, vocabulary: int, positions: int) -> int:
    """How many likeliest tokens of each position to ask for: those that are wanted, -1 for all, if they fit.

    There may be more tokens than the tokenizer knows: all is left to the server where all of these fit. vLLM refuses a
    number above theirs.
    """
    fitting = MAX_BODY // (positions * ENTRY_BYTES)
    return min(wanted, fitting) if wanted >= 0 else -1 if 2 * vocabulary <= fitting else min(fitting, vocabulary)
