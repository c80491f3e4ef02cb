"""Whether a model's logits are numbers.

Broken scales and overflows turn logits into NaN, from which greedy decoding makes tokens that look like a bad answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_quantbudget.engine.base import NotFinite

if TYPE_CHECKING:
    import torch

CHECKED_TOKENS = 8


def check(model: Any) -> None:
    """Raise NotFinite where the logits of a few random tokens are not finite, or are all the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (1, CHECKED_TOKENS), generator=generator).to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise NotFinite(f"{bad:,} of {logits.numel():,} logits are NaN or infinite on {CHECKED_TOKENS} random tokens")
    if bool((logits == logits.flatten()[0]).all()):
        raise NotFinite(f"all {logits.numel():,} logits are {float(logits.flatten()[0]):g}: the weights do nothing")


class Watch:
    """A logits processor that notes NaN and infinity on the device, without waiting for it at every step."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of shape (batch, vocabulary), unchanged."""
        import torch

        bad = (torch.isnan(scores) | torch.isposinf(scores)).any()
        self.seen = bad if self.seen is None else self.seen | bad
        return scores

    def check(self, what: str) -> None:
        """Raise NotFinite if any was seen."""
        if self.seen is not None and bool(self.seen):
            raise NotFinite(f"logits became NaN or infinite while answering {what}")
