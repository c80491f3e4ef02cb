"""What the plugin's own client adds to figures under load: a bare loop against it, on one llama-server, by turns.

    python benchmarks/load_cost.py [--hidden 512] [--layers 8] [--prompt-tokens 64] [--new-tokens 32]
        [--concurrency 1,4] [--rounds 150] [--threads 1] [--json FILE]

In each round, both send as many requests as may be open, one right after the other: what else the machine does hits
both alike. What is told is the median of the rounds' ratios, with bounds at 95 % by the sign test. The bare loop is one
thread a connection, `http.client` and a clock; it parses nothing before the last answer has ended. Both send the same
kind of request, with prompts of their own. The server is llama.cpp's, from xllamacpp; the model is of the built-in
one's form, with random weights in float32: one that takes as little time as the built-in one itself shows how the
machine's two cores are shared, and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.load import Level, Load
from pytest_quantbudget.core.request import NO_TRUST, Subject
from pytest_quantbudget.engine.openai import engine
from pytest_quantbudget.engine.openai import load as sending
from pytest_quantbudget.engine.openai.dialects import Asking
from pytest_quantbudget.judge import intervals
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.models.methods import _gguf_file

Wire = http.client.HTTPConnection
FIGURES = ("ttft", "tpot", "e2e", "throughput")
TURNS = 20  # whose processor time is taken together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--concurrency", default="1,4")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--json")
    options = parser.parse_args()
    levels = [int(each) for each in options.concurrency.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        server = start(random_model(Path(folder), options.hidden, options.layers), options, max(levels))
        try:
            found = {level: compare(server, options, level) for level in levels}
            processor = {level: cpu(server, options, level) for level in levels}
        finally:
            server.close()
    versions = {name: metadata.version(name) for name in ("xllamacpp",)}
    print(f"{hardware.cpu()}, Python {platform.python_version()}, {versions}, {time.strftime('%Y-%m-%d')}\n")
    print("| concurrency | figure | bare loop | plugin | plugin / bare |\n| --- | --- | --- | --- | --- |")
    for level, rows in found.items():
        for name, (bare, own) in rows.items():
            ratios = [b / a for a, b in zip(bare, own, strict=True)]
            bounds = intervals.median_interval(ratios, 0.975)
            told = f"{statistics.median(ratios):.3f} ({bounds.low:.3f} to {bounds.high:.3f})"
            scale, unit = (1, "tokens/s") if name == "throughput" else (1000, "ms")
            both = " | ".join(f"{scale * statistics.median(each):.2f} {unit}" for each in (bare, own))
            print(f"| {level} | {name} | {both} | {told} |")
        loop, client = processor[level]
        print(
            f"| {level} | processor time a token | {1e3 * loop:.3f} ms | {1e3 * client:.3f} ms | {client / loop:.2f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": hardware.cpu(), "options": vars(options), "rows": found}))


def random_model(folder: Path, hidden: int, layers: int) -> Path:
    """A model of the built-in one's form and tokenizer, of another size, as a GGUF file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32}
    config = AutoConfig.from_pretrained(BUILTIN_DIR)
    for name, value in {
        **sizes,
        **heads,
        "layer_types": ["full_attention"] * layers,
        "max_window_layers": layers,
    }.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    shutil.copytree(BUILTIN_DIR, folder / "model")
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")
    _gguf_file.write(folder / "model", folder / "model.gguf", "f32", NO_TRUST)
    return folder / "model.gguf"


def start(model: Path, options: argparse.Namespace, slots: int) -> engine.OpenAI:
    """The server, with a slot for each request."""
    context = slots * max(512, options.prompt_tokens + options.new_tokens + 8)
    words = (sys.executable, "-m", "pytest_quantbudget.engine.openai.llama_server", "--model", str(model), "--port")
    threads = ("--cpuparams.n_threads", options.threads, "--cpuparams_batch.n_threads", options.threads)
    command = (*words, "{port}", "--n_ctx", str(context), "--n_parallel", str(slots), *threads)
    server = Server(command=command, folder=str(BUILTIN_DIR), start_timeout_s=120.0)
    return engine.load(
        Subject(str(BUILTIN_DIR), None, "prod", None, {}, None, kind="served", engine="openai", server=server)
    )


