"""What measuring costs where llama.cpp runs: the plugin's figures against llama-cpp-python's own loop, in one process.

    pip install 'pytest-quantbudget[llama-cpp]'
    python benchmarks/llama_cost.py --model DIR [--kind gguf-q8_0] [--rounds 7]

The same GGUF file, prompt length, number of tokens and threads; the two take turns, so that a machine that slows down
slows both. llama-cpp-python's loop is `Llama.generate` at temperature 0, as its users call it.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Workload
from pytest_quantbudget.engine.llama_cpp import engine as llama_cpp
from pytest_quantbudget.engine.llama_cpp import speed
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.models.methods import gguf


def bare(llm: Any, prompt: list[int], count: int) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last, of llama-cpp-python's own loop."""
    llm.reset()
    start = time.perf_counter()
    tokens = llm.generate(prompt, temp=0.0, repeat_penalty=1.0)
    next(tokens)
    first = time.perf_counter()
    for _ in range(count - 1):
        next(tokens)
    return first - start, time.perf_counter() - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUILTIN_DIR)
    parser.add_argument("--kind", default="gguf-q8_0")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    own = Subject(
        str(given.model.resolve()), None, given.kind, None, {}, None, engine="llama.cpp",
        # As llama-cpp-python has it by default.
        engine_options={"n_threads": given.threads, "flash_attn": False},
    )  # fmt: skip
    workload = Workload(given.prompt_tokens, given.new_tokens, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        made = llama_cpp.quantize(own, NO_TRUST, None, Path(folder), Path(folder))
        engine = llama_cpp.load(own, quantized=str(made))
        import llama_cpp as library

        with contextlib.redirect_stderr(Path(os.devnull).open("w")):
            llm = library.Llama(
                str(made / gguf.FILE), n_ctx=given.prompt_tokens + given.new_tokens, n_batch=2048, verbose=False,
                n_threads=given.threads, n_threads_batch=given.threads,
            )  # fmt: skip
        drawn = torch.randint(0, engine.session.vocabulary, (given.prompt_tokens,), generator=torch.manual_seed(0))
        prompt = drawn.tolist()
        bare(llm, prompt, given.new_tokens)
        rows = []
        for _ in range(given.rounds):
            one = speed.measure(engine.session, workload, Gpus({}), on_gpu=False)
            rows.append(((one.ttft_s[0], one.decode_s[0]), bare(llm, prompt, given.new_tokens)))
        engine.close()
    for place, name in enumerate(("time to first token", "decoding")):
        ours, theirs = ([pair[side][place] for pair in rows] for side in (0, 1))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        middle = [1e3 * statistics.median(times) for times in (ours, theirs)]
        print(f"{name}: {middle[0]:.2f} ms, bare {middle[1]:.2f} ms; median of the ratios {ratio:.3f}")


if __name__ == "__main__":
    main()
