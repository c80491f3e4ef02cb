"""What a history keeps of a method: its figures, and what they are figures of. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.history import VERSION, KeptFigure, KeptVerdict, MethodRun, packed
from pytest_quantbudget.core.limits import Judging, Limit, LimitKind
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import DivergenceOf, Part, Task
from pytest_quantbudget.core.verdict import LimitReport
from pytest_quantbudget.judge.intervals import Interval
from pytest_quantbudget.judge.metrics import figure, limit_kinds, metric_of
from pytest_quantbudget.judge.metrics.base import Case, Unmeasured, check_cpu


def method_run(
    budget: Budget,
    method: Method,
    kinds: Iterable[LimitKind],
    measured: Mapping[str, Measurement],
    cpu: str,
    verdicts: Sequence[LimitReport] = (),
) -> MethodRun:
    """What a run would keep of a method, as far as these kinds of limits have a figure; which run, is not said yet.

    `measured` is by method name, and `cpu` that of the machine that measured.
    """
    own = measured[method.name]
    base = measured.get(budget.baseline or "")
    parts: dict[str, dict[str, str]] = {}
    figures = {}
    for kind in kinds:
        found = _figure(budget, method, kind, measured, cpu)
        if found is not None:
            needed = metric_of(kind).parts(budget.basis_of(method.name), kind)
            parts |= {part.phase: _settings(part, own) for part in needed}
            figures[kind.name] = found
    there = budget.stored.cpu if budget.stored is not None else cpu
    return MethodRun(
        version=VERSION,
        run="",
        at="",
        budget="",
        method=method.name,
        subject=_subject(own, cpu),
        parts=parts,
        baseline=_subject(base, there) if base is not None and method.name != budget.baseline else {},
        figures=figures,
        verdicts={limit.name: _kept(limit) for limit in verdicts},
        libraries=dict(own.libraries or {}),
    )


def all_kinds(budget: Budget, method: Method) -> list[LimitKind]:
    """The kinds of limits that a figure of a method may be kept for."""
    own = {kind.name: kind for kind in (*(x.kind for x in method.limits), *(x.limit.kind for x in method.changes))}
    return list({**limit_kinds(budget.tasks), **own}.values())


def _figure(
    budget: Budget, method: Method, kind: LimitKind, measured: Mapping[str, Measurement], cpu: str
) -> KeptFigure | None:
    """The figure that a limit of this kind would be judged on; None where there is none."""
    metric, basis = metric_of(kind), budget.basis_of(method.name)
    compared = method.name != budget.baseline and budget.baseline in measured
    if not metric.numeric or metric.lacking(basis) is not None or (kind.relation and not compared):
        return None
    limit = Limit(kind, (), budget.path, 0, Judging())
    try:
        if budget.stored is not None:
            check_cpu(Case(basis, kind, method.name, measured, 0.0), metric, cpu, budget.stored.cpu)
        found = figure(basis, method.name, limit, measured)
    except Unmeasured:
        return None
    if not math.isfinite(found.value):
        return None
    own = measured[method.name]
    needed = metric.parts(basis, kind)
    low, high = _ends(found.bounds)
    return KeptFigure(
        value=float(found.value),
        unit=kind.unit_of(found.value),
        measured=max((_when(part, own) for part in needed), default=_loaded(own)),
        parts=tuple(dict.fromkeys(part.phase for part in needed)),
        relative=bool(kind.relation),
        low=low,
        high=high,
        n=found.n or None,
        of=found.of,
        outcomes=_outcomes(kind, needed, own),
    )


def _ends(bounds: Interval | None) -> tuple[float | None, float | None]:
    if bounds is None:
        return None, None
    low, high = (end if math.isfinite(end) else None for end in (bounds.low, bounds.high))
    return low, high


def _outcomes(kind: LimitKind, parts: Sequence[Part], own: Measurement) -> str:
    """Right and wrong of a score's questions: runs of the same questions are compared answer by answer."""
    if not kind.task or kind.name != f"min_{kind.task}":
        return ""
    results = (own.task(part) for part in parts if isinstance(part, Task))
    result = next((result for result in results if result is not None), None)
    return packed(result.correct) if result is not None else ""


def _result(part: Part, own: Measurement) -> Any:
    if isinstance(part, DivergenceOf):
        return own.task(part.task)
    held = getattr(own, part.held_in) if part.held_in else ()
    return next((result for result in held if getattr(result, part.named) == part), None)


def _when(part: Part, own: Measurement) -> str:
    origin = getattr(_result(part, own), "origin", None)
    return str(origin.at) if origin is not None else _loaded(own)


def _loaded(own: Measurement) -> str:
    return own.loaded.at if own.loaded is not None else ""


def _settings(part: Part, own: Measurement) -> dict[str, str]:
    """The settings of a part, and the state of its questions or text, as texts."""
    found = _texts(part.settings())
    if isinstance(part, Task):
        # Which extraction counts is no matter for answers, and it is for their score.
        found["extract"] = part.extract
    source = getattr(_result(part, own), "source", None)
    return {**found, **({"content": str(source)} if source else {})}


def _subject(own: Measurement, cpu: str) -> dict[str, str]:
    """What was measured, and where. Paths differ between machines, and the revision of a directory is its content."""
    subject, device = own.subject, own.device
    on_cpu = device is not None and device.name == "cpu"
    adapter = subject.adapter
    server = subject.server
    found = {
        "model": _name(subject.model),
        "revision": own.revision or subject.revision,
        "kind": subject.kind,
        "options": json.dumps(codec.to_builtins(subject.options), sort_keys=True) if subject.options else None,
        "checkpoint": _name(subject.checkpoint) if subject.checkpoint else None,
        "revision of the checkpoint": own.checkpoint_revision,
        "calibration": own.calibration,
        "adapter": f"{_name(adapter.name)}{' merged' if adapter.merge else ''}" if adapter is not None else None,
        "revision of the adapter": own.adapter_revision,
        "load_format": subject.load_format,
        "engine": subject.engine,
        "engine_options": json.dumps(codec.to_builtins(subject.engine_options), sort_keys=True)
        if subject.engine_options
        else None,
        "server": json.dumps([server.url, server.command, server.model]) if server is not None else None,
        "device": device.name if device is not None else None,
        "GPUs": str(subject.gpus) if subject.gpus > 1 else None,
        "CPU": cpu if on_cpu else None,
        "threads": str(device.threads) if on_cpu and device is not None else None,
    }
    return {name: str(value) for name, value in found.items() if value}


def _name(name: str) -> str:
    """A hub id as it is, and of a path its last part: the revision tells what it held."""
    return Path(name).name if Path(name).is_absolute() else name


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(codec.to_builtins(value)) for name, value in settings.items() if value is not None}


def _kept(limit: LimitReport) -> KeptVerdict:
    verdict = limit.verdict
    measured = verdict.measured if math.isfinite(verdict.measured or 0.0) else None
    told = (verdict.outcome, verdict.decision, measured, verdict.limit, verdict.limit_text, verdict.unit)
    return KeptVerdict(*told)
