"""Imported by the fork server of these runs, so that not every measuring process imports the same for seconds."""

import importlib
import sys

import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from faults import strikes
from pytest_quantbudget.models import hub

hub.HUB_SECONDS = 3  # as in the conftest of these runs

if strikes.is_faked("bitsandbytes"):
    with strikes.without_fakes():
        strikes.KEPT["bitsandbytes"] = importlib.import_module("bitsandbytes")
    del sys.modules["bitsandbytes"]  # the fake one comes first, and puts this one back
