"""How often do limits on timings that --quant-update writes fail, with nothing changed?

    python benchmarks/margins.py [--draws 2000] [--reruns 0] [--seed 0]

Simulated: a limit is written from one run and five repeat runs of the baseline, then judged on one more run; at the
default rate of 1 %. The runs differ as the scenario says. With --reruns N, besides, the built-in model is measured:
limits are written from a run and its repeat runs in processes of their own, and N more runs are judged by them, first
on the machine as it is, then beside a process that computes without pause. Prints Markdown.
"""

import argparse
import math
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.measurement import Device, Measurement, Speed
from pytest_quantbudget.core.verdict import WITHIN
from pytest_quantbudget.judge import margin
from pytest_quantbudget.judge.margin import NoMargin
from pytest_quantbudget.judge.needs import RUNS, Needs
from pytest_quantbudget.judge.verdict import judge
from pytest_quantbudget.measure.bench import Bench
from pytest_quantbudget.measure.hardware import LocalGpus
from pytest_quantbudget.measure.runner import Runner

LIMITS = ("max_ttft", "min_tokens_per_s", "min_speedup")
BUDGET = """model: builtin
baseline: fp32
workload: {{prompt_tokens: 32, new_tokens: 16, repeats: 5}}
methods:
  fp32: {{}}
  bf16: {{budget: {{{}}}}}
"""
REPEAT = 0.05  # standard deviation of the logarithm of one repeat
Run = Callable[[int], float]  # the logarithm by which a run of that number differs from the first

Scenario = tuple[str, Callable[[random.Random], Run], float]  # name, how runs differ, share of repeats that stall


def scenarios() -> list[Scenario]:
    def apart(by: float) -> Callable[[random.Random], Run]:
        return lambda rng: lambda run: rng.gauss(0, by)

    def heavy(rng: random.Random) -> Run:
        """Student's t of three degrees of freedom."""
        return lambda run: 0.03 * rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2) / 3)

    def switched(rng: random.Random) -> Run:
        return lambda run: 0.15 * (rng.random() < 0.3)

    return [
        ("runs differ by their repeats alone", apart(0.0), 0.0),
        ("runs differ by 3 %", apart(0.03), 0.0),
        ("runs differ by 10 %", apart(0.10), 0.0),
        ("each run is 0.2 % slower than the one before", lambda rng: lambda run: 0.002 * run, 0.0),
        ("3 runs in 10 have a clock state 15 % slower", switched, 0.0),
        ("1 repeat in 20 stalls, and takes three times as long", apart(0.03), 0.05),
        ("heavy tails: Student's t of 3 degrees, 3 %", heavy, 0.0),
    ]


def timed(rng: random.Random, budget: Budget, method: str, by: float, stalls: float) -> Measurement:
    """A run whose repeats spread, and which differs from others."""
    times = [math.exp(by + rng.gauss(0, REPEAT)) * (3 if rng.random() < stalls else 1) for _ in range(5)]
    speed = Speed(budget.workload, tuple(0.05 * t for t in times), tuple(times), None, None)
    device = Device("cpu", None, None, None, None, 1)
    return Measurement(budget.method(method).subject, device=device, speeds=(speed,))


def failed(budget: Budget, limit: Limit, first: Mapping[str, Measurement], runs: Mapping[str, Sequence[float]],
           again: Mapping[str, Measurement]) -> bool | None:  # fmt: skip
    """Whether a run fails the limit that is written from others; None where none is written."""
    try:
        found = margin.calibrated(budget, "bf16", limit, "", first, runs=runs)
    except NoMargin:
        return None
    target = replace(limit.targets[0], value=found.value, text=found.text)
    verdict = judge(budget, budget.method("bf16"), replace(limit, targets=(target,)), again)
    return verdict.outcome != WITHIN


def simulated(budget: Budget, draws: int, seed: int) -> None:
    print("| runs | " + " | ".join(LIMITS) + " |\n| --- | --- | --- | --- |")
    limits = {limit.name: limit for limit in budget.method("bf16").limits}
    for name, differ, stalls in scenarios():
        rng = random.Random(seed)
        fails = dict.fromkeys(LIMITS, 0)
        for _ in range(draws):
            run = differ(rng)
            base = [timed(rng, budget, "fp32", run(i), stalls) for i in range(RUNS + 1)]
            first = {"fp32": base[0], "bf16": timed(rng, budget, "bf16", run(RUNS + 1), stalls)}
            later = RUNS + 2 + rng.randrange(50)
            again = {m: timed(rng, budget, m, run(later), stalls) for m in ("fp32", "bf16")}
            runs = {
                "ttft": [m.speeds[0].median_ttft_s for m in base],
                "tokens_per_s": [m.speeds[0].median_tokens_per_s for m in base],
            }
            for limit in LIMITS:
                fails[limit] += bool(failed(budget, limits[limit], first, runs, again))
        print(f"| {name} | " + " | ".join(f"{100 * fails[limit] / draws:.2f} %" for limit in LIMITS) + " |", flush=True)


def compute() -> None:
    """Keep a core busy."""
    while True:
        math.factorial(1000)


def measured(budget: Budget, reruns: int, folder: Path) -> None:
    print("\n| machine | limits written | reruns | failed |\n| --- | --- | --- | --- |")
    for name, others in (("as it is", 0), ("beside one busy process", 1)):
        busy = [multiprocessing.get_context("fork").Process(target=compute, daemon=True) for _ in range(others)]
        for process in busy:
            process.start()
        needs = Needs(update="auto")
        for method in budget.methods:
            needs.add(budget, method, method.limits)
        (folder / name).mkdir()
        runner = Runner(needs, LocalGpus(), folder / name, folder=folder / name)
        first = {method.name: runner.measure(budget, method) for method in budget.methods}
        spread = runner.noise(budget)
        written = tried = fails = 0
        for number in range(reruns):
            again = {m.name: fresh(runner.bench, needs, m.subject.key, 1000 + number) for m in budget.methods}
            for limit in budget.method("bf16").limits:
                outcome = failed(budget, limit, first, spread.values if spread else {}, again)
                written, tried = written + (outcome is not None and not number), tried + (outcome is not None)
                fails += bool(outcome)
        print(f"| {name} | {written} of {len(LIMITS)} | {tried} verdicts in {reruns} runs | {fails} |", flush=True)
        for process in busy:
            process.terminate()


def fresh(bench: Bench, needs: Needs, key: str, number: int) -> Measurement:
    """One more run of a subject, in a process of its own."""
    request = needs.requests[key]
    return bench.measure(replace(request, subject=replace(request.subject, again=number)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Count failures of limits on timings with nothing changed.")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--reruns", type=int, default=0, help="real runs of the built-in model for each machine load")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "b.yaml"
        path.write_text(BUDGET.format(", ".join(f"{limit}: auto" for limit in LIMITS)))
        budget = load_budget(path)
        simulated(budget, options.draws, options.seed)
        if options.reruns:
            measured(budget, options.reruns, Path(name))


if __name__ == "__main__":
    main()
