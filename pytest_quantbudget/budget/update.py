"""`--quant-update`: what was measured becomes the budget's limits, written where they stand."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantbudget.budget import limits
from pytest_quantbudget.budget.edit import Document, Unplaced
from pytest_quantbudget.budget.yaml import MAX_BYTES
from pytest_quantbudget.core import files
from pytest_quantbudget.core.budget import USE, Budget, Method
from pytest_quantbudget.core.limits import Limit, Target
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.problems import BudgetError, display_path
from pytest_quantbudget.core.safetext import Line, printable
from pytest_quantbudget.core.verdict import LimitReport, Update
from pytest_quantbudget.judge import margin
from pytest_quantbudget.judge.margin import RATE, Calibrated, NoMargin
from pytest_quantbudget.judge.metrics.reference import PublishedScore
from pytest_quantbudget.report.document import Judged

# Write where the budget has `auto`; also where that tightens a limit; everywhere. By default, numbers are requirements.
AUTO, TIGHTEN, ALL = MODES = ("auto", "tighten", "all")
COLOURS = {"+": {"green": True}, "-": {"red": True}, "@": {"cyan": True}}


class Kept(Exception):
    """A limit stays as it is; the message says why."""


@dataclass
class _Proposal:
    """A limit and what it would become (None where that is not known); `why` says why it stays instead."""

    report: LimitReport
    method: Method
    limit: Limit
    target: Target | None
    found: Calibrated | None = None
    why: str = ""

    @property
    def changed(self) -> Limit:
        """The limit as it would be."""
        if self.found is None or self.target is None or self.why:
            return self.limit
        new = replace(self.target, value=self.found.value, text=self.found.text)
        return replace(self.limit, targets=tuple(new if t is self.target else t for t in self.limit.targets))

    def update(self, rate: float) -> Update:
        """What was done, once it is done."""
        old = self.target.text if self.target else "as it is"
        if self.found is None or self.why:
            return Update(old, rate=rate, why=self.why)
        return Update(old, self.found.text, self.found.words, rate)


def run(
    judged: Iterable[Judged],
    texts: Mapping[Path, bytes],
    mode: str,
    rate: float = RATE,
) -> tuple[dict[str, Update], list[Line]]:
    """Write the limits that `mode` (see `MODES`) names; what was done, by the tests' ids, and lines that say so.

    `texts` are the budget files as they were read; `rate` is the share of repeat runs that may fail.
    """
    updates: dict[str, Update] = {}
    lines: list[Line] = []
    for part in judged:
        budget, runs = part.budget, part.noise.values if part.noise else {}
        asked = [_propose(budget, each, part.beside(each.method), runs, mode, rate) for each in part.limits]
        proposals = [proposal for proposal in asked if proposal is not None]
        _refuse_contradictions(budget, proposals)
        writable = [proposal for proposal in proposals if not proposal.why]
        # Not the name that the budget has: a link stays one.
        path = budget.path.resolve()
        before, after = _write(path, texts[path], writable)
        lines.append(Line(f"--quant-update of {display_path(budget.path)}", title=True))
        for proposal in proposals:
            update = updates[proposal.report.id] = proposal.update(rate)
            lines.append(_line(proposal, update))
        if before == after:
            said = "nothing was written" if proposals else "no selected limit had to be written"
            lines.append(Line(said))
        lines += _diff(budget.path, before, after)
    return updates, lines


def _propose(
    budget: Budget,
    report: LimitReport,
    measured: Mapping[str, Measurement],
    runs: Mapping[str, Sequence[float]],
    mode: str,
    rate: float,
) -> _Proposal | None:
    """What one limit would become; None where the mode leaves it alone, or where it would stay the same."""
    if budget.uses and report.method == USE:
        return None
    method = budget.method(report.method)
    limit = next((limit for limit in method.limits if limit.name == report.name), None)
    if limit is None or limit.kind.metric == PublishedScore.name:
        # How much worse a run may be than those before it is a requirement, and so is what others have measured.
        return None
    record = measured.get(method.name)
    device = record.device.name if record and record.device else ""
    target = limit.target(device) if device else limit.targets[0]
    if mode == AUTO and all(each.value is not None for each in ([target] if target else limit.targets)):
        return None
    proposal = _Proposal(report, method, limit, target)
    try:
        if report.verdict.measured is None:
            raise Kept(report.verdict.message.removeprefix(f"{method.name}: {limit.name} "))
        if target is None:
            raise Kept(f"no entry is for {device!r}")
        if limit.file.resolve() != budget.path.resolve():
            raise Kept("it is in a file that this one extends; a run of that file writes it")
        unit = target.unit if target.value is not None else ""
        proposal.found = found = margin.calibrated(budget, method.name, limit, unit, measured, rate, runs)
        if target.value == found.value:
            return None
        looser = target.value is not None and (found.value > target.value) == (limit.kind.bound == "max")
        if looser and mode != ALL:
            raise Kept(f"{found.text} would be looser ({found.words}), which only --quant-update=all writes")
    except (Kept, NoMargin) as why:
        proposal.why = str(why)
    return proposal


def _refuse_contradictions(budget: Budget, proposals: Sequence[_Proposal]) -> None:
    """What would make a budget that is refused stays: the part rather than the whole."""
    for method in budget.methods:
        mine = {p.limit.name: p for p in proposals if p.method is method and p.changed is not p.limit}
        while found := limits.contradictions([mine[x.name].changed if x.name in mine else x for x in method.limits]):
            inner, outer, message = found[0]
            refused = mine.pop(inner.name if inner.name in mine else outer.name)
            refused.why = message


def _write(path: Path, text: bytes, proposals: Sequence[_Proposal]) -> tuple[str, str]:
    """The file's text before and after; equal where nothing was written, which the proposals then know."""
    if not proposals:
        return "", ""
    try:
        before = _untouched(path, text)
        document = Document(before, path)
        news = {}
        for proposal in proposals:
            assert proposal.target is not None
            assert proposal.found is not None
            keys = ("methods", proposal.method.name, "budget", proposal.limit.name, proposal.target.pattern)
            try:
                news[document.place(keys)] = proposal.found.text
            except Unplaced as why:
                proposal.why = str(why)
        after = document.replaced(news)
        if after != before:
            files.write(path, after.encode(), path.stat().st_mode & 0o7777)
    except (Kept, Unplaced, BudgetError, OSError) as error:
        failed = str(error)
        if isinstance(error, OSError):
            failed = f"{display_path(path)} cannot be written: {error.strerror or error}"
        for proposal in proposals:
            proposal.why = proposal.why or failed
        return "", ""
    return before, after


def _untouched(path: Path, text: bytes) -> str:
    """The text of a file that may be written, and that is still the `text` that was judged. Raises Kept, OSError."""
    try:
        raw = files.read(path, MAX_BYTES)
    except files.TooLarge:
        raw = b""
    if raw != text:
        raise Kept(f"{display_path(path)} was changed while the tests ran")
    if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):  # root may write everything
        raise Kept(f"{display_path(path)} is read-only")
    return raw.decode("utf-8")


def _line(proposal: _Proposal, update: Update) -> Line:
    """`b.yaml:7 nf4: max_gsm8k_drop auto -> 3.1: measured ...`."""
    limit = proposal.limit
    name = f"{display_path(limit.file)}:{limit.line} {proposal.method.name}: {limit.name}"
    if not update.new:
        return Line(printable(f"{name} stays {update.old}: {update.why}"), markup={"yellow": True})
    words = f"{update.words}; at most {100 * update.rate:g} % of repeat runs fail"
    return Line(printable(f"{name} {update.old} -> {update.new}: {words}"))


def _diff(path: Path, before: str, after: str) -> Iterator[Line]:
    name = display_path(path)
    for text in difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm=""):
        yield Line(printable(text), markup=COLOURS.get(text[0], {}))
