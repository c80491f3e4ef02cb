"""The text of a first budget: YAML with comments, whatever the names in it hold."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pytest_quantbudget.budget.first.asked import Asked
from pytest_quantbudget.budget.first.wish import Choice, Planned, Wish
from pytest_quantbudget.core.budget import EDGE, PRODUCTION, QLORA
from pytest_quantbudget.core.engines import VLLM
from pytest_quantbudget.core.limits import AUTO
from pytest_quantbudget.core.request import Workload
from pytest_quantbudget.core.safetext import printable
from pytest_quantbudget.models import methods

PLAIN = re.compile(r"(?:\.{0,2}/|[A-Za-z])[\w./+-]*", re.ASCII)
# Words that a reader of YAML takes for something else than text.
NO_TEXT = re.compile("y|n|yes|no|on|off|true|false|null", re.IGNORECASE)
COLUMNS = 110
LEAST_VRAM = 2**30  # bytes below which any GPU will do
# What each limit says, where it stands first.
MEANT = {
    "max_vram": "peak GPU memory of the workload",
    "max_weights": "parameters and buffers as loaded",
    "max_disk": "the files that hold the weights",
    "min_tokens_per_s": "decode throughput; it holds for one kind of machine",
    "max_ttft": "time to first token",
}


def text_of(wish: Wish, choice: Choice, asked: Asked, workload: Workload, commands: Sequence[tuple[str, str]]) -> str:
    """The budget as YAML. `commands` are shell commands with what each does, for the comment at its top."""
    return "\n".join([*_head(wish, choice, commands), *_body(wish, choice, asked, workload), *_tail(choice)]) + "\n"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """A comment of as many lines as it takes. Nothing in it can end the line."""
    room, hanging = COLUMNS - len(indent), "  " + text[: len(text) - len(text.lstrip())]
    for line in textwrap.wrap(
        printable(text), room, subsequent_indent=hanging.strip("\n"), break_long_words=False, break_on_hyphens=False
    ):
        yield f"{indent}# {line}"


def _head(wish: Wish, choice: Choice, commands: Sequence[tuple[str, str]]) -> Iterator[str]:
    used = f" (use: {wish.use})" if wish.use else ""
    yield from _comment(f"A first budget for {wish.model}{used}, written by `python -m pytest_quantbudget init`.")
    yield "#"
    written = "Its limits read `auto`: a run that measures writes them, each with a margin for noise."
    yield from _comment(f"{written} A number is a requirement, which stays; set those that you have yourself.")
    for command, does in commands:
        yield f"#   {printable(command)}"
        yield from _comment(f"      {does}")
    if wish.found.code:
        yield from _comment("The model brings code of its own, which only --quant-trust-remote-code runs.")
    if wish.found.pickled:
        yield from _comment("Its weights are pickles, which only --quant-allow-pickle reads.")
    gone = sorted({package for each in choice.planned for package in each.missing})
    if gone:
        yield from _comment(f"Not installed here, so that its limits skip: {methods.pip_command(*gone)}")


def _body(wish: Wish, choice: Choice, asked: Asked, workload: Workload) -> Iterator[str]:
    yield f"model: {scalar(wish.model)}"
    if wish.revision is not None:
        yield f"revision: {scalar(wish.revision)}"
    if choice.baseline is not None:
        yield f"baseline: {choice.baseline}"
    if wish.use is not None:
        yield f"use: {wish.use}".ljust(34) + "  # one of the methods has to meet all its limits: docs/advice.md"
    if wish.calibration is not None and any(_is_made_on_texts(each) for each in choice.planned):
        yield f"calibration: {scalar(wish.calibration)}"
    names = ("prompt_tokens", "new_tokens", "batch_size", "repeats")
    yield f"workload: {flow({name: getattr(workload, name) for name in names})}"
    if asked.name:
        yield "tasks:"
        for remark in asked.remarks:
            yield from _comment(remark, "  ")
        yield f"  {asked.name}: {flow(asked.settings)}"
    else:
        for remark in asked.remarks:
            yield from _comment(remark)
    yield "methods:"
    said: set[str] = set()
    for each in choice.planned:
        yield from _method(wish, choice, asked, each, said)


def _is_made_on_texts(planned: Planned) -> bool:
    spec = methods.spec(planned.kind)
    return spec.quantize is not None and spec.calibrated


def _method(wish: Wish, choice: Choice, asked: Asked, planned: Planned, said: set[str]) -> Iterator[str]:
    yield f"  {planned.name}:"
    for remark in planned.remarks:
        yield from _comment(remark, "    ")
    if planned.missing:
        yield from _comment(methods.pip_command(*planned.missing), "    ")
    for key, value in planned.keys.items():
        yield f"    {key}: {flow(value)}"
    if wish.use == QLORA and wish.adapter is None and planned.name != choice.baseline:
        yield from _comment("adapter: DIRECTORY   the LoRA adapter that was trained on it, as PEFT saves it", "    ")
    if wish.cards and planned.needs is not None and planned.needs >= LEAST_VRAM:
        yield f"    gpu: {{min_vram: {_room(planned.needs, wish)}}}"
    yield "    budget:"
    for name, value in _limits(wish, asked, planned, choice.baseline):
        lost = f"points lost against {choice.baseline}, on the same questions"
        meant = MEANT.get(name, lost if name.endswith("_drop") else "")
        line = f"      {name}: {flow(value)}"
        yield line if not meant or name in said else f"{line.ljust(34)}  # {meant}"
        said.add(name)


def _room(needs: int, wish: Wish) -> str:
    """The memory that a method needs, rounded up, but to no more than what the largest card has."""
    tenths = min(math.ceil(needs / 2**30 * 10), math.floor(max(card.total for card in wish.cards) / 2**30 * 10))
    return f"{tenths / 10:g} GiB"


def _limits(wish: Wish, asked: Asked, planned: Planned, baseline: str | None) -> Iterator[tuple[str, Any]]:
    """The limits of one method."""
    compared = baseline is not None and planned.name != baseline
    if asked.name:
        yield (f"max_{asked.name}_drop", AUTO) if compared else (f"min_{asked.name}", AUTO)
    if planned.decompressed:
        return
    if wish.cards and wish.use != EDGE and planned.engine != VLLM:
        yield "max_vram", AUTO
    else:
        yield "max_weights", AUTO
    if wish.use == EDGE:
        yield "max_disk", AUTO
    if wish.use == PRODUCTION or (wish.use is None and wish.cards):
        patterns = [card.pattern for card in wish.cards]
        of_gpu = dict.fromkeys(patterns, AUTO) if patterns and all(patterns) else AUTO
        yield "min_tokens_per_s", of_gpu
        if wish.use == PRODUCTION:
            yield "max_ttft", of_gpu


def _tail(choice: Choice) -> Iterator[str]:
    if choice.left_out:
        yield "# Left out:"
        for name, why in choice.left_out:
            yield from _comment(f"  {name}: {why}")


def scalar(value: object) -> str:
    """A value as YAML on one line: text in quotes wherever it could be read as something else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value}"
    text = str(value)
    if text == AUTO or (PLAIN.fullmatch(text) and not NO_TEXT.fullmatch(text)):
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.removesuffix("\n")


def flow(value: object) -> str:
    """A value, or a mapping on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{scalar(key)}: {flow(each)}' for key, each in value.items())}}}"
    return scalar(value)
