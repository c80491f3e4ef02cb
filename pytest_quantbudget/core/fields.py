"""Kinds of values in a budget file: how each is read, and how JSON Schema describes it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core import problems, units


@dataclass(frozen=True)
class Kind:
    """One kind of value: how it is read (ValueError in words for the user) and how JSON Schema describes it.

    A `nested` one has keys of its own, and is read elsewhere: its value stays a node with lines.
    """

    read: Callable[[object], Any]
    schema: Mapping[str, object]
    nested: bool = False


@dataclass(frozen=True)
class Field:
    """A key of a mapping: its kind, what it means, and its value where the file does not have it."""

    name: str
    kind: Kind
    doc: str
    default: Any = None

    @property
    def schema(self) -> dict[str, object]:
        """The key as JSON Schema describes it."""
        described = {"description": self.doc} if self.doc else {}
        default = {} if self.default is None else {"default": self.default}
        return {**described, **self.kind.schema, **default}


def mapping_schema(fields: Iterable[Field]) -> dict[str, object]:
    """The JSON Schema of a mapping with these keys and no others."""
    properties = {field.name: field.schema for field in fields}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def nested(schema: Mapping[str, object]) -> Kind:
    """A value with keys of its own."""
    return Kind(lambda node: node, schema, nested=True)


def whole(minimum: int, maximum: int | None = None) -> Kind:
    """A whole number from `minimum`."""
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number {bounds}, not {value!r}")
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(f"must be a whole number {bounds}, not {value}")
        return value

    top = {} if maximum is None else {"maximum": maximum}
    return Kind(read, {"type": "integer", "minimum": minimum, **top})


def number(minimum: float, maximum: float = math.inf, *, closed: str = "") -> Kind:
    """A finite number between the bounds; `closed` names the ends ("low", "high", "low high") that belong to it."""

    def read(value: object) -> float:
        if isinstance(value, str):
            raise ValueError(f"must be a bare number, and {value!r} is text")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {value!r}")
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            value = math.inf
        if not math.isfinite(value):
            raise ValueError(f"{value} can never be met or missed; write a finite number")
        too_low = value < minimum if "low" in closed else value <= minimum
        too_high = value > maximum if "high" in closed else value >= maximum
        if too_low or (too_high and math.isfinite(maximum)):
            low = f"{'at least' if 'low' in closed else 'above'} {minimum:g}"
            high = f" and {'at most' if 'high' in closed else 'below'} {maximum:g}" if math.isfinite(maximum) else ""
            raise ValueError(f"must be {low}{high}, not {value:g}")
        return float(value)

    schema: dict[str, object] = {"type": "number"}
    schema["minimum" if "low" in closed else "exclusiveMinimum"] = minimum
    if math.isfinite(maximum):
        schema["maximum" if "high" in closed else "exclusiveMaximum"] = maximum
    else:
        schema["maximum"] = sys.float_info.max
    return Kind(read, schema)


def percent(one: Kind) -> Kind:
    """A number of percent, bare or with its sign: `99` or `99 %`."""

    def read(value: object) -> Any:
        if not isinstance(value, str):
            return one.read(value)
        match = PERCENT.fullmatch(value)
        if match is None:
            raise ValueError(f"must be a number of percent, such as 99 or 99 %, not {value!r}")
        return one.read(float(match[1]))

    signed = {"type": "string", "pattern": f"^{PERCENT.pattern}$", "examples": ["99 %"]}
    return Kind(read, {"anyOf": [dict(one.schema), signed]})


PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def several(one: Kind, most: int) -> Kind:
    """One value of a kind, or a list of up to `most` different ones."""

    def read(value: object) -> tuple[Any, ...]:
        found = tuple(map(one.read, value if isinstance(value, list) else [value]))
        if not 0 < len(found) <= most or len(set(found)) < len(found):
            raise ValueError(f"must be one value, or a list of up to {most} different ones, not {value!r}")
        return found

    items = {"type": "array", "minItems": 1, "maxItems": most, "uniqueItems": True, "items": dict(one.schema)}
    return Kind(read, {"anyOf": [dict(one.schema), items]})


def choice(*names: str) -> Kind:
    """One of a few words."""

    def read(value: object) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}{problems.nearest(str(value), names)}")
        return str(value)

    return Kind(read, {"enum": list(names)})


def command() -> Kind:
    """A list of words, the first of which is a program."""

    def read(value: object) -> tuple[str, ...]:
        words = value if isinstance(value, list) else []
        if not words or not all(isinstance(word, str | int | float) and not isinstance(word, bool) for word in words):
            raise ValueError(f"must be a list of words, such as [llama-server, --port, '{{port}}'], not {value!r}")
        if not str(words[0]).strip() or any("\0" in str(word) for word in words):
            raise ValueError("must be a list of words whose first is a program")
        return tuple(map(str, words))

    return Kind(read, {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}})


def some_of(*names: str) -> Kind:
    """A list of a few words, each at most once."""
    one = choice(*names)

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or len(set(map(str, value))) < len(value):
            raise ValueError(f"must be a list of {', '.join(names)}, not {value!r}")
        return tuple(one.read(each) for each in value)

    return Kind(read, {"type": "array", "items": {"enum": list(names)}, "uniqueItems": True})


def one_of(*numbers: int) -> Kind:
    """One of a few whole numbers."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value not in numbers:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, numbers))}")
        return value

    return Kind(read, {"enum": list(numbers)})


