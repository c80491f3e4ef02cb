"""Measure what the plugin costs a repository that has no budget: 500 ordinary tests with it and with -p no:quantbudget.

    python benchmarks/plain_pytest.py [--tests 500] [--pairs 5]

The repository is made anew: ten files of small tests, with fixtures and parameters, and YAML files beside them. Each
run is a whole `pytest -q` in a fresh process, with every plugin of the environment; the two kinds run in turn, the
first of each pair alternating, after a pair that does not count. User CPU is that of the process and its children
(getrusage(2), RUSAGE_CHILDREN).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = 10
TESTS = """
import pytest

@pytest.fixture
def numbers(tmp_path):
    return [*range(100)]

@pytest.mark.parametrize("step", range({count}))
def test_sum(numbers, step):
    assert sum(numbers[::step + 1]) >= 0
"""
KINDS = {"with the plugin": [], "with -p no:quantbudget": ["-p", "no:quantbudget"]}


def prepare(folder: Path, tests: int) -> None:
    """Write the repository."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    for number in range(FILES):
        (folder / f"test_{number}.py").write_text(TESTS.format(count=tests // FILES))
        (folder / f"compose{number}.yaml").write_text("services: {db: {image: postgres}}\n")


def user_cpu(folder: Path, more: list[str], tests: int) -> float:
    """Seconds of user CPU of one run. Ends the program where it does not pass."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *more]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    if f"{tests} passed" not in done.stdout:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the plugin costs a run without a budget.")
    parser.add_argument("--tests", type=int, default=500, help="a multiple of ten (default: 500)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs that count (default: 5)")
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.tests)
        for number in range(options.pairs + 1):
            order = [*KINDS] if number % 2 else [*KINDS][::-1]
            taken = {kind: user_cpu(folder, KINDS[kind], options.tests) for kind in order}
            if number:  # the first pair fills the caches for files and bytecode
                pairs.append([taken[kind] for kind in KINDS])
    print(f"| pair | {' | '.join(KINDS)} | ratio |\n| --- | --- | --- | --- |")
    for number, (plugin, bare) in enumerate(pairs, 1):
        print(f"| {number} | {plugin:.2f} s | {bare:.2f} s | {plugin / bare:.2f} |")
    print(f"\nmedian ratio of {len(pairs)} pairs: {statistics.median(plugin / bare for plugin, bare in pairs):.3f}")


if __name__ == "__main__":
    main()
