"""The results store: figures under a key with all that they depend on, checksummed, each written at once."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core import codec, places
from pytest_quantbudget.core.safetext import safe
from pytest_quantbudget.core.units import ISO, UTC

MAGIC = "quantbudget-entry-1"


class Damaged(ValueError):
    """An entry that is cut, altered, or another measurement's; the message says which."""


@dataclass(frozen=True)
class Key:
    """The name of an entry, and all that its figures depend on. `folder` and `label` are for people."""

    folder: str
    label: str
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The entry's path in the store: it differs where the content does."""
        return f"{self.folder}/{self.label}-{codec.key_of(dict(self.content))}.entry"


@dataclass(frozen=True)
class Entry:
    """What was stored, and when (UTC)."""

    payload: Any
    made: datetime.datetime

    @property
    def at(self) -> str:
        """The time in ISO 8601."""
        return self.made.strftime(ISO)

    def younger_than(self, seconds: float) -> bool:
        """Whether it was made in the last `seconds`; not so for one from the future, left by a clock that jumped."""
        return 0 <= (now() - self.made).total_seconds() <= seconds


def now() -> datetime.datetime:
    """The time in UTC, in whole seconds."""
    return datetime.datetime.now(UTC).replace(microsecond=0)


def encode(key: Mapping[str, Any], payload: Any, made: datetime.datetime) -> bytes:
    """An entry as bytes: a line with its checksum, then JSON."""
    content = {"key": key, "made": made.strftime(ISO), "payload": payload}
    body = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    return f"{MAGIC} {hashlib.sha256(body).hexdigest()}\n".encode() + body + b"\n"


def decode(data: bytes, key: Mapping[str, Any]) -> Entry:
    """The inverse of `encode`. Raises Damaged where the bytes are not a whole entry of exactly this key."""
    head, _, body = data.partition(b"\n")
    body = body.removesuffix(b"\n")
    if head.decode("ascii", "replace") != f"{MAGIC} {hashlib.sha256(body).hexdigest()}":
        raise Damaged("its checksum is wrong")
    try:
        content = codec.read_json(body)
        if not isinstance(content, dict) or set(content) != {"key", "made", "payload"}:
            raise ValueError("it holds other fields")
        made = datetime.datetime.strptime(content["made"], ISO).replace(tzinfo=UTC)
        if made.strftime(ISO) != content["made"]:  # strptime takes `2026-1-2T3:4:5Z` too
            raise ValueError("its time has another form")
    except (TypeError, ValueError) as error:
        raise Damaged(f"it cannot be read: {error}") from None
    if content["key"] != json.loads(json.dumps(key)):
        raise Damaged("it belongs to another measurement")
    return Entry(content["payload"], made)


class Store:
    """Entries at a place. An error there is noted and costs the reuse, never a measurement."""

    def __init__(self, place: str, *, refresh: bool = False) -> None:
        self.place = place
        self.refresh = refresh  # measure everything again, and keep that
        self.notes: list[str] = []
        self._at: places.Place | None = None

    def get(self, key: Key) -> Entry | None:
        """The entry of a key, or None. A damaged one is set aside and noted."""
        if self.refresh:
            return None
        try:
            data = self._opened().read(key.name)
        except OSError as error:
            self._note(f"the cache {self.place} cannot be read ({_words(error)}); what is kept there is measured again")
            return None
        if data is None:
            return None
        try:
            return decode(data, key.content)
        except Damaged as error:
            self.set_aside(key, str(error))
            return None

    def put(self, key: Key, payload: Any) -> None:
        """Keep a payload (JSON values) under a key, at once."""
        try:
            self._opened().write(key.name, encode(key.content, payload, now()))
        except OSError as error:
            why = f"({_words(error)}); the next run measures again what it could not keep"
            self._note(f"the cache {self.place} cannot be written {why}")

    def drop(self, keys: Iterable[Key]) -> None:
        """Remove entries whose content stands in a larger one by now."""
        with contextlib.suppress(OSError):
            for key in keys:
                self._opened().remove(key.name)

    def set_aside(self, key: Key, why: str) -> None:
        """Take an entry out of use and note it; it stays beside its place, to be looked into."""
        with contextlib.suppress(OSError):
            self._opened().move(key.name, f"{key.name}.damaged")
        self._note(f"the stored {key.label} in {key.folder} was set aside and measured again: {why}")

    def _opened(self) -> places.Place:
        if self._at is None:
            self._at = places.at(self.place)
        return self._at

    def _note(self, what: str) -> None:
        note = safe(what)  # URLs may carry passwords, and damaged entries anything
        if note not in self.notes:
            self.notes.append(note)


def _words(error: OSError) -> str:
    return error.strerror or str(error)
