"""auto-gptq: a GPTQ checkpoint by auto-gptq's own loader. GPTQ: Frantar et al. 2022, arXiv 2210.17323."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantbudget.core.engines import AUTO_GPTQ
from pytest_quantbudget.models.methods import Spec, gptq


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says, whatever its bits."""
    return {**gptq.told(config), "method": AUTO_GPTQ}


SPECS = {
    AUTO_GPTQ: Spec(
        AUTO_GPTQ,
        "GPTQ by auto-gptq's own loader",
        engines=(AUTO_GPTQ,),
        checkpoint_format="gptq",
        told=told,
    )
}
