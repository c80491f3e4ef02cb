"""Reports that contradict themselves give no verdicts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored_reports import TEXT, furnish, read, report

from pytest_quantbudget.core.load import Level, Load, LoadResult, Served
from pytest_quantbudget.core.measurement import Failure, Measurement
from pytest_quantbudget.report import consistency
from pytest_quantbudget.report.document import Report

Change = Callable[[Measurement], Measurement]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return furnish(tmp_path)


def changed(room: Path, change: Change) -> Report:
    return report(read(room, TEXT), nf4=change)


def of(holder: str, **values: Any) -> Change:
    """A change of the only result of a part."""

    def change(own: Measurement) -> Measurement:
        held: dict[str, Any] = {holder: (replace(getattr(own, holder)[0], **values),)}
        return replace(own, **held)

    return change


def of_task(name: str, **values: Any) -> Change:
    """A change of the agreement or the divergence on the task."""
    return lambda own: of("tasks", **{name: replace(getattr(own.tasks[0], name), **values)})(own)


def answers(change: Callable[[Any], Any]) -> Change:
    return lambda own: of("tasks", answers=change(own.tasks[0].answers))(own)


LOAD = Load(8, 3, (1,), (), 2)
SERVED = Served(0.5, 0.1, "1000 1000", 3)


def under_load(*served: Served, seconds: float = 2.0) -> Change:
    """A load besides."""
    result = LoadResult(LOAD, (Level("concurrency", 1, seconds, served),))
    return lambda own: replace(own, loads=(result,))


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "fewer than planned": (of("tasks", planned=12), "10 answers, 12 were planned, and nothing says why"),
    "fewer than asked for": (answers(lambda held: held[:9]), "10 questions were asked for, and 9 planned"),
    "twice": (answers(lambda held: (*held[:9], held[0])), "question 0 was answered 2 times"),
    "seconds": (answers(lambda held: (replace(held[0], seconds=-1.0), *held[1:])), "took -1 s"),
    "log-probability": (answers(lambda held: (replace(held[0], logprob=1.0), *held[1:])), "has the log-probability 1"),
    "token": (answers(lambda held: (replace(held[0], ids=(3, -1)), *held[1:])), "question 0 has the token -1"),
    "right about nothing": (
        answers(lambda held: (replace(held[0], strict="[invalid]"), *held[1:])),
        "the answer to question 0 is right, and no answer was found in it",
    ),
    "no parts": (of_task("agreement", each_tokens=()), "10 answers, and 0, 10, 10 parts of them"),
    "parts": (of_task("agreement", each_agreed=(0,) * 10), "agreement on sums: its parts do not add up"),
    "sums": (of_task("agreement", logprob=-9.0), "its log-probabilities do not add up"),
    "no parts of logits": (of_task("divergence", each_kl=()), "1, 1, 0 parts of single answers"),
    "divergences": (of_task("divergence", mean_kl=0.2), "its divergences do not add up"),
    "single tokens": (
        of_task("divergence", token_kls=("1 2",)),
        "2 divergences of single tokens, and 10 tokens",
    ),
    "divergences of tokens": (
        of_task("divergence", token_kls=(" ".join(["90000000"] * 10),)),
        "the divergences of its tokens do not add up",
    ),
    "windows": (of("perplexities", nll=30.0), "perplexity: its windows do not add up"),
    "no windows": (of("perplexities", each_nll=()), "1 and 0 parts of single windows"),
    "repeats": (of("speeds", ttft_s=(0.1,)), "workload: 1 values of ttft_s, and the workload has 2 repeats"),
    "peaks": (of("speeds", peaks=(2**40, 1)), "workload: a repeat's peak is above that of all runs"),
    "compiled": (of("speeds", decode="compiled"), "workload: its decoding was compiled, and `compile` is false"),
    "reserved": (of("speeds", peak_allocated=9, peak_reserved=8), "workload: more is allocated than reserved"),
    "repeats of reserved": (of("speeds", reserved_peaks=(2**40, 1)), "a repeat's peak is above that of all runs"),
    "fewer peaks": (of("speeds", reserved_peaks=(1,)), "workload: 1 values of reserved_peaks, and the workload has 2"),
    "process": (of("speeds", process_peaks=(2**40,)), "workload: a repeat's peak is above that of all runs"),
    "below 0": (of("speeds", process_peaks=(-1,)), "workload: a peak is below 0"),
    "failed": (
        lambda own: replace(own, failures=(Failure("task sums", "error", "it crashed"),)),
        "answers to sums stand beside the failure of their phase",
    ),
    "requests": (under_load(SERVED), "load: 1 requests at concurrency 1, and the load has 2"),
    "tokens": (under_load(SERVED, replace(SERVED, tokens=4)), "load: 4 tokens in an answer of 3"),
    "ends": (under_load(SERVED, SERVED, seconds=0.5), "load: an answer ended 0.102 s after the end of concurrency 1"),
    "one part twice": (lambda own: replace(own, speeds=own.speeds * 2), "figures of the workload stand there twice"),
}


def test_a_report_of_a_run_is_taken(room: Path) -> None:
    consistency.check(changed(room, lambda own: own))
    consistency.check(changed(room, lambda own: replace(own, failures=(Failure("reply", "error", "it crashed"),))))


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_report_that_contradicts_itself_is_refused(room: Path, name: str) -> None:
    change, words = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=r"^contradicts itself: b.yaml, nf4: ") as caught:
        consistency.check(changed(room, change))
    assert words in str(caught.value)
