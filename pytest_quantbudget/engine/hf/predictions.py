"""Teacher-forced logits for known tokens, a block at a time, so that they need little memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pytest_quantbudget.engine.base import NotFinite
from pytest_quantbudget.engine.hf import ragged_cache
from pytest_quantbudget.engine.hf.decoding import BLOCK_LOGITS, BLOCK_TOKENS


class Predictor:
    """Feeds sequences of at most `longest` tokens, one at a time.

    Where a model cannot be fed in blocks (`ragged_cache.unfit`), its plain forward pass gives the logits of all known
    tokens of a sequence at once.
    """

    def __init__(self, model: Any, longest: int) -> None:
        self.model = model
        self.fit = ragged_cache.unfit(model, longest) is None

    @torch.inference_mode()
    def blocks(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, torch.Tensor]]:
        """What is predicted for `ids[first:]`, each token after all that stand before it in `ids`; `first` is above 0.

        Gives the index of each block's first token in `ids`, and logits of shape (block, vocabulary) in the model's own
        data type. Raises NotFinite where any is NaN or plus infinity.
        """
        for at, logits in self._fed(ids, first) if self.fit else self._plain(ids, first):
            if bool((logits.isnan() | logits.isposinf()).any()):
                raise NotFinite("logits became NaN or infinite while reading")
            yield at, logits

    def _width(self) -> int:
        return max(1, BLOCK_LOGITS // int(self.model.config.get_text_config().vocab_size))

    def _fed(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, torch.Tensor]]:
        row = ragged_cache.Rows(self.model, 1)
        for at in range(0, first - 1, BLOCK_TOKENS):
            row.feed([ids[at : min(at + BLOCK_TOKENS, first - 1)]], logits=False)
        width = self._width()
        for at in range(first, len(ids), width):
            yield at, row.feed([ids[at - 1 : min(at + width, len(ids)) - 1]])[0]

    def _plain(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, torch.Tensor]]:
        fed = torch.tensor([list(ids[:-1])], device=self.model.get_input_embeddings().weight.device)
        known = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        few = {"logits_to_keep": len(ids) - first} if known else {}
        out = self.model(input_ids=fed, attention_mask=torch.ones_like(fed), use_cache=False, **few)
        logits = out.logits[0, -(len(ids) - first) :]
        width = self._width()
        for at in range(0, len(logits), width):
            yield first + at, logits[at : at + width]
