"""Simulate paired outcomes of two models and count wrong verdicts: of this plugin, of a hard floor, of a z-test.

    python benchmarks/verdict_quality.py [--draws 10000] [--seed 0]

Prints Markdown, in half a minute on one core. A draw is the outcomes of two models on `n` questions, each question on
its own: some are lost (from right to wrong), some won. Where the true drop is larger than the flips, all flips are
losses. Looks, confidences and scores are the package's own; `check` has the plugin itself judge some of the draws.

The floor: the accuracy of one run of the accepted model, minus a margin; later runs have to reach it. SGLang's CI has
such floors (https://github.com/sgl-project/sglang, test/srt/test_nightly_math_eval.py: a score of at least
`0.519 - 0.02`, "-2% to account for sampling variance"; pull request 27342 calls "X% - 5%" the convention). Here the
margin is the limit.

The z-test: TensorRT-LLM's (https://github.com/NVIDIA/TensorRT-LLM, tests/integration/defs/accuracy/README.md, and
`compute_threshold` in accuracy_core.py): a run has to reach `reference + z(alpha) * sqrt(2 * sigma^2 / n)`, with alpha
0.05 and sigma 50 for all tasks of right and wrong answers. It knows no limit: n alone says what it can see.

For both, the reference is a run of the baseline, on the same questions or on others of the same kind.
"""

import argparse
import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import limits
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.verdict import OVER, UNDECIDED, WITHIN
from pytest_quantbudget.judge import needs, sample_size, sequential
from pytest_quantbudget.judge.distributions import normal_quantile
from pytest_quantbudget.judge.intervals import Paired
from pytest_quantbudget.judge.verdict import judge

Counts = NDArray[np.int64]
Told = NDArray[np.bool_]

POLICIES = (limits.ESTIMATE, limits.FAIL, limits.PASS)
START, CONFIDENCE = 50, 0.95
LIMIT = 2.0  # points
FLIPS = (2.0, 5.0, 8.0)  # percent
SIZES = (200, 500, 1319)
ACCURACY = 0.85  # of the baseline
SIGMA, ALPHA = 50.0, 0.05  # TensorRT-LLM's


@dataclass(frozen=True)
class Draws:
    """What came out after each look, in all draws: lost and won questions, and those that both models had right."""

    looks: tuple[int, ...]
    lost: list[Counts]
    won: list[Counts]
    kept: list[Counts]


def draw(rng: np.random.Generator, looks: tuple[int, ...], flips: float, drop: float, draws: int) -> Draws:
    """Outcomes of `draws` runs of as many questions as the last look takes."""
    rate = max(flips, drop) / 100
    lost, won = (rate + drop / 100) / 2, (rate - drop / 100) / 2
    shares = [lost, won, ACCURACY - lost, 1 - ACCURACY - won]
    steps = [rng.multinomial(n - before, shares, draws) for before, n in zip((0, *looks), looks, strict=False)]
    lost_, won_, kept_, _ = np.cumsum(np.stack(steps), axis=0).transpose(2, 0, 1)
    return Draws(looks, list(lost_), list(won_), list(kept_))


def decided(n: int, lost: Counts, won: Counts, limit: float, confidence: float) -> tuple[Told, Told]:
    """In which draws the bounds lie within the limit, and in which over it."""
    keys, back = np.unique(lost * (n + 1) + won, return_inverse=True)
    z = normal_quantile(confidence)
    each = np.array([Paired(n, *divmod(key, n + 1)).score(limit) for key in keys.tolist()])
    scores: NDArray[np.float64] = each[back]
    return scores <= -z, scores > z


@dataclass(frozen=True)
class Ended:
    """How the plugin's runs ended: in bounds within or over the limit, with the estimate over it, after `asked`."""

    within: Told
    over: Told
    above: Told
    asked: Counts

    def failed(self, policy: str) -> Told:
        """In which of them the test fails."""
        if policy == limits.ESTIMATE:
            return self.over | (~self.within & self.above)
        return self.over if policy == limits.PASS else ~self.within


