"""vLLM's own benchmark against the plugin's client, on one vLLM server, by turns.

    python benchmarks/vllm_cost.py --python .venv-vllm/bin/python [--concurrency 1,8] [--rounds 6] [--requests 16]

The server runs the model of `load_cost.py` in float32, on one core. In each round both send as many requests of 64
tokens in and 32 out; what is told is the median of each figure over the rounds, and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from load_cost import medians, random_model

from pytest_quantbudget.core.load import Load
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.engine.vllm import engine

TOKENS = 64, 32
RUN = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
NAMES = {
    "ttft": "median_ttft_ms",
    "tpot": "median_tpot_ms",
    "e2e": "median_e2el_ms",
    "throughput": "output_throughput",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter with vLLM")
    parser.add_argument("--concurrency", default="1,8")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=16)
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0")
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder), 512, 8)
        options = {"max_model_len": 512, "enforce_eager": True}
        python = os.path.abspath(given.python)  # noqa: PTH100  # a link stays one: what it leads to has other packages
        server = engine.load(
            Subject(
                str(Path(folder, "model")), None, "fp32", None, {}, None,
                engine="vllm", engine_options=options, python=python,
            )
        )  # fmt: skip
        try:
            print("| concurrency | figure | vLLM's benchmark | plugin | plugin / vLLM's |")
            print("| --- | --- | --- | --- | --- |")
            for level in map(int, given.concurrency.split(",")):
                rows = [turns(python, server, level, given.requests, number) for number in range(given.rounds)]
                for name in NAMES:
                    theirs, ours = ([row[side][name] for row in rows] for side in (0, 1))
                    scale, unit = (1, "tokens/s") if name == "throughput" else (1e3, "ms")
                    both = " | ".join(f"{scale * statistics.median(each):.2f} {unit}" for each in (theirs, ours))
                    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
                    spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
                    print(f"| {level} | {name} | {both} | {statistics.median(ratios):.3f} {spread} |", flush=True)
        finally:
            server.close()


def turns(
    python: str, server: engine.VLLMServer, level: int, requests: int, number: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of vLLM's benchmark and of the plugin; each goes first as often as the other."""
    load = Load(*TOKENS, (level,), (), requests, level, number)
    if number % 2:
        theirs = bench(python, server, level, requests, number)
        return theirs, medians(server.load(load).levels[0])
    ours = medians(server.load(load).levels[0])
    return bench(python, server, level, requests, number), ours


def bench(python: str, server: engine.VLLMServer, level: int, requests: int, seed: int) -> dict[str, float]:
    """The figures of `vllm bench serve`, in seconds and tokens a second."""
    client = server.talk.client
    run = (
        "from vllm.benchmarks.serve import add_cli_args as add, main; import argparse; p = argparse.ArgumentParser(); "
    )
    run += "add(p); main(p.parse_args())"
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *("--backend", "openai", "--base-url", f"http://{client.host}:{client.port}", "--seed", str(seed)),
            *("--model", str(server.model), "--tokenizer", str(server.subject.model), "--dataset-name", "random"),
            *("--random-input-len", str(TOKENS[0]), "--random-output-len", str(TOKENS[1]), "--ignore-eos"),
            *("--num-prompts", str(requests), "--max-concurrency", str(level), "--num-warmups", str(level)),
            *("--percentile-metrics", "ttft,tpot,e2el", "--save-result", "--result-dir", folder),
        ]
        environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([python, "-c", RUN, *words], check=True, env=environ, stdout=subprocess.DEVNULL)
        (result,) = Path(folder).glob("*.json")
        found = json.loads(result.read_text())
    assert found["completed"] == requests, found
    return {name: found[key] / (1 if name == "throughput" else 1e3) for name, key in NAMES.items()}


if __name__ == "__main__":
    main()
