"""One run: its budgets, what its limits need measured, who measures, and what became of them. Knows no pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pytest_quantbudget.budget.find import Budgets
from pytest_quantbudget.core.budget import USE, Budget, Method
from pytest_quantbudget.core.changes import ChangeLimit
from pytest_quantbudget.core.limits import Limit
from pytest_quantbudget.core.verdict import NOT_RUN, LimitReport, Verdict
from pytest_quantbudget.judge.needs import Needs

if TYPE_CHECKING:
    from pytest_quantbudget.core.measurement import Measurement
    from pytest_quantbudget.measure.runner import Runner
    from pytest_quantbudget.report.document import Judged
    from pytest_quantbudget.report.history import Past
    from pytest_quantbudget.report.stored_run import StoredRun

    # Where a run's measurements come from. Nothing here asks which of the two it is.
    Measurer: TypeAlias = Runner | StoredRun


@dataclass
class Session:
    """The state of one run, in the controller or in a worker.

    `limits` are the selected ones, by the ids of their tests; `needs` is what they need measured. With `require_gpu`,
    what is skipped for want of a GPU or a package fails, and with `fail_on_skip` everything that is skipped.
    `make_measurer` is called once, when something is to be measured. `history` is where earlier runs are kept.
    `machines` are the kinds of machine that a method, or any of a budget, was measured on; one without a name where all
    is from one.
    """

    root: Path
    budgets: Budgets
    needs: Needs
    make_measurer: Callable[[Needs], Measurer]
    require_gpu: bool = False
    fail_on_skip: bool = False
    history: str | None = None
    machines: Callable[[Budget, str | None], tuple[str, ...]] = lambda budget, method: ("",)
    limits: dict[str, LimitReport] = field(default_factory=dict)
    _paths: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def measurer(self) -> Measurer:
        """Where the run's measurements come from."""
        return self.make_measurer(self.needs)

    @cached_property
    def past(self) -> Past:
        """The earlier runs that are kept; none without a history. Raises OSError where that cannot be read."""
        from pytest_quantbudget.report import history

        return history.read(self.history) if self.history is not None else history.Past()

    def plan(self, budget: Budget, method: Method, limits: Sequence[Limit] | None) -> None:
        """Plan what `limits` of a method need (everything that the budget declares where None)."""
        # Reading and listing budgets needs no rules of judging.
        from pytest_quantbudget.judge.verdict import unjudged

        if limits is not None:
            limits = [limit for limit in limits if unjudged(method.subject, limit.kind) is None]
            if not limits:
                return
        self.needs.add(budget, method, limits)

    def select(self, ids: Iterable[str]) -> None:
        """Plan the limits with these ids; each is `not run` until it is judged. Ids of other tests are left alone."""
        chosen: dict[tuple[Path, str], list[Limit]] = {}
        for id_ in ids:
            file, _, rest = id_.partition("::")
            path = self._path(file)
            if path not in self.budgets.loaded or id_ in self.limits:
                continue
            name, _, limit_name = rest.partition("[")[0].partition("::")
            known = [limit for m in self.budgets.loaded[path].methods if m.name == name for limit in m.all_limits]
            limit = next((limit for limit in known if limit.name == limit_name), None)
            use = next((use for use in self.budgets.loaded[path].uses if (name, limit_name) == (USE, use.name)), None)
            verdict = Verdict(NOT_RUN, "selected and never judged")
            place = limit or use
            self.limits[id_] = LimitReport(id_, limit_name, place.line if place else 0, verdict)
            if limit is not None:
                chosen.setdefault((path, name), []).append(limit.limit if isinstance(limit, ChangeLimit) else limit)
            for method in self.budgets.loaded[path].methods if use is not None else ():
                # It rests on all limits, whichever of them have tests in this run.
                chosen.setdefault((path, method.name), []).extend(method.limits)
        for (path, name), limits in chosen.items():
            budget = self.budgets.loaded[path]
            self.plan(budget, budget.method(name), limits)

    def _path(self, file: str) -> Path:
        if file not in self._paths:
            self._paths[file] = self.budgets.odd[file] if file in self.budgets.odd else (self.root / file).resolve()
        return self._paths[file]

    def record(self, id_: str, verdict: Verdict) -> None:
        """Note the verdict on a limit."""
        self.select([id_])
        self.limits[id_] = replace(self.limits[id_], verdict=verdict)

    def places(self) -> dict[str, tuple[Path, int]]:
        """Of each selected limit the file and the line that it stands on: with `extends`, of whichever file."""
        found: dict[str, tuple[Path, int]] = {}
        for budget, limits in self.selected():
            places = {
                (method.name, each.name): (each.file, each.line)
                for method in budget.methods
                for each in method.all_limits
            }
            places |= {(USE, use.name): (use.file, use.line) for use in budget.uses}
            here = {limit.id: (limit.method, limit.name) for limit in limits}
            found |= {id_: places[name] for id_, name in here.items() if name in places}
        return found

    def not_run(self) -> list[LimitReport]:
        """Selected limits without a verdict."""
        return [limit for limit in self.limits.values() if limit.verdict.outcome == NOT_RUN]

    def selected(self) -> Iterator[tuple[Budget, list[LimitReport]]]:
        """The budgets with selected limits, each with these in the order of the file's lines."""
        for path, budget in self.budgets.loaded.items():
            mine = [limit for limit in self.limits.values() if self._path(limit.id.partition("::")[0]) == path]
            if mine:
                names = [(method.name, limit.name) for method in budget.methods for limit in method.all_limits]
                order = {name: i for i, name in enumerate(names)}
                yield budget, sorted(mine, key=lambda limit: order.get((limit.method, limit.name), len(order)))

    def judged(self, measurements: Mapping[str, Measurement]) -> list[Judged]:
        """The budgets with selected limits, and what these rest on, each kind of machine for itself.

        `measurements` are those of the run.
        """
        from pytest_quantbudget.report.document import Judged

        found = []
        for budget, limits in self.selected():
            by_machine: dict[str, list[LimitReport]] = {machine: [] for machine in self.machines(budget, None)}
            for limit in limits:
                by_machine.setdefault(self._machine(budget, limit), []).append(limit)
            for machine, mine in by_machine.items():
                if mine:
                    source = self.measurer.on(machine)
                    measured = source.measured(budget, measurements)
                    noise = source.noise(budget, measured)
                    told = source.reports(budget), source.against(budget)
                    found.append(Judged(budget, mine, noise, measured, machine, *told))
        return found

    def _machine(self, budget: Budget, limit: LimitReport) -> str:
        """The kind of machine that a limit was judged on: only of several has it to stand in the id."""
        own = self.machines(budget, limit.method) if limit.method != USE else ()
        return limit.machine or next(iter((*own, *self.machines(budget, None))), "")