def plugin(found: Draws, limit: float, confidence: float = CONFIDENCE) -> Ended:
    """The plugin's verdicts, growing where there is more than one look."""
    looks, total = found.looks, found.looks[-1]
    start = looks[0] if len(looks) > 1 else None
    within: Told = np.zeros(len(found.lost[0]), dtype=np.bool_)
    over: Told = np.zeros_like(within)
    above: Told = np.zeros_like(within)
    asked = np.full(len(within), total)
    for n, lost, won in zip(looks, found.lost, found.won, strict=True):
        low, high = decided(n, lost, won, limit, sequential.confidence_at(n, start, total, confidence))
        going = ~within & ~over
        asked[going & (low | high)] = n
        within, over = within | going & low, over | going & high
        above = 100 * (lost - won) / n > limit
    return Ended(within, over, above, asked)


def unpaired(rng: np.random.Generator, found: Draws, limit: float) -> dict[str, Told]:
    """In which draws a floor and a z-test fail, all questions asked."""
    n, lost, won, kept = found.looks[-1], found.lost[-1], found.won[-1], found.kept[-1]
    before, after = 100 * (kept + lost) / n, 100 * (kept + won) / n
    elsewhere = 100 * rng.binomial(n, ACCURACY, len(before)) / n
    room = -normal_quantile(1 - ALPHA) * math.sqrt(2 * SIGMA**2 / n)
    tiny = 1e-9  # so that a run at the floor reaches it, whatever the rounding
    return {
        "floor, same questions": after < before - limit - tiny,
        "floor, other questions": after < elsewhere - limit - tiny,
        "z-test, same questions": after < before + room - tiny,
        "z-test, other questions": after < elsewhere + room - tiny,
    }


def verdicts(rng: np.random.Generator, n: int, flips: float, drop: float, draws: int) -> tuple[dict[str, float], float]:
    """Percent of tests that fail under each rule at one true drop, and the mean number of questions when growing."""
    found = draw(rng, sequential.looks(START, n), flips, drop, draws)
    last = Draws((n,), found.lost[-1:], found.won[-1:], found.kept[-1:])
    growing = plugin(found, LIMIT)
    failed = {f"plugin, `{policy}`": plugin(last, LIMIT).failed(policy) for policy in POLICIES}
    failed |= {f"plugin growing, `{policy}`": growing.failed(policy) for policy in POLICIES}
    failed |= unpaired(rng, last, LIMIT)
    return {rule: 100 * float(each.mean()) for rule, each in failed.items()}, float(growing.asked.mean())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def rules(rng: np.random.Generator, draws: int) -> None:
    """All rules at all sizes, flips and drops."""
    asked = []
    for n in SIZES:
        cells: dict[str, list[str]] = {}
        for flips in FLIPS:
            drops = (0.0, LIMIT / 2, LIMIT, LIMIT * 2)
            told = [verdicts(rng, n, flips, drop, draws) for drop in drops]
            asked.append([f"{n:,}", f"{flips:g} %", *(f"{questions:,.0f}" for _, questions in told)])
            for rule in told[0][0]:
                failed = [rates[rule] for rates, _ in told]
                shown = [*failed[:3], 100 - failed[3]]
                cells.setdefault(rule, []).append(" · ".join(f"{share:.1f}" for share in shown))
        print(f"### {n:,} questions\n")
        table(("rule", *(f"{flips:g} % flips" for flips in FLIPS)), [[rule, *row] for rule, row in cells.items()])
    print("### Questions asked when growing\n")
    table(("at most", "flips", "no drop", "half the limit", "the limit", "twice the limit"), asked)


