"""autoawq: an AWQ checkpoint by autoawq's own loader. AWQ: Lin et al. 2023, arXiv 2306.00978."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantbudget.core.engines import AUTOAWQ
from pytest_quantbudget.models.methods import Spec, awq


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's `quantization_config` says, whatever its bits."""
    return {**awq.told(config), "method": AUTOAWQ}


SPECS = {AUTOAWQ: Spec(AUTOAWQ, "AWQ by autoawq's own loader", engines=(AUTOAWQ,), checkpoint_format="awq", told=told)}
