"""The estimate in words: what `--quant-estimate` prints of one budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.problems import BudgetError, Marked, Problem, Problems, at, display_path
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.core.units import format_size
from pytest_quantbudget.models.estimate import memory
from pytest_quantbudget.models.estimate.architecture import UnknownModel
from pytest_quantbudget.models.estimate.fit import CARDS, fits
from pytest_quantbudget.models.estimate.memory import Estimate, LayerKind

AT_LEAST = "at least "


def lines(budget: Budget, gpus: Sequence[Gpu]) -> Iterator[str]:
    """Each method's figures, then what each card holds: common ones, and `gpus`.

    Raises BudgetError where there is no estimate: of the model, at its line, or of a method, at that one's.
    """
    of_model = budget.model_at or Marked(None, budget.path, 0)
    try:
        memory.check_model(budget.methods[0].subject)
    except ValueError as error:
        raise BudgetError(at(of_model, f"no estimate: {error}")) from None
    found: dict[str, Estimate] = {}
    problems = Problems()
    for method in budget.methods:
        try:
            found[method.name] = memory.estimate(method.subject, budget.workload)
        except UnknownModel as error:
            raise BudgetError(at(of_model, f"no estimate: {error}")) from None
        except ValueError as error:
            problems.extend([Problem(budget.path, method.line, f"{method.name}: no estimate: {error}")])
    problems.raise_any()
    for line in _lines(budget, found, gpus):
        yield printable(line)


def _lines(budget: Budget, found: Mapping[str, Estimate], gpus: Sequence[Gpu]) -> Iterator[str]:
    load = budget.workload
    yield f"estimate of {display_path(budget.path)}"
    tokens = f"{load.prompt_tokens:,} prompt tokens, {load.new_tokens:,} new tokens, batch size {load.batch_size:,}"
    yield f"{_model(budget.model)}: {_parameters(found.values())}{tokens}"
    yield ""
    yield from _aligned([_cells(name, made) for name, made in found.items()])
    for name, made in found.items():
        if made.kinds:
            yield f"{name}: {_bits(made)}"
        yield from (f"{name}: {note}" for note in made.notes)
    yield "peak: of torch's allocator, as in max_vram; process: with what lies outside of it; see docs/estimate.md"
    spread = {method.name: method.subject.gpus for method in budget.methods}
    cards = {**CARDS, **{f"{gpu.name}, of this machine": gpu.total for gpu in gpus}}
    for card, total in cards.items():
        room = {name: made for name, made in found.items() if fits(made, total, spread[name])}
        certain = [_on(name, spread[name]) for name, made in room.items() if not made.at_least]
        open_ = [_on(name, spread[name]) for name, made in room.items() if made.at_least]
        listed = [", ".join(certain)] * bool(certain) + [f"not ruled out: {', '.join(open_)}"] * bool(open_)
        yield f"fits {card} ({format_size(total)}): {'; '.join(listed) or 'none'}"


def _parameters(found: Iterable[Estimate]) -> str:
    """How many parameters the model has, where an estimate tells; all that do tell the same of one model."""
    first = next((made for made in found if made.parameters), None)
    if first is None:
        return ""
    return f"{AT_LEAST * first.at_least}{first.parameters:,} parameters; "


def _model(name: str) -> str:
    return display_path(Path(name)) if Path(name).is_absolute() else name


def _on(name: str, count: int) -> str:
    return name if count == 1 else f"{name} on {count}"


def _cells(name: str, made: Estimate) -> dict[str, str]:
    """A row of the table, by its heads."""
    parts = {kind.name: kind.bytes for kind in made.kinds}
    parts |= {"weights": made.weights, "KV cache": made.kv_cache or 0, "activations": made.activations or 0}
    parts |= {"peak": made.peak, "process": made.process}
    bound = AT_LEAST * made.at_least
    return {"method": name, **{head: f"{bound}{format_size(size)}" if size else "-" for head, size in parts.items()}}


def _aligned(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    heads = list(dict.fromkeys(head for row in sorted(rows, key=lambda row: -len(row)) for head in row))
    table = [heads, *[[row.get(head, "-") for head in heads] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *figures in table:
        yield "  ".join([name.ljust(widths[0]), *[f.rjust(w) for f, w in zip(figures, widths[1:], strict=True)]])


def _bits(made: Estimate) -> str:
    """Which kinds of layers are kept in how many bits, and what that takes."""
    by_bits: dict[int, list[LayerKind]] = {}
    for kind in made.kinds:
        if kind.bytes:
            by_bits.setdefault(kind.bits, []).append(kind)
    return "; ".join(f"{bits} bits: {_kinds(kinds)}" for bits, kinds in sorted(by_bits.items()))


def _kinds(kinds: Sequence[LayerKind]) -> str:
    scales = sum(kind.scales for kind in kinds)
    part = f", of that {format_size(scales)} scales and zero points" if scales else ""
    return f"{', '.join(kind.name for kind in kinds)} ({format_size(sum(kind.bytes for kind in kinds))}{part})"
