"""Frozen dataclasses to builtins, back again, and as JSON Schema: one description of what crosses a process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pytest_quantbudget.core import files

R = TypeVar("R")
MAX_NAMED = 200  # characters of a name in a message


def to_builtins(record: object) -> Any:
    """Dataclasses become dicts, tuples lists, paths texts, and a dict whose keys are records a list of pairs.

    The rest must be a JSON value already.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: to_builtins(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, dict):
        if any(map(dataclasses.is_dataclass, record)):
            # An object of JSON has only texts as keys.
            return [[to_builtins(key), to_builtins(value)] for key, value in record.items()]
        return {str(key): to_builtins(value) for key, value in record.items()}
    if isinstance(record, Path):
        return str(record)
    if isinstance(record, tuple | list):
        return [to_builtins(item) for item in record]
    if record is None or isinstance(record, bool | int | float | str):
        return record
    raise TypeError(f"{type(record).__name__} does not belong in a record")


def from_builtins(cls: type[R], data: Any, where: str = "") -> R:
    """The inverse of `to_builtins`. Raises ValueError, naming the place, where `data` does not have the form."""
    return typing.cast(R, _read(cls, data, where or cls.__name__))


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _read(inner, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where}: must be a list, not {type(data).__name__}")
        if args[0] is int and all(type(item) is int for item in data):
            # Of a report most values are tokens.
            return tuple(data)
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin in (dict, Mapping):
        if dataclasses.is_dataclass(args[0]):
            return _read_pairs(args[0], args[1], data, where)
        if not isinstance(data, dict):
            raise ValueError(f"{where}: must be an object, not {type(data).__name__}")
        return {str(key): _read(args[1], value, f"{where}.{key:.{MAX_NAMED}}") for key, value in data.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: must be an object, not {type(data).__name__}")
        known = {field.name for field in dataclasses.fields(hint)}
        missing = {field.name for field in dataclasses.fields(hint) if _has_no_default(field)} - set(data)
        if missing or set(data) - known:
            odd = ", ".join(sorted(missing | (set(data) - known)))
            raise ValueError(f"{where}: missing or unknown: {odd[:MAX_NAMED]}")
        hints = _hints(typing.cast(type, hint))
        values = {key: _read(hints[key], data[key], f"{where}.{key}") for key in data}
        try:
            return typing.cast(type, hint)(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if hint is Path:
        return Path(_read(str, data, where))
    if hint not in (bool, int, float, str):
        return _read(_kind_of(hint.__subclasses__(), data, where), data, where)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise ValueError(f"{where}: must be {hint.__name__}, not {data!r:.60}")
    return data


def _read_pairs(key: Any, value: Any, data: Any, where: str) -> dict[Any, Any]:
    """A dict whose keys are records; an empty one shows nothing of them."""
    if data == {}:
        return {}
    if not isinstance(data, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in data):
        raise ValueError(f"{where}: must be a list of pairs")
    pairs = enumerate(data)
    return {_read(key, k, f"{where}[{i}][0]"): _read(value, v, f"{where}[{i}][1]") for i, (k, v) in pairs}


def _kind_of(kinds: list[type], data: Any, where: str) -> type:
    """The record of a family that has the fields of `data`."""
    names = set(data) if isinstance(data, dict) else None
    for kind in kinds:
        if names == {field.name for field in dataclasses.fields(kind)}:
            return kind
    raise ValueError(f"{where}: must be one of {', '.join(kind.__name__ for kind in kinds)}")


def schema_of(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema reference to `cls`; `definitions` receives the schema of it and of all it holds."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}  # first, so that a recursive record ends
        hints = _hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        definitions[cls.__name__] = {
            "description": (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
            "type": "object",
            "required": names,
            "additionalProperties": False,
            "properties": {name: _schema(hints[name], definitions) for name in names},
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in args if arg is not type(None))
        return {"anyOf": [_schema(inner, definitions), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1], definitions)}
    if dataclasses.is_dataclass(hint):
        return schema_of(typing.cast(type, hint), definitions)
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[hint]}


def key_of(record: object) -> str:
    """A short name that differs where the record differs."""
    text = json.dumps(to_builtins(record), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


MAX_DEPTH = 64  # records nest ten deep
MAX_HOLDERS = 5_000_000  # lists and objects; an empty one is two bytes in the file and sixty in memory
MAX_DIGITS = 100  # so that products of a few counts still fit a float


def read_json(data: bytes) -> Any:
    """JSON as `write_json` writes it, from any source; a byte-order mark is skipped.

    Raises ValueError, and nothing else, for what is no JSON and for what other readers would take in different ways
    or choke on: NaN, infinities, a key twice in one object, half a surrogate pair, nesting beyond MAX_DEPTH, whole
    numbers beyond MAX_DIGITS, lists and objects beyond MAX_HOLDERS (brackets in texts count too).
    """
    if data.count(b"[") + data.count(b"{") > MAX_HOLDERS:
        raise ValueError(f"more than {MAX_HOLDERS:,} lists and objects")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_int=_int,
            parse_float=_float,
            parse_constant=_float,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is not UTF-8 text") from None
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels deep") from None
    _check(value)
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"the key {key[:60]!r} is given twice in one object")
        entries[key] = value
    return entries


def _check(value: Any) -> None:
    """Depth and text, level by level: the parser's own limits depend on the stack, and recursion here would too."""
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels deep")
        for text in level:
            if isinstance(text, str) and not text.isascii():
                _check_text(text)
        below = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in below for part in (item if isinstance(item, list) else (*item, *item.values()))]
        depth += 1


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text[error.start]!a} is half a character") from None


def write_json(path: Path, record: object) -> None:
    """Write so that a reader sees the old file or the new one, never half of one; NaN is refused (ValueError).

    A list of numbers takes one line.
    """
    text = json.dumps(to_builtins(record), indent=1, allow_nan=False, ensure_ascii=False)
    text = NUMBERS.sub(lambda found: "".join(found[0].split()).replace(",", ", "), text)
    files.write(path, f"{text}\n".encode())


# A list of numbers as json writes it with an indent, one a line. In a text, a line break is written otherwise.
NUMBERS = re.compile(r"\[\n *-?[0-9][-+.0-9eE]*(?:,\n *-?[0-9][-+.0-9eE]*)*\n *\]")
