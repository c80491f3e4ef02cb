"""Every GPU figure of a dummy Qwen3-8B in six precisions, beside independent ones: one command, no network.

    python benchmarks/gpu/run.py [--out DIR] [--wheels DIR] [--budget FILE] [--seconds 540] [--compile]

`--wheels` names a directory of wheels (bitsandbytes, gptqmodel and optimum, say) that are put on the path first,
without their dependencies. What is not installed, and what does not fit, is named and left out. Writes DIR/report.json
(the plugin's), DIR/plain.json (plain.py's), DIR/table.md. With `--compile` each method is timed a second time, once it
is loaded, with `compile: true`, and a second table has both ways side by side. On a machine without a CUDA card it says
so; `--budget` with a small model and without `gpu: true` tries the way through.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core import gpus as gpus_
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.engine.machine import nvml
from pytest_quantbudget.models.estimate.memory import estimate
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import BudgetReport, MethodReport

HERE = Path(__file__).resolve().parent
NONE = "-"


def installed(wheels: Path, out: Path) -> Path:
    """A directory with what the wheels hold."""
    target = out / "packages"
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target), *files]
    subprocess.run(command, check=True)
    return target


def plain(path: Path, budget: Budget, environ: Mapping[str, str], until: float) -> dict[str, dict[str, Any]]:
    """What plain.py measures of each method, or in words why it does not."""
    found: dict[str, dict[str, Any]] = {}
    for method in budget.methods:
        left = until - time.monotonic()
        if left < 10:
            found[method.name] = {"error": "the time was used up"}
            continue
        command = [sys.executable, str(HERE / "plain.py"), str(path), method.name]
        try:
            done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            found[method.name] = {"error": "the time was used up"}
            continue
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            found[method.name] = json.loads(lines[-1])
        else:
            found[method.name] = {"error": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]}
    return found


def table(report: BudgetReport, budget: Budget, independent: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One row a method: the plugin's figures, the estimate's and the independent ones."""
    head = [
        "method", "weights", "estimate", "off", "peak", "estimate", "off", "reserved", "nvidia-smi", "off", "tokens/s",
        "plain loop", "off", "first token", "plain", "kernels",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join(row(each, budget, independent.get(each.name, {})))} |" for each in report.methods]


def row(method: MethodReport, budget: Budget, independent: Mapping[str, Any]) -> list[str]:
    """The cells of one method."""
    own = method.measurement
    if own is None or own.weights is None:
        failures = [failure.message for failure in own.failures] if own else []
        return [method.name, f"not run: {'; '.join(failures) or 'see the report'}", *[NONE] * 14]
    predicted = estimate(own.subject, budget.workload)
    speed = own.speed(budget.workload)
    peak, reserved = (speed.peak_allocated, speed.peak_reserved) if speed else (None, None)
    before, after = independent.get("used_before"), independent.get("used_after")
    grown = after - before if before is not None and after is not None else None
    # The driver's figure holds the CUDA context too, so it is compared with the reserved memory of the same process.
    context = grown - independent["reserved"] if grown is not None else None
    rate, loop = speed.median_tokens_per_s if speed else None, independent.get("tokens_per_s")
    first, plain_first = speed.median_ttft_s if speed else None, independent.get("ttft_s")
    return [
        method.name,
        format_size(own.weights), format_size(predicted.weights), _off(own.weights, predicted.weights),
        _size(peak), format_size(predicted.peak), _off(peak, predicted.peak),
        _size(reserved), f"{_size(grown)} (context {_size(context)})" if grown is not None else NONE,
        _off(reserved, independent.get("reserved")),
        f"{rate:.1f}" if rate else NONE, f"{loop:.1f}" if loop else str(independent.get("error", NONE)),
        _off(rate, loop),
        f"{1000 * first:.1f} ms" if first else NONE, f"{1000 * plain_first:.1f} ms" if plain_first else NONE,
        own.receipt.kernels if own.receipt else NONE,
    ]  # fmt: skip


