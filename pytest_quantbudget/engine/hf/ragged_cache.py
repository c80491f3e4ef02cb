"""A ragged key-value cache: many sequences, each at a length of its own.

A row's tokens lie in slots 0 to length - 1, in their order, whatever the other rows do; slots behind them hold
leftovers that the attention mask hides and the next tokens overwrite. So rows can be fed blocks of unlike lengths, cut
back and removed, and nothing is padded on the left.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from pytest_quantbudget.engine.out_of_memory import is_out_of_memory

GROWTH = 64  # slots by which a layer's memory grows
TRIAL = 20  # tokens of the trial run that shows whether a model fits this cache
TOLERANCE = 0.15  # of logits, relative: 8-bit products depend on what else is in the batch


class Rows:
    """`count` copies of a `prefix` that is computed once, or empty rows. `lengths` has the shape (rows,)."""

    def __init__(self, model: Any, count: int, prefix: Rows | None = None) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.lengths = torch.zeros(count, dtype=torch.long, device=self.device)
        self.write = torch.zeros((count, 0), dtype=torch.long, device=self.device)
        self.top = 0
        self.cache = Cache(layer_class_to_replicate=functools.partial(_Layer, self))  # type: ignore[arg-type]
        if prefix is not None:
            self.top = prefix.top
            self.lengths += prefix.top
            self.cache.layers = [layer.repeated(self, count) for layer in prefix.layers]

    def join(self, other: Rows) -> None:
        """Append the rows of another."""
        self.lengths = torch.cat([self.lengths, other.lengths])
        for mine, more in zip(self.layers, other.layers, strict=True):
            mine.join(more)

    @property
    def layers(self) -> list[_Layer]:
        """One a layer of the model, once something was fed."""
        return self.cache.layers  # type: ignore[return-value]  # the cache makes no others

    def feed(self, tokens: Sequence[Sequence[int]], *, logits: bool = True) -> torch.Tensor:
        """Append a block of tokens to every row; logits of shape (rows, longest block, vocabulary).

        Behind the tokens of a shorter block come logits without meaning. With `logits` false the shape is (rows, 1,
        vocabulary), without meaning too.
        """
        longest = max(map(len, tokens))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens], device=self.device)
        steps = torch.arange(longest, device=self.device)
        self.write = self.lengths[:, None] + steps
        self.top = int(self.lengths.max()) + longest
        seen = torch.arange(self.top, device=self.device)[None, None, :] <= self.write[:, :, None]
        out = self.model(
            input_ids=padded,
            attention_mask=self._mask(seen[:, None]),
            position_ids=self.write,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if logits else 1,
        )
        self.lengths = self.lengths + torch.tensor([len(row) for row in tokens], device=self.device)
        found: torch.Tensor = out.logits
        return found

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        if self.model.config._attn_implementation == "sdpa":
            return seen
        kind = self.model.dtype
        return torch.zeros(seen.shape, dtype=kind, device=seen.device).masked_fill_(~seen, torch.finfo(kind).min)

    def cut(self, lengths: Sequence[int]) -> None:
        """Cut each row back to its length in `lengths`."""
        self.lengths = torch.tensor(lengths, device=self.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Remove all other rows."""
        chosen = torch.tensor(rows, device=self.device)
        self.lengths = self.lengths[chosen]
        top = int(self.lengths.max())
        for layer in self.layers:
            layer.select(chosen, top)


