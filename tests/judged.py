"""Hand-made measurements of fp16 and nf4, and verdicts on them."""

from collections.abc import Callable
from dataclasses import replace

from pytest_quantbudget.core.answers import INVALID, Answer, TaskResult
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Device, Measurement, Speed
from pytest_quantbudget.core.verdict import Verdict
from pytest_quantbudget.judge.verdict import judge

CPU = Device("cpu", None, None, None, None, threads=2)
H100 = Device("NVIDIA H100 80GB HBM3", "GPU-1", 80 * 2**30, "9.0", "13.0", threads=2)
GIB = 2**30

Load = Callable[[str], Budget]

BUDGET = """model: m
baseline: fp16
workload: {{new_tokens: 101, repeats: 5, batch_size: 2}}
tasks: {{gsm8k: {{questions: 1000, max_truncated: 100}}}}
methods:
  fp16: {{}}
  nf4: {{budget: {{{}}}}}
"""


def answers(*rights: tuple[int, bool]) -> tuple[Answer, ...]:
    """So many right, so many wrong, and so on; every wrong one found no number."""
    flat = [right for count, right in rights for _ in range(count)]
    return tuple(Answer(i, "", "1" if r else INVALID, "1", r, r, not r, 5) for i, r in enumerate(flat))


def measured(budget: Budget, method: str, device: Device = H100, **changes: object) -> Measurement:
    """A complete measurement: 6 GiB of weights, 7 GiB of memory, 50 ms to the first token, 100 tokens/s."""
    speed = Speed(
        budget.workload,
        (0.04, 0.04, 0.05, 0.08, 0.08),
        (1.0, 1.0, 2.0, 4.0, 4.0),
        7 * GIB if device is H100 else None,
        None,
    )
    task = TaskResult(budget.tasks["gsm8k"], answers((579, True), (421, False)), 60.0)
    record = Measurement(
        budget.method(method).subject,
        device=device,
        load_time_s=2.5,
        weights=6 * GIB,
        speeds=(speed,),
        tasks=(task,),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def verdict(budget: Budget, own: Measurement, base: Measurement | None = None) -> Verdict:
    method = budget.method("nf4")
    return judge(budget, method, method.limits[0], {"nf4": own, "fp16": base or measured(budget, "fp16")})
