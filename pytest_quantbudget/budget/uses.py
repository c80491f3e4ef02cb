"""Reads `use`: what a method is wanted for, and which methods may be taken for it."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_quantbudget.core.budget import QLORA, USE, Method, Traits, Use
from pytest_quantbudget.core.engines import OPENAI, TRANSFORMERS
from pytest_quantbudget.core.problems import Marked, Problems
from pytest_quantbudget.core.request import Subject
from pytest_quantbudget.judge import advice
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.methods import Spec


def traits(spec: Spec, subject: Subject) -> Traits:
    """What a method is good for, whatever is measured of it."""
    ready = subject.checkpoint is None and spec.quantize is None and subject.engine != OPENAI
    return Traits(ready, spec.trains and subject.engine == TRANSFORMERS)


def read_uses(
    node: Marked | None, names: Sequence[str] | None, read: Sequence[Method], problems: Problems
) -> tuple[Use, ...]:
    """The uses that a budget names. One that none of its methods can pass is a mistake, added to `problems`."""
    if node is None or not names:
        return ()
    if USE in [method.name for method in read]:
        problems.add(node, f"{USE} is what the tests of this key are called by: name the method {USE!r} otherwise")
    places = node.items or (node,) * len(names)
    uses = tuple(Use(name, place.file, place.line, place.columns) for name, place in zip(names, places, strict=True))
    if read and not any(method.limits for method in read):
        problems.add(node, f"{USE}: no method has limits that it could meet")
        return uses
    for use in uses:
        rule = advice.RULES[use.name]
        may = [method for method in read if rule.may(method)]
        if read and not may:
            some = [name for name in methods.names() if methods.spec(name).trains]
            known = f"; {', '.join(some)} can" if use.name == QLORA else ""
            problems.add(use, f"{USE}: {use.name}: no method of this file {rule.lack}{known}")
        elif read and not any(method.limits for method in may):
            told = ", ".join(method.name for method in may)
            problems.add(use, f"{USE}: {use.name}: {told} may be taken for it, and no limit says what is asked of it")
    return uses
