"""The verdict on a limit: measured first, and only where the GPUs are those that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantbudget.budget.lacking import lacking
from pytest_quantbudget.core.budget import Budget, Method, Use
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.safetext import printable, safe
from pytest_quantbudget.core.verdict import FAILED, SKIPPED, WITHIN, LimitReport, Verdict
from pytest_quantbudget.judge import advice
from pytest_quantbudget.judge.changed import judge_change
from pytest_quantbudget.judge.verdict import judge, unjudged
from pytest_quantbudget.plugin.session import Session

if TYPE_CHECKING:
    from pytest_quantbudget.plugin.session import Measurer


def verdict_on(
    session: Session,
    budget: Budget,
    method: Method,
    limit: Limit | ChangeLimit,
    needs: Sequence[GpuNeed] = (),
    machine: str = "",
) -> Verdict:
    """The verdict on a limit; measures first what has not been measured, unless `needs` are not met.

    With reports from several kinds of machine, it is judged on those of one.
    """
    verdict = _verdict(session, session.measurer.on(machine), budget, method, limit, needs)
    if session.require_gpu and verdict.outcome == SKIPPED and verdict.for_want_of_gpu:
        verdict = replace(verdict, outcome=FAILED, message=f"{verdict.message} (--quant-require-gpu)")
    if session.fail_on_skip and verdict.outcome == SKIPPED:
        verdict = replace(verdict, outcome=FAILED, message=f"{verdict.message} (--quant-fail-on-skip)")
    # A stored report may come from anyone, and names are a budget's.
    return replace(verdict, message=printable(verdict.message))


def verdict_on_use(session: Session, budget: Budget, use: Use, machine: str = "") -> Verdict:
    """Whether a method meets all its limits that may be taken for a use; judges all limits of the budget."""
    measurer = session.measurer.on(machine)
    limits: dict[str, list[LimitReport]] = {}
    measured = {}
    for method in budget.methods:
        needs = [method.gpu] if method.gpu is not None else []
        for limit in method.limits:
            verdict = verdict_on(session, budget, method, limit, needs, machine)
            limits.setdefault(method.name, []).append(LimitReport("", limit.name, limit.line, verdict))
            if verdict.measured is not None or verdict.outcome == WITHIN:
                measured[method.name] = measurer.measure(budget, method)
    given = advice.advise(budget, limits, measured, measurer.noise(budget))
    assert given is not None
    verdict = advice.on_use(use.name, budget, limits, given)
    return replace(verdict, message=printable(verdict.message))


def _verdict(
    session: Session,
    measurer: Measurer,
    budget: Budget,
    method: Method,
    asked: Limit | ChangeLimit,
    needs: Sequence[GpuNeed],
) -> Verdict:
    name = f"{method.name}: {asked.name}"
    limit = asked.limit if isinstance(asked, ChangeLimit) else asked
    if isinstance(asked, ChangeLimit) and session.history is None:
        return Verdict(SKIPPED, f"{name} has no history to compare with: --quant-history PLACE names one")
    why = unjudged(method.subject, limit.kind)
    if why is not None:
        return Verdict(SKIPPED, f"{name} {why}")
    base = budget.base if limit.kind.relation else None
    lacks = lacking(measurer, budget, method, base, limit, needs)
    measured = {}
    if lacks is None:
        measured = {method.name: measurer.measure(budget, method)}
        if base is not None and base is not method:
            measured[base.name] = measurer.baseline_of(budget, method, base)
        if needs and any(m.device is not None and m.device.name == "cpu" for m in measured.values()):
            lacks = "needs a GPU; one was found and torch cannot use it"
    if lacks is not None:
        return Verdict(SKIPPED, f"{name} {lacks}", for_want_of_gpu=True)
    if budget.stored is not None:
        measured[budget.stored.name] = budget.stored.measurement
    if isinstance(asked, ChangeLimit):
        try:
            past = session.past.runs
        except (OSError, ValueError, ImportError) as error:
            return Verdict(FAILED, f"{name} not judged: the history {safe(str(session.history))}: {safe(str(error))}")
        return judge_change(budget, method, asked, measured, past, measurer.cpu(budget, method))
    return judge(budget, method, limit, measured, measurer.noise(budget), measurer.cpu(budget, method))
