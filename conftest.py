"""What the project's own tests share. They run in rooms of their own, through pytester."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def gsm8k() -> Path:
    """The real GSM8K test set as JSON lines, from `GSM8K_JSONL`."""
    path = os.environ.get("GSM8K_JSONL")
    if not path:
        pytest.skip("GSM8K_JSONL does not name the GSM8K test set")
    return Path(path)
