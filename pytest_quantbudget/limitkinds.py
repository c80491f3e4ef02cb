"""The limits that a budget may hold: what each name means, and how its value is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_quantbudget import receipt, units
from pytest_quantbudget.grammar import SIZE, TIME, Kind, number

# The pattern itself, the text of the limit, is what a kernel is judged by; see receipt.py.
KERNEL = Kind(
    receipt.read_patterns,
    {"type": "string", "pattern": f"^{receipt.PATTERNS}$", "examples": ["Marlin*", "Marlin* | AwqMarlin*"]},
)

Bound = Literal["min", "max"]
Metric = Literal[
    "vram", "weights", "tokens_per_s", "ttft", "load_time", "task", "agreement", "answer_ppl", "kl", "top1", "ppl",
    "quantized", "kernel",
]  # fmt: skip
Relation = Literal["", "ratio", "speedup", "drop", "flips", "against"]


@dataclass(frozen=True)
class LimitKind:
    """What a limit's name means: which way it bounds, which metric, how it relates to the baseline, in which unit."""

    name: str
    bound: Bound
    metric: Metric
    relation: Relation
    unit: str
    kind: Kind
    doc: str
    task: str = ""

    def unit_of(self, value: float) -> str:
        """The unit in which a figure is written where no user gave one: of sizes and times, what suits it."""
        known = units.SIZES if self.kind is SIZE else units.TIMES if self.kind is TIME else None
        return units.pick_unit(value, known) if known else self.unit


SHARE = number(0, 100, closed="high")
AUTO = "auto"  # instead of a limit's value: --quant-update writes one

LIMITS: Mapping[str, LimitKind] = {
    limit.name: limit
    for limit in (
        LimitKind("max_vram", "max", "vram", "", "", SIZE, "Peak GPU memory allocated during the workload."),
        LimitKind("max_weights", "max", "weights", "", "", SIZE, "Parameters and buffers as loaded, scales included."),
        LimitKind("max_vram_ratio", "max", "vram", "ratio", "", number(0), "Peak GPU memory over the baseline's."),
        LimitKind("max_weights_ratio", "max", "weights", "ratio", "", number(0), "Weights over the baseline's."),
        LimitKind("min_tokens_per_s", "min", "tokens_per_s", "", "tokens/s", number(0), "Decode throughput."),
        LimitKind("min_speedup", "min", "tokens_per_s", "speedup", "x", number(0), "Throughput over the baseline's."),
        LimitKind("max_ttft", "max", "ttft", "", "", TIME, "Time to first token: prefill of the workload's prompt."),
        LimitKind("max_ttft_ratio", "max", "ttft", "ratio", "", number(0), "Time to first token over the baseline's."),
        LimitKind(
            "max_load_time", "max", "load_time", "", "", TIME, "From local files to a model ready on its device."
        ),
        LimitKind(
            "min_quantized_fraction",
            "min",
            "quantized",
            "",
            "",
            number(0, 1, closed="high"),
            "Share of the model's parameters that are stored in at most 8 bits, from 0 to 1.",
        ),
        LimitKind(
            "kernel",
            "min",
            "kernel",
            "",
            "class",
            KERNEL,
            "Classes of the quantized linear layers, as patterns with | between them: what runs must match one.",
        ),
        LimitKind(
            "min_token_agreement",
            "min",
            "agreement",
            "against",
            "%",
            SHARE,
            "Tokens of the baseline's answers that are the method's own greedy choice, percent.",
        ),
        LimitKind(
            "max_answer_ppl_ratio",
            "max",
            "answer_ppl",
            "against",
            "",
            number(0),
            "Perplexity of the baseline's answers under the method over that under the baseline.",
        ),
        LimitKind(
            "max_kl",
            "max",
            "kl",
            "against",
            "nats",
            number(0),
            "Mean KL divergence from the baseline a token (task key `divergence`), nats.",
        ),
        LimitKind(
            "min_top1_agreement",
            "min",
            "top1",
            "against",
            "%",
            SHARE,
            "Tokens whose likeliest next one is the baseline's (task key `divergence`), percent.",
        ),
        LimitKind(
            "max_ppl_ratio",
            "max",
            "ppl",
            "ratio",
            "",
            number(0),
            "Perplexity of a text (file key `perplexity`) over the baseline's.",
        ),
    )
}


def task_limits(task: str) -> tuple[LimitKind, ...]:
    """The limits that a declared task adds: accuracy in percent, drop in percentage points, flips in percent."""
    change = number(0, 100, closed="low")
    return (
        LimitKind(f"min_{task}", "min", "task", "", "%", SHARE, f"Accuracy on {task}, percent.", task),
        LimitKind(
            f"max_{task}_drop", "max", "task", "drop", "points", change, f"Loss of {task} accuracy, points.", task
        ),
        LimitKind(
            f"max_{task}_flips", "max", "task", "flips", "%", change, f"{task} answers that changed sides, %.", task
        ),
    )


def limit_kinds(tasks: Sequence[str]) -> dict[str, LimitKind]:
    """Every limit that a file with these tasks may use, by name."""
    return {**LIMITS, **{kind.name: kind for task in tasks for kind in task_limits(task)}}
