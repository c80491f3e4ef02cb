"""How long a run is going to take: by what earlier runs took, else by sizes and rates that are assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.answers import draft_id
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.measurement import Measurement, merge
from pytest_quantbudget.core.request import (
    NO_TRUST,
    DivergenceOf,
    LoadTime,
    Part,
    Reply,
    Request,
    Subject,
    Task,
)
from pytest_quantbudget.measure.job import Drafts
from pytest_quantbudget.measure.keys import Keys, keys_of
from pytest_quantbudget.measure.recall import recall
from pytest_quantbudget.measure.store import Store
from pytest_quantbudget.models import engines, hub
from pytest_quantbudget.models.estimate.duration import NOTHING, START_S, Reckoned, Span

LARGEST_HASHED = 2**31  # bytes of a directory that is hashed only to look its figures up


@dataclass(frozen=True)
class Expected:
    """What is to be done for one subject: the parts that are `kept` by an earlier run, and those that are measured.

    `seconds` is how long that takes, None where nothing is known. `measured` says that all of it rests on what such
    parts took before. `why` is why nothing was looked up, empty where it was.
    """

    kept: tuple[Part, ...]
    parts: tuple[Part, ...]
    seconds: Span | None
    measured: bool = False
    why: str = ""


class Expecting:
    """Looks up and reckons for the requests of a run. `cache` is a local directory, `store` where results are kept."""

    def __init__(self, cache: Path | None, store: str | None, gpus: Sequence[Gpu]) -> None:
        self.gpus = gpus
        self.cache = cache
        self.store = Store(store) if store is not None and cache is not None else None
        self.drafts: dict[str, Drafts] = {}

    def expect(self, request: Request, budget: Budget, baseline: Request | None) -> Expected:
        """What is to be expected of one request. A `baseline` is looked up before the methods compared with it."""
        keys, why = self._keys(request)
        drafts = self.drafts.get(baseline.subject.key, {}) if baseline is not None else {}
        kept: tuple[Part, ...] = ()
        rest: tuple[Part, ...] = request.parts
        recalled: Measurement | None = None
        if keys is not None and self.store is not None:
            device = self.gpus[0].name if self.gpus else "cpu"
            found, left = recall(self.store, request, keys, drafts, {}, device)
            recalled = merge(found) if found else None
            left_parts = left.parts if left is not None else ()
            kept = tuple(part for part in request.parts if part not in left_parts)
            rest = tuple(part for part in request.parts if part in left_parts)
            if left is None:
                self._note(request, recalled)
                return Expected(kept, (), NOTHING, measured=True)
            rest = rest or tuple(part for part in (LoadTime(),) if part not in kept)
        self._note(request, recalled)
        seconds, measured = self._seconds(request.subject, rest, budget, keys, drafts)
        return Expected(kept, rest, seconds, measured, why)

    def _note(self, request: Request, recalled: Measurement | None) -> None:
        tasks = recalled.tasks if recalled is not None else ()
        self.drafts[request.subject.key] = {result.task: result for result in tasks}

    def _keys(self, request: Request) -> tuple[Keys | None, str]:
        """The keys of a request's figures, and why there are none."""
        if self.store is None or self.cache is None:
            return None, "nothing is kept"
        subject = request.subject
        if subject.python is not None or subject.server is not None:
            return None, "what another interpreter or a server has measured is not looked up"
        memo = self.cache / "hashes"
        adapter = subject.adapter.name if subject.adapter is not None else None
        for path in map(Path, filter(None, (subject.model, subject.checkpoint, adapter))):
            if path.is_absolute() and _too_large(path) and not hub.is_hashed(path, memo):
                return None, f"{path.name} was not measured here yet"
        try:
            found = keys_of(_of_cache(request), self.gpus[: subject.gpus], NO_TRUST, memo)
        except ImportError:  # the hub's library, which knows what is in its cache
            found = None
        return found, "" if found is not None else "its revision is not on this machine"

    def _seconds(
        self, subject: Subject, parts: Iterable[Part], budget: Budget, keys: Keys | None, drafts: Drafts
    ) -> tuple[Span | None, bool]:
        """How long some parts take, with loading; and whether earlier runs tell all of it."""
        reckoned = Reckoned.of(subject, budget.workload, budget.totals, on_gpu=bool(self.gpus))
        total, measured = Span(*START_S), True
        loading = self._took(LoadTime(), keys, None)
        quantizes = engines.makes_first(subject)
        steps: list[Span | None] = []
        if loading is None:
            measured = False
            steps += [reckoned.load() if reckoned else None]
            steps += [reckoned.quantize() if reckoned else None] * quantizes
        else:
            steps.append(loading)
        for part in parts:
            if isinstance(part, LoadTime):
                continue
            took = self._took(part, keys, draft_id(drafts.get(part)) if isinstance(part, Task) else None)
            measured &= took is not None or isinstance(part, Reply)
            steps.append(took or (reckoned.part(part) if reckoned else None))
        known = [step for step in steps if step is not None]
        return (sum(known, total), measured) if len(known) == len(steps) else (None, False)

    def _took(self, part: Part, keys: Keys | None, answers: str | None) -> Span | None:
        """How long a part took when it was last measured, however long ago."""
        if keys is None or self.store is None or isinstance(part, DivergenceOf):
            return None
        entry = self.store.get(keys.of(part, answers))
        if entry is None:
            return None
        try:
            seconds = seconds_of(codec.from_builtins(Measurement, entry.payload))
        except ValueError:
            return None
        return Span(0.7 * seconds, 1.5 * seconds)


def seconds_of(figures: Measurement) -> float:
    """How long the figures of one part took, as far as they tell."""
    speeds = (s for speed in figures.speeds for s in (*speed.ttft_s, *speed.decode_s, *speed.warmup_s, speed.compile_s))
    tasks = (result.seconds for result in figures.tasks)
    loads = (level.seconds for result in figures.loads for level in result.levels)
    return sum(filter(None, (figures.load_time_s, figures.quantize_s, figures.kernels_s, *speeds, *tasks, *loads)))


def _too_large(path: Path) -> bool:
    try:
        files = [path] if path.is_file() else list(path.iterdir())
        return sum(each.stat().st_size for each in files if each.is_file()) > LARGEST_HASHED
    except OSError:
        return False


def _of_cache(request: Request) -> Request:
    """The request with the commit that the hub's cache has of its model."""
    subject = request.subject
    if Path(subject.model).is_absolute():
        return request
    try:
        commit = hub.snapshot(subject.model, subject.revision).name
    except (OSError, ImportError):
        return request
    return replace(request, subject=replace(subject, revision=commit))


def longest(methods_: Mapping[str, Expected]) -> Span | None:
    """All of them together; None where one is not known."""
    spans = [each.seconds for each in methods_.values()]
    return None if any(span is None for span in spans) else sum(filter(None, spans), NOTHING)
