"""What the selected limits of a run need measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_quantbudget.core.budget import Budget, Method
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.request import Request


@dataclass
class Needs:
    """One request for each subject, which unites what all limits need of it; by the subject's key.

    `repeat_runs` says how many more times each budget's baseline is measured, to show how much equal runs differ.
    `files` holds, by the same keys, the name of the budget file that needed the subject first.
    """

    repeat_runs: int = 0
    requests: dict[str, Request] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, budget: Budget, method: Method, limits: Sequence[Limit] | None) -> None:
        """Add what `limits` of a method need (everything that the budget declares where None).

        Limits relative to the baseline need the same figures of it; with repeat runs, all limits do.
        """
        self._unite(budget, budget.request(method, limits))
        related = [limit for limit in limits or () if limit.kind.relation or self.repeat_runs]
        if related and budget.baseline is not None:
            self._unite(budget, budget.request(budget.method(budget.baseline), related))

    def _unite(self, budget: Budget, request: Request) -> None:
        key = request.subject.key
        self.requests[key] = self.requests[key].and_(request) if key in self.requests else request
        self.files.setdefault(key, budget.path.name)