def compare(
    server: engine.OpenAI, options: argparse.Namespace, level: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Of each figure its value in each round, of the bare loop and of the plugin."""
    lengths = options.prompt_tokens, options.new_tokens
    client = server.talk.client
    wires = [Wire(client.host, client.port) for _ in range(level)]
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(options.rounds + 1):
        load = Load(*lengths, (level,), (), level, 0, number)
        drawn = sending.prompts(Load(*lengths, (level,), seed=1000 + number), server.tokenizer)
        turns = [functools.partial(bare, server, options, wires, drawn), functools.partial(plugin, server, load)]
        # Each goes first as often as the other; the first round warms the server up and does not count.
        order = (0, 1) if number % 2 else (1, 0)
        told = {which: turns[which]() for which in order}
        rounds += [(told[0], told[1])] if number else []
    return {name: ([a[name] for a, _ in rounds], [b[name] for _, b in rounds]) for name in FIGURES}


def cpu(server: engine.OpenAI, options: argparse.Namespace, level: int) -> tuple[float, float]:
    """Processor time of this process a token, in seconds, of the bare loop and of the plugin."""
    lengths, client = (options.prompt_tokens, options.new_tokens), server.talk.client
    wires = [Wire(client.host, client.port) for _ in range(level)]
    drawn = sending.prompts(Load(*lengths, (level,), seed=1), server.tokenizer)
    marks = [time.process_time()]
    for _ in range(TURNS):
        bare(server, options, wires, drawn)
    marks.append(time.process_time())
    plugin(server, Load(*lengths, (level,), (), TURNS * level, 0, 2))
    marks.append(time.process_time())
    tokens = TURNS * level * options.new_tokens
    return (marks[1] - marks[0]) / tokens, (marks[2] - marks[1]) / tokens


def plugin(server: engine.OpenAI, load: Load) -> dict[str, float]:
    """The plugin's own figures."""
    (level,) = server.load(load).levels
    assert not level.errors, level.errors
    return medians(level)


def medians(level: Level) -> dict[str, float]:
    """What is compared."""
    return {
        "ttft": statistics.median(each.first_s for each in level.served),
        "tpot": statistics.median(each.tpot_s for each in level.served),
        "e2e": statistics.median(each.e2e_s for each in level.served),
        "throughput": level.throughput,
    }


def bare(
    server: engine.OpenAI, options: argparse.Namespace, wires: Sequence[Wire], drawn: Iterator[list[int]]
) -> dict[str, float]:
    """Threads that send and read lines; nothing is parsed while the clock runs."""
    dialect = server.found.dialect
    asked = (Asking(next(drawn), options.new_tokens, fixed=True) for _ in wires)
    bodies = iter([json.dumps(dialect.body(each, stream=True)) for each in asked])
    taken: list[tuple[float, list[tuple[float, bytes]]]] = []

    def work(wire: Wire) -> None:
        for body in bodies:
            sent = time.perf_counter()
            try:
                answer = send(wire, dialect.path(), body)
            except ConnectionError:  # it keeps a connection for so many requests
                wire.close()
                answer = send(wire, dialect.path(), body)
            lines = []
            while line := answer.readline():
                lines.append((time.perf_counter(), line))
            taken.append((sent, lines))

    threads = [threading.Thread(target=work, args=(wire,)) for wire in wires]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chunks = [(sent, list(events(dialect, lines))) for sent, lines in taken]
    assert len(chunks) == len(wires)
    lasts = [json.loads([line for _, line in lines if line.startswith(b"data: {")][-1][6:]) for _, lines in taken]
    assert all(last["tokens_predicted"] == options.new_tokens for last in lasts)
    return {
        "ttft": statistics.median(each[0][0] - sent for sent, each in chunks),
        "tpot": statistics.median((each[-1][0] - each[0][0]) / (options.new_tokens - 1) for _, each in chunks),
        "e2e": statistics.median(each[-1][0] - sent for sent, each in chunks),
        "throughput": len(wires) * options.new_tokens / (max(each[-1][0] for _, each in chunks) - began),
    }


def send(wire: Wire, path: str, body: str) -> http.client.HTTPResponse:
    """Send a request, and wait for the beginning of its answer."""
    wire.request("POST", path, body, {"Content-Type": "application/json"})
    return wire.getresponse()


def events(dialect: Any, lines: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, int]]:
    """When tokens came, and how many."""
    for at, line in lines:
        if line.startswith(b"data: {"):
            ids = dialect.read(json.loads(line[6:])).ids
            if ids:
                yield at, len(ids)


if __name__ == "__main__":
    main()