class _Layer(DynamicLayer):
    """One layer's keys and values, of shape (rows, heads, slots, head size), with room to grow."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block of shape (rows, heads, block, head size) behind each row's tokens; all slots up to the top."""
        top = self.rows.top
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = _room(key_states, 0), _room(value_states, 0)
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = _grown(self.keys, top), _grown(self.values, top)
        write = self.rows.write.to(key_states.device)
        each = torch.arange(len(write), device=key_states.device)[:, None]
        self.keys[each, :, write] = key_states.transpose(1, 2)
        self.values[each, :, write] = value_states.transpose(1, 2)
        return self.keys[:, :, :top], self.values[:, :, :top]

    def get_seq_length(self) -> int:
        """Slots in use."""
        return self.rows.top if self.is_initialized else 0

    def repeated(self, rows: Rows, count: int) -> _Layer:
        """A layer that holds the only row of this one `count` times."""
        layer = _Layer(rows)
        assert self.keys is not None
        assert self.values is not None
        layer.lazy_initialization(self.keys, self.values)
        layer.keys = self.keys[:, :, : rows.top].repeat(count, 1, 1, 1)
        layer.values = self.values[:, :, : rows.top].repeat(count, 1, 1, 1)
        return layer

    def join(self, other: _Layer) -> None:
        """Take over the rows of another layer, in as many slots as either needs."""
        assert self.keys is not None and other.keys is not None  # noqa: PT018
        assert self.values is not None and other.values is not None  # noqa: PT018
        top = max(self.keys.shape[2], other.keys.shape[2])
        self.keys = torch.cat([_grown(self.keys, top), _grown(other.keys, top)])
        self.values = torch.cat([_grown(self.values, top), _grown(other.values, top)])

    def select(self, chosen: torch.Tensor, top: int) -> None:
        """Keep the `chosen` rows, and the slots that they use, which are below `top`."""
        assert self.keys is not None
        assert self.values is not None
        chosen = chosen.to(self.keys.device)
        slots = _rounded(top + 1)  # with room for the next token, or it would all be copied again
        self.keys = self.keys[:, :, :slots].index_select(0, chosen)
        self.values = self.values[:, :, :slots].index_select(0, chosen)


def _room(like: torch.Tensor, slots: int) -> torch.Tensor:
    # Zeros, not garbage: a hidden NaN would still spoil the product with its weight of 0.
    return torch.zeros((like.shape[0], like.shape[1], slots, like.shape[3]), dtype=like.dtype, device=like.device)


def _rounded(slots: int) -> int:
    return -(-slots // GROWTH) * GROWTH


def _grown(old: torch.Tensor, top: int) -> torch.Tensor:
    if old.shape[2] >= top:
        return old
    new = _room(old, _rounded(top))
    new[:, :, : old.shape[2]] = old
    return new


@torch.inference_mode()
def bytes_a_token(model: Any) -> int:
    """Bytes of one token's keys and values, in all layers."""
    rows = Rows(model, 1)
    rows.feed([[0]], logits=False)
    return sum(2 * layer.keys[:, :, :1].nbytes for layer in rows.layers if layer.keys is not None)


@torch.inference_mode()
def unfit(model: Any, longest: int) -> str | None:
    """Why a model does not fit this cache, or None: a trial run's logits are compared with those of a plain pass.

    A model with an attention window that is shorter than the `longest` sequence does not fit.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {model.config._attn_implementation}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    sliding = kinds == {"full_attention"} or (kinds <= {"full_attention", "sliding_attention"} and window)
    if not sliding or (window and window < longest and getattr(config, "use_sliding_window", True)):
        return f"its layers are {', '.join(sorted(kinds))}, with a window of {window}"
    missing = {"position_ids", "logits_to_keep"} - set(inspect.signature(model.forward).parameters)
    if missing:
        return f"its forward pass takes no {', '.join(sorted(missing))}"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (2, TRIAL), generator=generator).tolist()
    try:
        rows = Rows(model, 2)
        rows.feed([ids[0][:9], ids[1][:4]])
        rows.cut([7, 4])
        rows.feed([ids[0][7:8], ids[1][4:11]])
        rows.keep([1, 0])
        found = rows.feed([ids[1][11:], ids[0][8:]])
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return f"it fails: {str(error)[:100]}"
    for row, line in enumerate([ids[1], ids[0]]):
        block = len(line) - (11, 8)[row]
        plain = model(input_ids=torch.tensor([line], device=rows.device)).logits[0, -1].float()
        apart = (found[row, block - 1].float() - plain).norm() / (plain - plain.mean()).norm()
        if not float(apart) < TOLERANCE:
            return f"its logits come out {float(apart):.0%} apart"
    return None
