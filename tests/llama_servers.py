"""A real llama-server for tests, from xllamacpp, and the built-in model as a GGUF file in float32."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST

needs_server = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="needs xllamacpp and gguf (pip install 'pytest-quantbudget[llama-server,llama-cpp]')",
)
SLOTS = 4
# One thread each: threads that wait for work by spinning take the cores of small machines from whoever asks.
OPTIONS = (
    *("--n_ctx", str(SLOTS * 512), "--n_parallel", str(SLOTS)),
    *("--cpuparams.n_threads", "1", "--cpuparams_batch.n_threads", "1"),
)


def command(file: Path, *more: str) -> tuple[str, ...]:
    """What starts the server, as a budget has it."""
    return (sys.executable, "{llama_server}", "--model", str(file), "--port", "{port}", *OPTIONS, *more)


def write_builtin(target: Path) -> Path:
    """The built-in model as a GGUF file."""
    from pytest_quantbudget.models.methods import _gguf_file

    _gguf_file.write(BUILTIN_DIR, target, "f32", NO_TRUST)
    return target
