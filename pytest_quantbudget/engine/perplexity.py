"""Perplexity of a text in a sliding window.

After "Perplexity of fixed-length models" in the documentation of Hugging Face transformers
(https://huggingface.co/docs/transformers/perplexity). The whole text is one sequence of tokens, with what special
tokens the tokenizer adds to any text: a start token stands in front once and not in later windows, and no window is
padded. Windows of `window` tokens begin every `stride` tokens; in each, the tokens are scored that no earlier window
has held, after all that stand before them in this one: at least `window - stride`. The last window ends where the text
ends, and is as short as that makes it. A token with nothing before it is not scored: the text's first, and, where
`stride` equals `window`, the first of each window. Every other token counts once, and all count alike, where the page's
example weighs windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pytest_quantbudget.core.measurement import Perplexity
from pytest_quantbudget.core.request import Text
from pytest_quantbudget.engine.base import Engine, NotFinite
from pytest_quantbudget.tasks import tokenizers
from pytest_quantbudget.tasks.texts import read_text


def measure(engine: Engine, text: Text, state: str | None = None) -> Perplexity:
    """The perplexity of a text file under a model: log-probabilities as `Engine.score` gives them, in nats.

    `state` is the file's hash (`files.file_hash`), where it has to be what it was. Raises OSError and ValueError for
    a file that cannot be read, is too large, is not UTF-8, has changed, or makes fewer than 2 tokens; ValueError where
    the window is longer than the model's positions; NotFinite where its logits break down; NotOffered.
    """
    engine.check_positions(text.window, "the window of perplexity")
    name = Path(text.file).name
    ids = engine.tokenizer(read_text(Path(text.file), state), verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"{name} makes {len(ids)} tokens; a perplexity needs at least 2")
    spans = list(windows(len(ids), text.window, text.stride))
    scores = engine.score([(ids[begin:end], first - begin) for begin, first, end in spans])
    nlls = tuple(-math.fsum(token.logprob for token in scored) for scored in scores)
    nll = sum(nlls)
    if not nll < math.inf:
        raise NotFinite(f"a token of {name} has the probability 0")
    sizes = tuple(end - first for _, first, end in spans)
    tokenizer = tokenizers.state(engine.tokenizer)
    return Perplexity(text, nll, sum(sizes), each_tokens=sizes, each_nll=nlls, tokenizer=tokenizer)


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Where each window begins, its first token that is scored, and where it ends, for so many `tokens`."""
    end = 0
    for begin in range(0, tokens, stride):
        first, end = max(end, begin + 1), min(begin + window, tokens)
        if first < end:
            yield begin, first, end
        if end == tokens:
            return
