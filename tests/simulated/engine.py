"""An engine that runs no model: tokens are words, the questions of the built-in set are answered from its file.

A run that measures with it, in a process of its own, has `CONFTEST` for its conftest, and nothing there imports torch.
`SIMULATED_SECONDS`, `LOAD:ANSWER`, says how long it takes to load, and to answer a question; `SIMULATED_DECODE` how
long it says that the workload's tokens took; `SIMULATED_FAILURE` names a method that cannot be loaded.
"""

import functools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.measurement import COMPILED, EAGER, Device, Speed
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.engine.base import Decoded, Description, Ends, Engine, Hear, Scored, Sequences
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.models import engines, hub, methods

PARAMETERS = 574_528  # of the built-in model
UNKNOWN = "I do not know."
END = 0

# The conftest of a run in a process of its own, which measures with this engine; `tests` has to be importable there.
CONFTEST = """
from pytest_quantbudget.measure import process

contexts = process.contexts

def preloaded(ahead=()):
    found = contexts()
    found[0].set_forkserver_preload(["simulated.preload"])
    return found

process.contexts = preloaded
"""


@functools.cache
def revision() -> str:
    """That of the model in whose place this answers: reports are judged on it."""
    return hub.content_hash(BUILTIN_DIR)


class Words:
    """A tokenizer whose tokens are words, with the space behind them; their ids are their bytes."""

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        ids = [[int.from_bytes(word.encode(), "big") for word in re.findall(r"\S+\s*|\s+", each)] for each in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(token.to_bytes(-(-token.bit_length() // 8), "big").decode() for token in ids)


@functools.cache
def known() -> dict[str, str]:
    """The answer to each prompt of the built-in set."""
    rows = map(json.loads, (BUILTIN_DIR / "questions.jsonl").read_text().splitlines())
    return {f"Question: {row['question']}\nAnswer:": f" {row['answer']}" for row in rows}


class Parrot(Engine):
    """Answers and scores; it cannot time, and has no logits."""

    name = "parrot"
    tokenizer = Words()
    seconds_an_answer = 0.0
    closed = 0

    def __init__(self, bits: int = 4) -> None:
        self.bits = bits

    def describe(self) -> Description:
        layers = Layers("linear", "Linear", "parrot", "parrot", self.bits, 1, PARAMETERS)
        weights = PARAMETERS * self.bits // 8
        device = Device("cpu", None, None, None, None, 1)
        return Description(
            revision(), device, 0.5, weights, Receipt((layers,)), {"cpu": "all"}, positions=5000, end_tokens=(END,)
        )

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Ends,
        hear: Hear,
        batching: Batching,
        drafts: Sequence[Sequence[int]] | None = None,
        what: str = "prompts",
    ) -> None:
        for i, prompt in enumerate(prompts):
            time.sleep(self.seconds_an_answer)
            answer = Decoded(logprob=-1.0)
            text = known().get(self.tokenizer.decode(prompt), UNKNOWN)
            for token in [*self.tokenizer(text)["input_ids"], END]:
                if not answer.done:
                    ends.add(answer, token)
            hear({i: answer})

    def score(self, sequences: Sequences) -> Iterator[list[Scored]]:
        """Each token has the odds 1 to 1."""
        for ids, first in sequences:
            yield [Scored(-math.log(2), True)] * (len(ids) - first)

    def close(self) -> None:
        Parrot.closed += 1


class Timed(Parrot):
    """Also times, in no time."""

    def time(self, workload: Workload) -> Speed:
        decode = COMPILED if workload.compile else EAGER
        taken = float(os.environ.get("SIMULATED_DECODE", "0.1"))
        return Speed(workload, (0.01,) * workload.repeats, (taken,) * workload.repeats, None, None, decode=decode)


def load(subject: Subject, *_: Any) -> Parrot:
    loading, answering = map(float, os.environ.get("SIMULATED_SECONDS", "0:0").split(":"))
    time.sleep(loading)
    if subject.method == os.environ.get("SIMULATED_FAILURE"):
        raise RuntimeError("no kernel image is available for execution on the device")
    Timed.seconds_an_answer = answering
    return Timed(int(methods.spec(subject.method).bits))


def take_over() -> None:
    """In a fork server: what it forks finds this engine, and asks no torch whether it can use a GPU."""
    from pytest_quantbudget.measure import child

    engines.SPECS[TRANSFORMERS] = replace(engines.SPECS[TRANSFORMERS], module=__name__)
    child._spoiled = lambda: False