def _read_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be text, not {value!r}" + ("; quote it" if value is not None else ""))
    return value


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


MARK = "[A-Za-z][A-Za-z0-9_]*"
PYTEST_MARKS = ("filterwarnings", "parametrize", "skip", "skipif", "usefixtures", "xfail")


def _read_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and re.fullmatch(MARK, v) for v in value):
        raise ValueError(f"must be a list of marker names, such as [slow], not {value!r}")
    own = [name for name in value if name in PYTEST_MARKS]
    if own:
        raise ValueError(f"{own[0]} is a marker of pytest's own, which takes arguments or changes what a test says")
    return tuple(value)


def _read_capability(value: object) -> str:
    parts = str(value).split(".")
    if not isinstance(value, str) or len(parts) != 2 or not all(p.isdecimal() and len(p) < 4 for p in parts):
        raise ValueError(f'must be a compute capability in quotes, such as "8.0", not {value!r}')
    return value


def _quantity(known: Mapping[str, float]) -> str:
    """A positive number with one of the units, as a pattern for JSON Schema."""
    return rf"^\+?(?=[\d._]*[1-9])(\d[\d_]*(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*({'|'.join(known)})$"


def _read_flag_or_auto(value: object) -> bool | None:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"must be true, false or auto, not {value!r}")
    return None if value == "auto" else bool(value)


def _read_whole_or_auto(value: object) -> int | None:
    if value != "auto" and isinstance(value, str):
        raise ValueError(f"must be a whole number of at least 1, or auto, not {value!r}")
    return None if value == "auto" else int(whole(1).read(value))


TEXT = Kind(_read_text, {"type": "string", "pattern": r"\S"})
FLAG = Kind(_read_flag, {"type": "boolean"})
FLAG_OR_AUTO = Kind(_read_flag_or_auto, {"enum": [True, False, "auto"]})
WHOLE_OR_AUTO = Kind(_read_whole_or_auto, {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]})
NAMES = Kind(
    _read_names,
    {"type": "array", "items": {"type": "string", "pattern": f"^{MARK}$", "not": {"enum": list(PYTEST_MARKS)}}},
)
CAPABILITY = Kind(_read_capability, {"type": "string", "pattern": r"^\d{1,3}\.\d{1,3}$"})
SIZE = Kind(
    lambda value: units.parse_size(value)[0],
    {"type": "string", "pattern": _quantity(units.SIZES), "examples": ["17 GiB", "16 GB"]},
)
TIME = Kind(
    lambda value: units.parse_time(value)[0],
    {"type": "string", "pattern": _quantity(units.TIMES), "examples": ["80 ms"]},
)
ENERGY = Kind(
    lambda value: units.parse_energy(value)[0],
    {"type": "string", "pattern": _quantity(units.ENERGIES), "examples": ["500 mJ"]},
)
DTYPES = ("bfloat16", "float16", "float32")
