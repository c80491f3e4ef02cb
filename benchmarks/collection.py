"""Time the collection of about 1,000 limits from budget files against as many plain parametrized tests.

    python benchmarks/collection.py [--files 19] [--repeats 7]

Each collection is a `pytest --collect-only -q` in a fresh process, the kinds in turn, with no other plugin loaded. The
time is that of the whole process, from its start to its exit. A last run of each kind looks into `sys.modules`. The
last line is what the plugin costs a run without a budget: the median difference of one plain test with and without it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

METHODS = ("fp32", "bf16", "fp16", "int8", "nf4", "gptq-int4", "awq-int4")
OWN = "max_vram: 9 GB, max_weights: 1 GB, min_tokens_per_s: 5, max_ttft: 80 ms, max_load_time: 30 s, min_gsm8k: 40"
RELATED = "max_weights_ratio: 0.9, min_speedup: 0.5"
HEAVY = ("torch", "transformers", "bitsandbytes", "gptqmodel")

PLAIN = """
import pytest

@pytest.mark.parametrize("limit", range({count}))
def test_limit(limit):
    assert limit >= 0
"""
PROBE = "import sys, pytest; pytest.main(sys.argv[1:]); print('LOADED', *sorted({*sys.modules} & {%s}))"


def limits_of(method: str) -> list[str]:
    """The baseline has six limits, every other method eight."""
    return (OWN if method == "fp32" else f"{OWN}, {RELATED}").split(", ")


def budget(name: str) -> str:
    """A budget with every method."""
    lines = [f"model: team/{name}", "baseline: fp32", "calibration: texts.txt", "tasks: {gsm8k: {}}", "methods:"]
    for method in METHODS:
        lines += [f"  {method}:", "    budget:", *(f"      {limit}" for limit in limits_of(method))]
    return "\n".join([*lines, ""])


def prepare(folder: Path, files: int) -> int:
    """Write both kinds of tests; gives how many limits the budgets hold."""
    (folder / "budgets").mkdir()
    (folder / "plain").mkdir()
    (folder / "budgets/texts.txt").write_text("A text.\n" * 128)
    for number in range(files):
        (folder / f"budgets/model{number}.yaml").write_text(budget(f"model{number}"))
    count = files * sum(len(limits_of(method)) for method in METHODS)
    (folder / "plain/test_plain.py").write_text(PLAIN.format(count=count))
    (folder / "plain/test_one.py").write_text(PLAIN.format(count=1))
    return count


def run(command: Sequence[str], folder: Path) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints. Ends the program where it fails."""
    start = time.perf_counter()
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return seconds, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Time pytest's collection of budgets against plain tests.")
    parser.add_argument("--files", type=int, default=19, help="budget files of 54 limits each (default: 19)")
    parser.add_argument("--repeats", type=int, default=7, help="timed collections of each kind (default: 7)")
    options = parser.parse_args()
    collect = ["--collect-only", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = prepare(folder, options.files)
        plugin = ["-p", "quantbudget"]
        many = "plain/test_plain.py"
        one, bare_one, plain, bare, limits = (
            "1 plain test",
            "1 plain test without the plugin (pytest's own start)",
            f"{count:,} plain parametrized tests",
            f"{count:,} plain parametrized tests without the plugin",
            f"{count:,} limits in {options.files} budget files",
        )
        kinds = {
            one: (1, [*collect, *plugin, "plain/test_one.py"]),
            bare_one: (1, [*collect, "plain/test_one.py"]),
            bare: (count, [*collect, many]),
            plain: (count, [*collect, *plugin, many]),
            limits: (count, [*collect, *plugin, "--quant-budget", "budgets"]),
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(options.repeats + 1):
            for kind, (wanted, arguments) in kinds.items():
                seconds, output = run([sys.executable, "-m", "pytest", *arguments], folder)
                if f"{wanted} test{'s' * (wanted > 1)} collected" not in output:
                    raise SystemExit(f"{kind}: pytest did not collect {wanted}:\n{output[-500:]}")
                if repeat:  # the first of each kind fills the caches for files and bytecode
                    times[kind].append(seconds)
        heavy = {}
        for kind, (_, arguments) in kinds.items():
            probe = PROBE % ", ".join(map(repr, HEAVY))
            loaded = run([sys.executable, "-c", probe, *arguments], folder)[1].rpartition("LOADED")[2].split()
            heavy[kind] = ", ".join(loaded) or "none"
    base = statistics.median(times[plain])
    print(f"| collected | median of {options.repeats} | fastest to slowest | ratio | of {', '.join(HEAVY)} imported |")
    print("| --- | --- | --- | --- | --- |")
    for kind, taken in times.items():
        median = statistics.median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f} s"
        print(f"| {kind} | {median:.2f} s | {spread} | {median / base:.2f} | {heavy[kind]} |")
    differences = [with_ - without for with_, without in zip(times[one], times[bare_one], strict=True)]
    print(f"\nthe plugin costs a run without a budget {1000 * statistics.median(differences):.0f} ms")


if __name__ == "__main__":
    main()
