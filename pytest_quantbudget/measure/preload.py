"""Imported once by the fork server, so that each measuring process starts with torch and transformers in place.

Only what leaves CUDA alone: a process forked after the first CUDA call cannot use the GPU. bitsandbytes asks for the
GPU's capability when it is imported, and gptqmodel starts threads; the measuring processes import those themselves.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

# `python -W error` is meant for the tests, not for the libraries under measurement.
warnings.simplefilter("default")
# Spinning threads slow a busy machine down more than tenfold; sleeping ones cost an idle machine a few percent.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch then counts GPUs through NVML instead of the CUDA runtime, which would spoil every fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """What libraries print when they are imported would stand in pytest's output, under whatever test is running."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _silenced(), contextlib.suppress(Exception):  # a broken library is reported by the measurement that needs it
    import torch
    import transformers.models.llama.modeling_llama  # and what the code of nearly every model imports, for seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    __all__ = ["AutoModelForCausalLM", "AutoTokenizer", "GenerationConfig", "torch", "transformers"]
