"""The limits that a budget may hold: what each name means, and how its value is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_quantbudget.core import layers
from pytest_quantbudget.core.fields import SIZE, TIME, Kind, number
from pytest_quantbudget.core.limits import LimitKind

# The pattern itself, the text of the limit, is what a kernel is judged by; see receipt.py.
KERNEL = Kind(
    layers.read_patterns,
    {"type": "string", "pattern": f"^{layers.PATTERNS}$", "examples": ["Marlin*", "Marlin* | AwqMarlin*"]},
)
SHARE = number(0, 100, closed="high")
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
