"""Near-valid inputs, drawn from the code's own tables and records, and edits that keep most of an input's structure.

Everything draws from a `random.Random`, so that libFuzzer's seeds and hypothesis' choices both can drive it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from fuzz_targets import KEY, SEPARATOR

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core import codec, limits, units
from pytest_quantbudget.core import fields as grammar
from pytest_quantbudget.core.answers import TaskResult
from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Task, Workload
from pytest_quantbudget.core.verdict import FAILED, NOT_RUN, OVER, SKIPPED, WITHIN
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.measure import store
from pytest_quantbudget.models import methods
from pytest_quantbudget.report import document
from pytest_quantbudget.report.document import Report

WORDS = (
    *methods.MODULES, *metrics.limits(), *(field.name for field in (*keys.FILE, *keys.METHOD)),
    WITHIN, OVER, SKIPPED, FAILED, NOT_RUN,
    "gsm8k", "t", "min_t", "max_t_drop", "max_t_flips", "strict", "flexible", "builtin", "cpu", "NVIDIA H100*", "*",
    "Qwen/Qwen3-8B", ".", "./parent.yaml", "./questions.jsonl", "budget.yaml", "a", "slow", "GiB", "x", "%", "points",
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\n", "\0", "\x1b[31m", "\u202e", "\u2028", "\ud800", "\U0001f535", "\ufeff", "e\u0301", "~nobody", "~",
    "/", "..", "a/../b", "**", "[", "[!", "x.**", "x.[", "?", "{}", "%s", "{0}", "nan", "null", "true", "1e5", "-",
    "a" * 300, "\u0663", "\u00b2 GiB", "0 GiB", "1e400 GiB", "1e-400 s", "9" * 50 + " B", "1_0 MB", "-1 s", "17GiB",
)  # fmt: skip
ODD_NUMBERS = (
    0, 1, 2, -1, 4, 100, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**99, 10**400, 0.0, -0.0, 0.5, 5e-324, 1e-9, 1e16,
    1e308, -1e308, 1.5e300, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
ODD_YAML = (
    "~", ".nan", "-.inf", "1e999", "0x1F", "0o17", "0b1", "1_000", "12:30:45", "2026-13-45", "2026-02-30T25:00:00Z",
    "!!python/object/apply:os.system [x]", "!!binary AAA", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]", "!!int x",
    "!!float {}", "!!str [a]", "!!null x", "!!bool maybe", "!!timestamp x", "!<tag:x> 1", "! 1", "&a [*a]",
    "&a {b: *a}", "&a", "*a", "*b", "<<: *a", "<<: [*a, *a]", "<<: 1", "<<: {a: {b: c}}", '"\\ud800"', '"\\0"',
    '"\\x"', '"\\u12"', "'", '"', "|", "0x" + "f" * 90, "1" + ":59" * 40 + ".5", "x.**", "%TAG ! a", ">-", "|9",
    '"\\UFFFFFFFF"', ">\n\n  a", "? a", "? [a]\n: b", "- a", "{", "}", "[", "]", "{a, b}", "[[[[]]]]", "---", "...",
    "%YAML 9.9", "\t", "\ufeff", "\x85", "\u2028", "@", "`", "=", "9" * 400, "17 GiB", "80 ms", "#", ": ", "- - - -",
    "extends: parent.yaml", "extends: budget.yaml", "calibration: builtin", "baseline: fp32",
)  # fmt: skip
MADE = "2026-11-22T12:00:00Z"
PLAIN = re.compile(r"[A-Za-z./_][\w./* -]*")


def text(rng: Random) -> str:
    """A word of the formats, sometimes an odd one."""
    return rng.choice(ODD_TEXTS) if rng.random() < 0.1 else rng.choice(WORDS)


def number(rng: Random) -> int | float:
    """A small count, sometimes an odd number."""
    return rng.choice(ODD_NUMBERS) if rng.random() < 0.2 else rng.randrange(1, 9)


class Records:
    """Draws records from their type hints; one workload and one set of tasks serve a whole report, so that it fits."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.shared: dict[type, list[Any]] = {}

    def draw(self, hint: Any) -> Any:
        """Builtins of the hint's form; rarely of another."""
        rng, origin, args = self.rng, typing.get_origin(hint), typing.get_args(hint)
        if rng.random() < 0.003:
            return odd(rng)
        if hint is Any:
            return rng.choice([text(rng), number(rng), True, None, [], {}])
        if origin in (types.UnionType, typing.Union):
            return None if rng.random() < 0.2 else self.draw(args[0])
        if origin is tuple:
            return [self.draw(args[0]) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
        if origin is dict:
            return {text(rng): self.draw(args[1]) for _ in range(rng.choice((0, 1, 2)))}
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type, hint))
        if hint is bool:
            return rng.random() < 0.5
        if hint in (int, float):
            found = number(rng)
            return found if hint is float or isinstance(found, int) else 1
        return text(rng)

    def record(self, cls: type) -> Any:
        """The fields of a record; workloads and tasks come from the shared ones."""
        known = self.shared.setdefault(cls, [])
        if cls in (Workload, Task) and known and self.rng.random() < 0.9:
            return self.rng.choice(known)
        hints = codec._hints(cls)
        drawn = {field.name: self.draw(hints[field.name]) for field in dataclasses.fields(cls)}
        if cls is TaskResult and self.rng.random() < 0.8:
            drawn["answers"] = (drawn["answers"] * 2 or [])[:2] if isinstance(drawn["answers"], list) else []
        if cls is Report:
            drawn["version"] = document.VERSION
        known.append(drawn)
        return drawn


