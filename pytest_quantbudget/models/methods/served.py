"""checkpoint: a ready checkpoint, whatever it says it is. served: a model of which only a server knows what it is."""

from __future__ import annotations

from pytest_quantbudget.core.engines import OPENAI, VLLM
from pytest_quantbudget.models.methods import ANY_FORMAT, Spec

SPECS = {
    "checkpoint": Spec(
        "checkpoint",
        "A ready checkpoint, quantized as its `quantization_config` says.",
        engines=(VLLM, OPENAI),
        adapters=(VLLM,),
        checkpoint_format=ANY_FORMAT,
    ),
    "served": Spec("served", "What a server serves.", engines=(OPENAI,)),
}
