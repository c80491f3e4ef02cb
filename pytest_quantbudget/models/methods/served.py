"""served: a model of which only a server knows what it is."""

from __future__ import annotations

from pytest_quantbudget.core.engines import OPENAI
from pytest_quantbudget.models.methods import Spec

SPECS = {"served": Spec("served", "What a server serves.", engines=(OPENAI,))}