def asked_for(rng: np.random.Generator, draws: int) -> None:
    """The errors with as many questions as the plugin asks for."""
    rows = []
    for limit in (2.0, 3.0):
        for flips in FLIPS:
            for policy in POLICIES:
                row = [f"{limit:g}", f"{flips:g} %", f"`{policy}`"]
                for start in (None, START):
                    n = sample_size.needed(limit, flips, CONFIDENCE, policy, start)
                    row.append(f"{n:,}")
                    for drop in (limit / 2, limit * 2):
                        ended = plugin(draw(rng, sequential.looks(start, n), flips, drop, draws), limit)
                        failed = ended.failed(policy)
                        row.append(f"{100 * float((failed if drop < limit else ~failed).mean()):.2f}")
                        row += [f"{ended.asked.mean():,.0f}"] * (start is not None)
                rows.append(row)
    growing = ("growing to", "false alarms", "asked", "misses", "asked")
    table(("limit", "flips", "undecided", "questions", "false alarms", "misses", *growing), rows)


def named(rng: np.random.Generator, draws: int) -> None:
    """The errors with the number of questions that the plugin names, wherever that is from 37 to 5,000."""
    rows, cases, kept = [], 0, 0
    for confidence in (0.7, 0.9, 0.95, 0.99):
        for policy in POLICIES:
            for start in (None, START):
                worst, least, most = [0.0, 0.0], 5000, 37
                for limit, flips in itertools.product((1.0, 2.0, 3.0, 5.0, 8.0, 15.0), (0.5, 2.0, 5.0, 12.0, 25.0)):
                    n = sample_size.needed(limit, flips, confidence, policy, start)
                    if not 37 <= n <= 5000:
                        continue
                    looks = sequential.looks(start, n)
                    shares = []
                    for drop in (limit / 2, limit * 2):
                        failed = plugin(draw(rng, looks, flips, drop, draws), limit, confidence).failed(policy)
                        shares.append(100 * float((failed if drop < limit else ~failed).mean()))
                    # Two standard errors of the simulation.
                    room = [200 * math.sqrt(share * (1 - share) / draws) for share in (0.01, 0.05)]
                    cases += 1
                    kept += shares[0] <= 1 + room[0] and shares[1] <= 5 + room[1]
                    worst = [max(pair) for pair in zip(worst, shares, strict=True)]
                    least, most = min(least, n), max(most, n)
                how = "growing" if start else "fixed"
                rows.append(
                    [f"{confidence:g}", f"`{policy}`", how, f"{least:,} to {most:,}", *(f"{w:.2f}" for w in worst)]
                )
    head = ("confidence", "undecided", "questions", "n", "worst false alarms", "worst misses")
    table(head, rows)
    print(f"{kept} of {cases} cases keep 1 % and 5 %, within two standard errors of the simulation.\n")


