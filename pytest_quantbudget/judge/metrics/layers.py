"""Layers: which share of the parameters is quantized, and which kernels run."""

from __future__ import annotations

from pytest_quantbudget.core import layers
from pytest_quantbudget.core.fields import Kind, number
from pytest_quantbudget.core.limits import Limit, LimitKind
from pytest_quantbudget.core.request import LOAD
from pytest_quantbudget.core.verdict import OVER, SKIPPED, WITHIN, Verdict
from pytest_quantbudget.judge.metrics.base import COUNTED, Case, Figure, Metric


class QuantizedFraction(Metric):
    """Share of the model's parameters that are stored in at most 8 bits, from 0 to 1."""

    name = "quantized"
    margin = COUNTED
    quantized_only = True
    limits = (
        LimitKind(
            "min_quantized_fraction",
            "min",
            "quantized",
            "",
            "",
            number(0, 1, closed="high"),
            "Share of the model's parameters that are stored in at most 8 bits, from 0 to 1.",
        ),
    )

    def absolute(self, case: Case) -> Figure:
        """The share, counted."""
        case.check_packed()
        case.check_told("layers", LOAD)
        receipt = case.need(case.record.receipt, LOAD)
        words = f"{receipt.quantized:,} of {receipt.parameters:,} parameters; kept: {receipt.kept}"
        return Figure(receipt.fraction, words)


class Kernel(Metric):
    """Classes of the quantized linear layers; the limit is a pattern, and its text is what is judged."""

    name = "kernel"
    numeric = False
    quantized_only = True
    limits = (
        LimitKind(
            "kernel",
            "min",
            "kernel",
            "",
            "class",
            Kind(
                layers.read_patterns,
                {"type": "string", "pattern": f"^{layers.PATTERNS}$", "examples": ["Marlin*", "Marlin* | AwqMarlin*"]},
            ),
            "Classes of the quantized linear layers, as patterns with | between them: what runs must match one.",
        ),
    )

    def verdict(self, limit: Limit, name: str, case: Case) -> Verdict:
        """Within where every class matches one of the patterns for this device."""
        device = case.record.device.name if case.record.device else ""
        case.check_packed()
        case.check_told("layers", LOAD)
        receipt = case.need(case.record.receipt, LOAD)
        target = limit.target(device)
        if target is None:
            known = ", ".join(repr(t.pattern) for t in limit.targets)
            message = f"{name} has no limit for {device!r} (only for {known}); what ran: {receipt.kernels}"
            return Verdict(SKIPPED, message, for_want_of_gpu=device == "cpu")
        within = receipt.runs_on(target.text)
        message = f"{name} ran {receipt.kernels}, limit {target.text}"
        return Verdict(WITHIN if within else OVER, message, limit_text=target.text)
