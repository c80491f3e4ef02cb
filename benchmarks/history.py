"""What limits on a change promise: false alarms of unchanged histories, and how large a regression is found when.

`python benchmarks/history.py` prints the tables of docs/results/history.md; `--show` runs pytest ten times on one
history instead, with the simulated engine of the tests, and slows it down from the seventh run on.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.history import packed
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.judge import intervals, trend
from pytest_quantbudget.judge.metrics import limit_kinds
from pytest_quantbudget.judge.trend import Point, Rule, Scale

ROOT = Path(__file__).resolve().parents[1]
KINDS = limit_kinds(["gsm8k"])
SPEED, SCORE = KINDS["min_tokens_per_s"], KINDS["min_gsm8k"]
HISTORIES, RUNS, WORSE_AT = 200, 10, 7
OUTLIERS = 0.05  # of runs, in which something else kept the machine busy
QUESTIONS, RIGHT, TIES = 1000, 0.9, 0.005  # answers, and those that rounding turns either way in each run

RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "against: last": {"of": 1},
    "in_a_row: 2": {"in_a_row": 2},
    "in_a_row: 3": {"in_a_row": 3},
    "confidence: 0.95": {"confidence": 0.95},
}


def speeds(rng: random.Random, runs: int, noise: float, loss: float, *, outliers: bool) -> list[Point]:
    """Log-normal timings; from WORSE_AT on, slower by `loss`. An outlier takes 10 to 40 % off."""
    found = []
    for i in range(runs):
        value = 100 * math.exp(rng.gauss(0, noise)) * (1 - loss if i + 1 >= WORSE_AT else 1)
        if outliers and rng.random() < OUTLIERS:
            value *= 1 - rng.uniform(0.1, 0.4)
        found.append(Point(str(i), f"{i:03}", value, str(i)))
    return found


def scores(rng: random.Random, runs: int, loss: float) -> list[Point]:
    """Answers to the same questions; near-ties turn from run to run, and from WORSE_AT on a share is lost."""
    right = [rng.random() < RIGHT for _ in range(QUESTIONS)]
    ties = set(rng.sample(range(QUESTIONS), round(QUESTIONS * 4 * TIES)))
    lost = {i for i in range(QUESTIONS) if right[i] and rng.random() < loss / RIGHT}
    found = []
    for i in range(runs):
        worse = i + 1 >= WORSE_AT
        now = [
            (rng.random() < 0.5 if rng.random() < 0.5 else was) if n in ties else was and not (worse and n in lost)
            for n, was in enumerate(right)
        ]
        found.append(Point(str(i), f"{i:03}", 100 * sum(now) / QUESTIONS, str(i), packed(now)))
    return found


def alarms(points: Sequence[Point], rule: Rule) -> list[int]:
    """The runs, from 1, whose test fails under the default `undecided: estimate`."""
    found = enumerate(trend.replay(points, rule), 1)
    return [n for n, c in found if c is not None and c.exceeds and c.shown and c.row >= rule.in_a_row]


def rule(kind: LimitKind, amount: float, **more: object) -> Rule:
    return Rule(kind, Scale(kind).harm(amount), **more)  # type: ignore[arg-type]


def told(hits: int, n: int) -> str:
    """`2.0 % (0.9 to 4.0)`: with exact bounds of 95 % each."""
    bounds = intervals.proportion_interval(hits, n, 0.95)
    return f"{100 * hits / n:.1f} % ({bounds.low:.1f} to {bounds.high:.1f})"


def false_alarms(make: Callable[[random.Random, int], list[Point]], asked: Rule, runs: int) -> tuple[int, int]:
    """Histories with an alarm, and runs with one."""
    found = [alarms(make(random.Random(seed), runs), asked) for seed in range(HISTORIES)]
    return sum(map(bool, found)), sum(map(len, found))


def table_of_false_alarms() -> None:
    print(f"\n{HISTORIES} unchanged histories: with an alarm, and runs with one\n")
    print("| figure, limit | rule | runs | histories with an alarm | runs with one |\n" + "| --- " * 5 + "|")
    kinds: list[tuple[str, LimitKind, float, Callable[[random.Random, int], list[Point]]]] = [
        ("tokens/s -5 %, noise 3 %", SPEED, 5, lambda rng, n: speeds(rng, n, 0.03, 0, outliers=False)),
        ("tokens/s -5 %, noise 3 %, outliers", SPEED, 5, lambda rng, n: speeds(rng, n, 0.03, 0, outliers=True)),
        ("tokens/s -5 %, noise 1 %", SPEED, 5, lambda rng, n: speeds(rng, n, 0.01, 0, outliers=False)),
        ("score -1 points, 1,000 questions", SCORE, 1, lambda rng, n: scores(rng, n, 0)),
    ]
    for name, kind, amount, make in kinds:
        for words, more in RULES.items():
            if kind is SCORE and words == "confidence: 0.95":
                continue
            for runs in (RUNS, 30) if kind is SPEED else (RUNS,):
                histories, hits = false_alarms(make, rule(kind, amount, **more), runs)
                row = told(histories, HISTORIES), told(hits, HISTORIES * runs)
                print(f"| {name} | {words} | {runs} | {row[0]} | {row[1]} |", flush=True)


def table_of_power() -> None:
    print(f"\n{HISTORIES} histories that get worse at run {WORSE_AT} of {RUNS}: named at that run, or by the last\n")
    print("| figure, limit | rule | loss | named at run 7 | by run 8 | by run 10 | before |\n" + "| --- " * 7 + "|")
    cases = [("tokens/s -5 %, noise 3 %", SPEED, 5.0, 0.03, loss) for loss in (0.05, 0.1, 0.15, 0.2, 0.3)]
    cases += [("tokens/s -5 %, noise 1 %", SPEED, 5.0, 0.01, loss) for loss in (0.03, 0.06, 0.08, 0.1)]
    cases += [("score -1 points, 1,000 questions", SCORE, 1.0, 0.0, loss) for loss in (0.01, 0.02, 0.03)]
    for name, kind, amount, noise, loss in cases:
        for words in ("default", "in_a_row: 3"):
            asked = rule(kind, amount, **RULES[words])
            found = []
            for seed in range(HISTORIES):
                rng = random.Random(seed)
                points = scores(rng, RUNS, loss) if kind is SCORE else speeds(rng, RUNS, noise, loss, outliers=False)
                found.append(alarms(points, asked))
            at = [sum(any(WORSE_AT <= run <= by for run in each) for each in found) for by in (7, 8, 10)]
            before = sum(any(run < WORSE_AT for run in each) for each in found)
            size = f"{100 * loss:g} {'points' if kind is SCORE else '%'}"
            cells = [told(hits, HISTORIES) for hits in at]
            print(f"| {name} | {words} | {size} | {' | '.join(cells)} | {told(before, HISTORIES)} |", flush=True)


BUDGET = """
model: builtin
baseline: fp32
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
methods:
  fp32: {}
  bf16:
    budget:
      min_tokens_per_s: 1
      max_change: {tokens_per_s: -5 %}
