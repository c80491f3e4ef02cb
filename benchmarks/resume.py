"""A budget's run, killed with SIGKILL at random moments and started again each time, against an undisturbed run.

    python benchmarks/resume.py [BUDGET] [--kills 20] [--seed 0]

Prints what each start loaded, whether the final report equals the undisturbed one but for times, what the resumed runs
cost beside it, and how long a warm run takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Loaded into the pytest process: notes every measuring process, and whether it came to its end.
PLUGIN = """
import os
from pytest_quantbudget.measure import process

original = process.run

def noted(context, target, arguments, *rest, name, **more):
    what = name.removeprefix("quantbudget-") + (" (quantizing)" if arguments[0].quantize else "")
    with open(os.environ["STARTED"], "a") as file:
        file.write(f"start {what}\\n")
    outcome = original(context, target, arguments, *rest, name=name, **more)
    with open(os.environ["STARTED"], "a") as file:
        file.write(f"end {what}\\n")
    return outcome

process.run = noted
"""
QUANTIZING = "(quantizing)"
# What differs between two runs of the same: when and how long, what was measured as a time, and the last digits of
# log-probabilities, because the questions that a killed run has left are batched anew.
OF_TIME = re.compile(r"(_s|seconds|created|at|reused|resumed|origin|loaded|speeds|logprob)$")
TIMED_LIMITS = ("tokens_per_s", "speedup", "ttft", "load_time", "answer_ppl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", nargs="?", default="budgets/builtin.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-") as name:
        folder = Path(name)
        (folder / "noting.py").write_text(PLUGIN)
        compare(Path(options.budget).resolve(), folder, options.kills, random.Random(options.seed))


def compare(budget: Path, folder: Path, kills: int, chance: random.Random) -> None:
    start = time.perf_counter()
    begin(budget, folder, "cold").wait()
    cold = time.perf_counter() - start
    print(f"undisturbed: {cold:.0f} s, started {', '.join(events(folder, 'cold'))}", flush=True)

    start = time.perf_counter()
    begin(budget, folder, "cold", "warm").wait()
    warm = time.perf_counter() - start
    print(f"warm: {warm:.1f} s ({cold / warm:.0f}x), started {events(folder, 'warm') or 'nothing'}", flush=True)

    start = time.perf_counter()
    finished: set[str] = set()
    again = 0
    for kill in range(kills):
        attempt = f"kill{kill}"
        run = begin(budget, folder, "killed", attempt)
        delay = chance.uniform(0, cold / 8)
        try:
            run.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
        left = survivors(run.pid)
        started = events(folder, attempt)
        # A process that quantizes only looks up what an earlier one has made.
        repeated = [method for method in started if method in finished and QUANTIZING not in method]
        again += len(repeated)
        finished |= set(events(folder, attempt, "end"))
        print(f"kill {kill + 1} after {delay:.1f} s: started {started}, again {repeated}, left {left}", flush=True)
    begin(budget, folder, "killed", "last").wait()
    started = events(folder, "last")
    again += len([method for method in started if method in finished and QUANTIZING not in method])
    print(f"last run: started {started}")
    print(f"{kills} kills and the last run: {time.perf_counter() - start:.0f} s against {cold:.0f} s undisturbed")
    print(f"finished methods that were loaded again: {again}")
    first, second = (timeless(json.loads((folder / f"{name}.json").read_text())) for name in ("cold", "last"))
    print(f"reports equal but for times: {first == second}")
    for difference in differences(first, second):
        print("  ", difference)


def begin(budget: Path, folder: Path, cache: str, attempt: str = "") -> subprocess.Popen[bytes]:
    """Start a run of the budget."""
    attempt = attempt or cache
    command = [sys.executable, "-m", "pytest", "-p", "noting", "--rootdir", str(budget.parent)]
    command += ["--quant-budget", str(budget)]
    command += ["--quant-cache", str(folder / f"cache-{cache}"), "--quant-report", str(folder / f"{attempt}.json")]
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": paths, "STARTED": str(folder / f"{attempt}.txt")}
    with (folder / f"{attempt}.out").open("wb") as out:
        return subprocess.Popen(command, env=environ, stdout=out, stderr=out, start_new_session=True)


def events(folder: Path, attempt: str, kind: str = "start") -> list[str]:
    """The measuring processes that were started, or that ended, in one run."""
    path = folder / f"{attempt}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith(kind)]


def survivors(session: int) -> int:
    """Processes of a killed run that are still there after ten seconds."""
    for _ in range(100):
        stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
        alive = [stat for stat in stats if int(stat.rpartition(")")[2].split()[3]) == session]
        if not alive:
            return 0
        time.sleep(0.1)
    return len(alive)


def timeless(report: Any) -> Any:
    """A report without what is a time or depends on one."""
    if isinstance(report, dict):
        if any(word in str(report.get("name", "")) for word in TIMED_LIMITS):
            return report["id"], report["verdict"]["outcome"]
        return {key: timeless(value) for key, value in report.items() if not OF_TIME.search(key)}
    return [timeless(item) for item in report] if isinstance(report, list) else report


def differences(first: Any, second: Any, where: str = "report") -> list[str]:
    """Where two timeless reports differ."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [line for key in first for line in differences(first[key], second[key], f"{where}.{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{where}[{i}]")]
    return [] if first == second else [f"{where}: {first!r:.80} against {second!r:.80}"]


if __name__ == "__main__":
    main()
