"""A model of transformers as lm-evaluation-harness knows it."""

from __future__ import annotations

import copy
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList

from pytest_quantbudget.core.request import Task
from pytest_quantbudget.engine.hf import logits


class HarnessModel(HFLM):  # type: ignore[misc]  # the library has no types
    """The library's own class, which besides notes whether the logits are numbers while it generates."""

    def __init__(self, model: Any, tokenizer: Any, task: Task, batch_size: int) -> None:
        super().__init__(
            pretrained=model,
            # A copy, because the library sets the padding token.
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            enable_thinking=task.enable_thinking,
            # With thinking, the library has to know where it ends.
            think_end_token="</think>" if task.enable_thinking else None,
        )
        self.watch = logits.Watch()

    def _model_generate(self, *args: Any, **more: Any) -> Any:
        return super()._model_generate(*args, logits_processor=LogitsProcessorList([self.watch]), **more)

    def check_logits(self, what: str) -> None:
        """Raise NotFinite if logits were NaN or infinite since this was made."""
        self.watch.check(what)