def clustered(rng: np.random.Generator, draws: int) -> None:
    """How often both bounds of a drop hold where questions come in fives of one topic."""
    rows = []
    for n, share, alike in itertools.product((200, 500, 1000), (0.05, 0.1), (0.0, 0.3, 0.6)):
        clusters = [str(i // 5) for i in range(n)]
        held = [0, 0]
        for _ in range(draws):
            shared = np.repeat(rng.random(n // 5) < share, 5)
            lost = np.where(rng.random(n) < math.sqrt(alike), shared, rng.random(n) < share).tolist()
            after = [not each for each in lost]
            for i, told in enumerate(((), clusters)):
                bounds = sequential.bounds("drop", [True] * n, after, CONFIDENCE, told)
                held[i] += bounds.low <= 100 * share <= bounds.high
        shown = (f"{100 * count / draws:.1f}" for count in held)
        rows.append([f"{n:,}", f"{100 * share:g} %", f"{alike:g}", *shown])
    table(("questions", "lost", "correlation", "both bounds hold, as if independent", "with `cluster`"), rows)


def broken(rng: np.random.Generator, draws: int) -> None:
    """How soon a growing run stops a model that has lost 20 points."""
    rows = []
    for n in SIZES:
        for limit in (2.0, 3.0):
            ended = plugin(draw(rng, sequential.looks(START, n), 22.0, 20.0, draws), limit)
            stopped = (100 * float((ended.over & (ended.asked <= most)).mean()) for most in (50, 100, 200))
            rows.append([f"{n:,}", f"{limit:g}", *(f"{share:.2f}" for share in stopped), f"{ended.asked.mean():.0f}"])
    table(("at most", "limit", "by 50", "by 100", "by 200", "asked"), rows)


def check(rng: np.random.Generator, folder: Path) -> int:
    """Have some runs judged by the plugin, budget file and all; how many. Raises AssertionError if one differs."""
    compared = 0
    for policy in POLICIES:
        path = folder / f"{policy}.yaml"
        path.write_text(
            f"model: m\nbaseline: fp16\nundecided: {policy}\ntasks: {{gsm8k: {{questions: {{start: 50, max: 200}}}}}}\n"
            f"methods: {{fp16: {{}}, nf4: {{budget: {{max_gsm8k_drop: {LIMIT}}}}}}}\n"
        )
        budget = load_budget(path)
        task, method = budget.tasks["gsm8k"], budget.method("nf4")
        request = needs.request(budget, method)
        for drop in (0.0, 2.0, 6.0):
            found = draw(rng, sequential.looks(START, 200), 5.0, drop, 40)
            ended = plugin(found, LIMIT)
            failed = ended.failed(policy)
            for i, asked in enumerate(ended.asked.tolist()):
                results = []
                for n, lost, won, kept in zip(found.looks, found.lost, found.won, found.kept, strict=True):
                    before, after = outcomes(n, int(lost[i]), int(won[i]), int(kept[i]))
                    results = [TaskResult(task, each, 1.0, planned=200) for each in (before, after)]
                    why = sequential.stopped(request, "cpu", results[1], results[0])
                    if why or n == asked:
                        break
                records = {
                    name: Measurement(budget.method(name).subject, tasks=(each,))
                    for name, each in zip(("fp16", "nf4"), results, strict=True)
                }
                told = judge(budget, method, method.limits[0], records)
                decision = WITHIN if ended.within[i] else OVER if ended.over[i] else UNDECIDED
                assert (n, told.decision, told.outcome == OVER) == (asked, decision, bool(failed[i])), told.message
                assert bool(why) == (decision != UNDECIDED), why
                compared += 1
    return compared


def outcomes(n: int, lost: int, won: int, kept: int) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
    """Answers of both models to `n` questions with these counts."""
    kinds = [(True, False)] * lost + [(False, True)] * won + [(True, True)] * kept
    kinds += [(False, False)] * (n - len(kinds))
    sides = zip(*kinds, strict=True)
    before, after = (tuple(Answer(i, "", "", "1", x, x, False, 1) for i, x in enumerate(side)) for side in sides)
    return before, after


def main() -> None:
    parser = argparse.ArgumentParser(description="Count wrong verdicts in simulated runs.")
    parser.add_argument(
        "--draws",
        type=int,
        default=10_000,
        help="runs a cell; ten times as many in the last two tables (default: 10000)",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        compared = check(rng, Path(folder))
    print(f"{compared} runs were also judged by the plugin itself, from budget file to outcome, and ended alike.\n")
    print(f"## All rules, at a limit of {LIMIT:g} points\n")
    print("In a cell: percent of tests that fail where the true drop is 0 · half the limit · the limit;")
    print("percent that pass where it is twice the limit.\n")
    rules(rng, options.draws)
    print("## With the number of questions that the plugin asks for\n")
    asked_for(rng, 10 * options.draws)
    print("## With the number of questions that the plugin names, at every confidence\n")
    named(rng, options.draws)
    print("## Questions in clusters of five; both bounds at 95 % should hold in 90 %\n")
    clustered(rng, max(1, options.draws // 20))
    print("## A broken model: 20 points lost, 22 % of questions flipped\n")
    broken(rng, 10 * options.draws)


if __name__ == "__main__":
    main()