def odd(rng: Random) -> Any:
    """Any JSON value, of the kinds that break things."""
    deep: Any = 1
    for _ in range(rng.choice((1, 3, 70))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice([None, True, text(rng), rng.choice(ODD_TEXTS), rng.choice(ODD_NUMBERS), [], {}, [{}], deep])


def report(rng: Random) -> bytes:
    """A near-valid report."""
    return dump(Records(rng).draw(Report))


def dump(value: Any) -> bytes:
    """As JSON, whatever the value holds."""
    return json.dumps(value).encode()


def edit_json(data: bytes, rng: Random) -> bytes | None:
    """A few values of a JSON document replaced, taken out, doubled or swapped; None where it is no JSON."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(root))
        if not places:
            return dump(odd(rng))
        holder, key = rng.choice(places)
        action = rng.randrange(7)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[text(rng)] = holder[key]
        elif action == 2 and isinstance(holder, list):
            holder.append(holder[key])
        elif action == 3 and isinstance(holder, list) and len(places) < 1000 and len(str(holder[key])) < 300:
            holder.extend([holder[key]] * rng.choice((10, 100, 1_000)))
        elif action == 4:
            other, at = rng.choice(places)
            if at in other if isinstance(other, dict) else at < len(other):
                holder[key] = json.loads(json.dumps(other[at]))
        elif action == 5 and isinstance(holder[key], int | float):
            holder[key] = rng.choice(ODD_NUMBERS)
        else:
            holder[key] = odd(rng)
    return dump(root)


def _places(root: Any) -> typing.Iterator[tuple[Any, Any]]:
    waiting = [root]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ():
            yield holder, key
            waiting.append(holder[key])


def edit_report(data: bytes, rng: Random) -> bytes | None:
    """An edit of a report; now and then a whole new one."""
    return report(rng) if rng.random() < 0.15 else edit_json(data, rng)


def entry(rng: Random) -> bytes:
    """The JSON of a near-valid entry; rarely a whole one with its checksum, or one of another key."""
    drawn = Records(rng)
    drawn.shared[Workload] = [{"prompt_tokens": 4, "new_tokens": 4, "batch_size": 1, "repeats": 5}]
    payload = drawn.draw(rng.choice((Measurement, Measurement, TaskResult)))
    key = odd(rng) if rng.random() < 0.02 else KEY
    made = rng.choice(("2026-02-30T25:00:00Z", "", "9999-12-31T23:59:59Z", None)) if rng.random() < 0.02 else MADE
    body = dump({"key": key, "made": made, "payload": payload})
    whole = f"{store.MAGIC} {hashlib.sha256(body).hexdigest()}\n".encode() + body + b"\n"
    return whole if rng.random() < 0.1 else body


def edit_entry(data: bytes, rng: Random) -> bytes | None:
    """An edit of an entry's JSON; now and then a whole new one."""
    return entry(rng) if rng.random() < 0.15 else edit_json(data, rng)


def budget_files(rng: Random) -> bytes:
    """A near-valid budget, sometimes with a parent, sometimes with questions."""
    parts = [_budget(rng, with_parent=rng.random() < 0.3)]
    if rng.random() < 0.5:
        parts.append(_budget(rng, with_parent=rng.random() < 0.1))
        parts.append("\n".join(_question(rng) for _ in range(rng.randrange(4))))
    return SEPARATOR.join(part.encode("utf-8", "surrogatepass") for part in parts)


def _question(rng: Random) -> str:
    row = {"question": text(rng), "answer": f"{text(rng)} #### {number(rng)}"}
    return json.dumps(odd(rng) if rng.random() < 0.05 else row)


def _budget(rng: Random, *, with_parent: bool) -> str:
    tasks = {
        rng.choice(("t", "gsm8k")): {**_fields(rng, keys.TASK), "file": "./questions.jsonl"}
        for _ in range(rng.randrange(3))
    }
    kinds = metrics.limit_kinds(tasks)
    root: dict[str, Any] = {"model": rng.choice(("builtin", ".", "Qwen/Qwen3-8B", text(rng)))}
    if with_parent:
        root["extends"] = "parent.yaml"
    if tasks:
        root["tasks"] = tasks
    if rng.random() < 0.6:
        root["baseline"] = "fp32"
    if rng.random() < 0.5:
        root["calibration"] = "./questions.jsonl"
    if rng.random() < 0.5:
        root["workload"] = _fields(rng, keys.WORKLOAD)
    if rng.random() < 0.2:
        root["gpu"] = rng.choice((True, False, _fields(rng, keys.GPU)))
    names = {"fp32", *(rng.choice(methods.run_by(TRANSFORMERS)) for _ in range(2))}
    root["methods"] = {name: _method(rng, name, kinds) for name in sorted(names)}
    if rng.random() < 0.1:
        root[text(rng)] = odd(rng)
    return "\n".join(f"{flow(key)}: {flow(value)}" for key, value in root.items()) + "\n"


def _method(rng: Random, name: str, kinds: Mapping[str, limits.LimitKind]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    chosen = [rng.choice(list(kinds)) for _ in range(rng.randrange(4))]
    if chosen:
        found["budget"] = {limit: _limit(rng, kinds[limit]) for limit in chosen}
    options = methods.spec(name).options
    if options and rng.random() < 0.5:
        found["options"] = _fields(rng, options)
    if rng.random() < 0.1:
        found[rng.choice(keys.METHOD).name] = rng.choice((text(rng), ["slow", "a"], odd(rng)))
    return found


def _limit(rng: Random, kind: limits.LimitKind) -> Any:
    if rng.random() < 0.2:
        return {rng.choice(("cpu", "NVIDIA*", "*", text(rng))): _value(rng, kind.kind) for _ in range(2)}
    return _value(rng, kind.kind)


def _fields(rng: Random, fields: Sequence[grammar.Field]) -> dict[str, Any]:
    return {field.name: _value(rng, field.kind) for field in fields if rng.random() < 0.5}


def _value(rng: Random, kind: grammar.Kind) -> Any:
    """A value of the kind, by its JSON Schema; rarely another."""
    if rng.random() < 0.03:
        return odd(rng)
    schema = kind.schema
    if "enum" in schema:
        return rng.choice(typing.cast(list[Any], schema["enum"]))
    if "pattern" in schema:
        known = units.SIZES if kind is grammar.SIZE else units.TIMES if kind is grammar.TIME else None
        return f"{number(rng)} {rng.choice(list(known))}" if known else f"{rng.randrange(10)}.{rng.randrange(10)}"
    return {"boolean": True, "array": ["slow"], "string": text(rng)}.get(str(schema.get("type"))) or number(rng)


def flow(value: Any) -> str:
    """YAML in flow style; text that YAML takes as it stands goes without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and PLAIN.fullmatch(value) and ": " not in value:
        return value
    return json.dumps(value)


def edit_budget(data: bytes, rng: Random) -> bytes | None:
    """A few lines or words of a budget moved, doubled, taken out or replaced; now and then a whole new one."""
    if rng.random() < 0.15:
        return budget_files(rng)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        line, action = lines[at], rng.randrange(9)
        if action == 0 and len(lines) > 1:
            del lines[at]
        elif action == 1:
            lines.insert(rng.randrange(len(lines)), line)
        elif action == 2:
            lines[at] = " " * rng.randrange(9) + line.lstrip()
        elif action == 3:
            lines.insert(at, rng.choice(ODD_YAML))
        elif action == 4 and ":" in line:
            lines[at] = f"{line.partition(':')[0]}: {_scalar(rng)}"
        elif action == 5 and len(line) < 1000:
            lines[at] = _repeated(line, rng)
        elif action == 6:
            other = rng.choice(lines)
            lines[at] = line[: rng.randrange(len(line) + 1)] + other[rng.randrange(len(other) + 1) :]
        else:
            words = [*re.finditer(r"[\w./*-]+", line)]
            if words:
                start, end = rng.choice(words).span()
                lines[at] = line[:start] + _scalar(rng) + line[end:]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _repeated(line: str, rng: Random) -> str:
    """A line, or one item of it, many times over; the first word gets a number, so that keys differ."""
    separator = rng.choice(("\n", ", "))
    items = line.split(separator)
    at, count = rng.randrange(len(items)), rng.choice((3, 30, 300, 3_000))
    items[at : at + 1] = [re.sub(r"([A-Za-z]\w*)", rf"\g<1>{i}", items[at], count=1) for i in range(count)]
    return separator.join(items)


def _scalar(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(ODD_YAML)
    return flow(rng.choice((text(rng), number(rng), odd(rng))))