def ways(eager: BudgetReport, compiled: BudgetReport) -> list[str]:
    """One row a method: decoding from Python, and by compiled steps."""
    head = [
        "method", "eager tokens/s", "compiled tokens/s", "of eager", "of compiled fp16", "roofline", "first token",
        "compiled", "compiling took", "peak", "compiled", "tokens", "opaque layers",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    base = _speed(compiled, "fp16")
    for name in (method.name for method in eager.methods):
        lines.append(f"| {' | '.join(_both(name, _speed(eager, name), _speed(compiled, name), base, compiled))} |")
    return lines


def _speed(budget: BudgetReport, method: str) -> Speed | None:
    own = budget.measured.get(method)
    return own.speed(budget.workload) if own else None


def _both(name: str, eager: Speed | None, other: Speed | None, base: Speed | None, compiled: BudgetReport) -> list[str]:
    rate = eager.median_tokens_per_s if eager else None
    if other is None:
        own = compiled.measured.get(name)
        failure = own.failure(compiled.workload.phase) if own else None
        why = failure.message if failure else "see the report"
        return [name, f"{rate:.1f}" if rate else NONE, f"not compiled: {why}", *[NONE] * 10]
    quick = other.median_tokens_per_s
    return [
        name, f"{rate:.1f}" if rate else NONE, f"{quick:.1f}", f"{quick / rate:.2f}x" if rate else NONE,
        f"{quick / base.median_tokens_per_s:.2f}x" if base else NONE,
        f"{100 * other.roofline.fraction:.0f} %" if other.roofline else NONE,
        f"{1000 * eager.median_ttft_s:.1f} ms" if eager else NONE, f"{1000 * other.median_ttft_s:.1f} ms",
        f"{other.compile_s:.1f} s" if other.compile_s else NONE,
        _size(eager.peak_allocated if eager else None), _size(other.peak_allocated),
        other.other_tokens or "equal", ", ".join(other.opaque_layers) or NONE,
    ]  # fmt: skip


def _size(value: float | None) -> str:
    return format_size(value) if value else NONE


def _off(value: float | None, other: float | None) -> str:
    return f"{100 * (value / other - 1):+.1f} %" if value and other else NONE


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure dummy models on a GPU, beside independent figures.")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--budget", type=Path, default=HERE / "budget.yaml")
    parser.add_argument("--seconds", type=float, default=540, help="time for all of it (default: 540)")
    parser.add_argument("--compile", action="store_true", help="time compiled decoding beside eager decoding")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environ = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "HF_HUB_OFFLINE": "1"}  # as in the measuring processes
    if options.wheels is not None:
        environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(installed(options.wheels, out)), environ.get("PYTHONPATH")))
        )
    budget = load_budget(options.budget)
    gpus = gpus_.visible_gpus(nvml.all_gpus(), os.environ)
    idle = not gpus and any(method.gpu is not None for method in budget.methods)
    if idle:
        print("no CUDA card is visible: nothing was measured, and the budget's tests will skip", file=sys.stderr)
    budgets = [options.budget.resolve()]
    if options.compile:
        budgets.append(out / "compiled.yaml")
        parent = os.path.relpath(budgets[0], out)
        budgets[1].write_text(f"extends: {json.dumps(parent)}\nworkload: {{compile: true}}\n")
    command = [
        sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider",
        *[f"--quant-budget={path}" for path in budgets],
        "--quant-no-cache", "--quant-timeout", f"{options.seconds * 0.6:.0f} s",
        "--quant-report", str(out / "report.json"),
    ]  # fmt: skip
    code = subprocess.run(command, env=environ, cwd=out, check=False).returncode
    independent = {} if idle else plain(options.budget.resolve(), budget, environ, until)
    (out / "plain.json").write_text(json.dumps(independent, indent=1) + "\n")
    report = document.read(out / "report.json")
    eager, *compiled = sorted(report.budgets, key=lambda each: each.workload.compile)
    lines = table(eager, budget, independent)
    if compiled:
        lines += ["", *ways(eager, compiled[0])]
    names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in gpus) or f"no GPU; {report.machine.cpu}"
    text = "\n".join([f"{report.created}, {names}", "", *lines]) + "\n"
    (out / "table.md").write_text(text)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