"""


def show() -> None:
    """Ten runs of pytest on one history; the simulated engine says how long the tokens took."""
    sys.path.insert(0, str(ROOT / "tests"))
    from simulated.engine import CONFTEST

    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as room:
        for name, text in (("conftest.py", CONFTEST), ("pytest.ini", "[pytest]\n"), ("gate.yaml", BUDGET)):
            (Path(room) / name).write_text(text)
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        for number in range(1, RUNS + 1):
            seconds = 0.1 * math.exp(rng.gauss(0, 0.03)) / (0.8 if number >= WORSE_AT else 1)
            own = {"SIMULATED_DECODE": str(seconds), "PYTHONPATH": paths, "COLUMNS": "400", "XDG_CACHE_HOME": room}
            environ = {**os.environ, **own}
            command = [
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-rA",
                "--quant-budget",
                "gate.yaml",
                "--quant-no-cache",
            ]
            ended = subprocess.run(
                [sys.executable, *command, "--quant-history", "past"],
                cwd=room,
                env=environ,
                capture_output=True,
                text=True,
            )
            lines = ended.stdout.splitlines()
            verdict = next((x for x in lines if x.startswith(("measured", "bf16: max_change"))), "")
            outcome = next(
                (x for x in lines if "max_change_tokens_per_s" in x and x.startswith(("PASSED", "FAILED"))), ""
            )
            print(f"run {number}: exit code {ended.returncode}; {outcome.partition(' ')[0]} {verdict}", flush=True)
        command = [sys.executable, "-m", "pytest_quantbudget", "history", "past"]
        environ = {**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
        print(subprocess.run(command, cwd=room, env=environ, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true", help="ten runs of pytest")
    if parser.parse_args().show:
        show()
    else:
        table_of_false_alarms()
        table_of_power()
