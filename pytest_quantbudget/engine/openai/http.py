"""A small asynchronous HTTP client that notes when each event of a stream arrived.

It stands on the streams of asyncio alone. Arrival times are what is measured, and what lies between the socket and the
clock is measured with them: `benchmarks/load_cost.py` tells what it costs. It follows no redirect and uses no
proxy, so that a request, and the key in it, reaches the host that it was meant for and no other.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONNECT_S = 10.0
MAX_HEAD = 65_536
MAX_BODY = 256_000_000
MAX_EVENT = 16_000_000
SAID = 300  # characters of a server's words in a message
STREAM_END = "[DONE]"


class ServerError(Exception):
    """What a server did, or failed to do, in words."""


class Unreachable(ServerError):
    """No connection, or one that ended before the answer was whole."""


class Refused(ServerError):
    """An answer with a status of 400 or more; `status`, and the server's own words in `said`."""

    def __init__(self, what: str, status: int, said: str) -> None:
        super().__init__(f"{what} was answered with status {status}: {said or '(no words)'}")
        self.status, self.said = status, said


class Garbled(ServerError):
    """An answer that is no HTTP, no JSON, or too long."""


class Late(ServerError):
    """Nothing came within the time limit."""


@dataclass(frozen=True)
class Answer:
    """A whole answer: its status, its body, and when it was complete (`time.perf_counter`, seconds)."""

    status: int
    body: bytes
    at: float


@dataclass
class _Wire:
    """One connection. `used` is whether a request has been answered on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False


@dataclass(frozen=True)
class _Head:
    """Status and framing of an answer: the body's length, None where it is chunked or ends with the connection."""

    status: int
    length: int | None
    chunked: bool
    stays: bool


class Client:
    """A client of one server, whose API begins at `url`, such as `http://127.0.0.1:8000/v1`.

    `key` is sent as a bearer token. Connections are kept and used again. All methods raise ServerError, and take time
    limits in seconds. One event loop.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url)
        self.url, self.host, self.tls = url.rstrip("/"), parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.prefix = parts.path.rstrip("/")
        self.key = key
        self._idle: list[_Wire] = []

    def api(self, name: str) -> str:
        """The path of an endpoint of the API, such as `completions`."""
        return f"{self.prefix}/{name}"

    def root(self, name: str) -> str:
        """The path of an endpoint beside the API, such as `metrics`."""
        return f"{self.prefix.removesuffix('/v1')}/{name}"

    async def close(self) -> None:
        """Close the connections that are kept."""
        for wire in self._idle:
            wire.writer.close()
        self._idle.clear()

    async def json(self, path: str, body: Any = None, limit_s: float = 60.0) -> Any:
        """The JSON that a GET, or with a `body` a POST, is answered with. Raises Refused for a status from 400 on."""
        answer = await self.request(path, body, limit_s)
        what = _what(path, body)
        if answer.status >= 400:
            raise Refused(what, answer.status, _words(answer.body))
        return _parsed(answer.body, what)

    async def text(self, path: str, limit_s: float = 60.0) -> str:
        """The text that a GET is answered with. Raises Refused for a status from 400 on."""
        answer = await self.request(path, None, limit_s)
        if answer.status >= 400:
            raise Refused(_what(path, None), answer.status, _words(answer.body))
        return answer.body.decode("utf-8", "replace")

    async def request(self, path: str, body: Any = None, limit_s: float = 60.0) -> Answer:
        """One whole exchange, whatever its status."""
        what = _what(path, body)
        try:
            async with asyncio.timeout(limit_s):
                wire, head = await self._exchange(path, body)
                try:
                    data = bytearray()
                    async for block in _body(wire.reader, head):
                        data += block
                        if len(data) > MAX_BODY:
                            raise Garbled(f"{what} was answered with more than {MAX_BODY:,} bytes")
                except BaseException:
                    wire.writer.close()
                    raise
        except TimeoutError:
            raise Late(f"{what} was not answered within {limit_s:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise _broken(what, error) from error
        self._keep(wire, head)
        return Answer(head.status, bytes(data), time.perf_counter())

    async def stream(self, path: str, body: Any, limit_s: float = 600.0) -> AsyncGenerator[tuple[float, Any], None]:
        """The events of a stream, each with the time at which its last byte arrived (`time.perf_counter`, seconds).

        No event for `limit_s` is Late, whatever else keeps the connection alive. An iteration that is left early closes
        the connection, which ends the request. Raises Refused for a status from 400 on, and Garbled for an event that
        is no JSON.
        """
        what = _what(path, body)
        wire, done = None, False
        try:
            async with asyncio.timeout(limit_s):
                wire, head = await self._exchange(path, body)
            if head.status >= 400:
                async with asyncio.timeout(limit_s):
                    said = b"".join([block async for block in _body(wire.reader, head)])
                raise Refused(what, head.status, _words(said))
            blocks = aiter(_body(wire.reader, head))
            rest, heard = b"", asyncio.get_running_loop().time()
            while True:
                async with asyncio.timeout_at(heard + limit_s):
                    block = await anext(blocks, None)
                at = time.perf_counter()
                if block is None:
                    break
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > MAX_EVENT:
                    raise Garbled(f"{what} streams an event of more than {MAX_EVENT:,} bytes")
                for line in lines:
                    text = _data(line)
                    if text == STREAM_END:
                        done = True
                    elif text:
                        yield at, _event(text, what)
                        heard = asyncio.get_running_loop().time()
            if rest.strip() and not done and _data(rest) != STREAM_END:
                raise Garbled(f"{what} ended in the middle of an event: {_words(rest)}")
            self._keep(wire, head)
            wire = None
        except TimeoutError:
            raise Late(f"{what} sent no event for {limit_s:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise _broken(what, error) from error
        finally:
            if wire is not None:
                wire.writer.close()

    async def _exchange(self, path: str, body: Any) -> tuple[_Wire, _Head]:
        """Send a request and read the head of its answer; on a new connection where a kept one had been closed."""
        while True:
            wire = self._idle.pop() if self._idle else await self._connect()
            try:
                wire.writer.write(self._request(path, body))
                await wire.writer.drain()
                return wire, await _head(wire.reader)
            except (OSError, EOFError):
                wire.writer.close()
                if not wire.used:
                    raise
            except BaseException:
                wire.writer.close()
                raise

    async def _connect(self) -> _Wire:
        context = ssl.create_default_context() if self.tls else None
        opened = asyncio.open_connection(self.host, self.port, ssl=context, limit=MAX_HEAD)
        try:
            async with asyncio.timeout(CONNECT_S):
                return _Wire(*await opened)
        except TimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_S:g} s") from None

    def _request(self, path: str, body: Any) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}:{self.port}", "Accept: */*"]
        data = b"" if body is None else json.dumps(body, allow_nan=False).encode()
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + data

    def _keep(self, wire: _Wire, head: _Head) -> None:
        wire.used = True
        if head.stays:
            self._idle.append(wire)
        else:
            wire.writer.close()


async def _head(reader: asyncio.StreamReader) -> _Head:
    while True:
        first = await _line(reader)
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not code.isdecimal():
            raise ValueError(f"it begins with {first[:60]!r}")
        fields: dict[str, str] = {}
        while line := await _line(reader):
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip().lower()
            if len(fields) > 200:
                raise ValueError("it has more than 200 header fields")
        # Interim answers come before the one that counts (RFC 9110, section 15.2).
        if int(code) >= 200:
            break
    chunked = "chunked" in fields.get("transfer-encoding", "")
    length = fields.get("content-length", "")
    if length and not length.isdecimal():
        raise ValueError(f"its length is {length[:20]!r}")
    size = 0 if int(code) in (204, 304) else int(length) if length and not chunked else None
    stays = fields.get("connection") != "close" and version != "HTTP/1.0" and (chunked or size is not None)
    return _Head(int(code), size, chunked, stays)


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line.decode("latin-1").rstrip("\r\n")


async def _body(reader: asyncio.StreamReader, head: _Head) -> AsyncIterator[bytes]:
    """The body block by block, as it arrives."""
    if head.chunked:
        while size := int((await _line(reader)).partition(";")[0], 16):
            if not 0 < size <= MAX_BODY:
                raise ValueError(f"it has a chunk of {size:,} bytes")
            yield (await reader.readexactly(size + 2))[:-2]
        while await _line(reader):
            pass
        return
    left = head.length
    while left is None or left > 0:
        block = await reader.read(65_536 if left is None else min(left, 65_536))
        if not block:
            if left is not None:
                raise asyncio.IncompleteReadError(b"", left)
            return
        left = None if left is None else left - len(block)
        yield block


def _data(line: bytes) -> str:
    """What a line of a stream of events carries (the HTML standard, section 9.2); nothing for other lines."""
    return line[5:].decode("utf-8", "replace").strip() if line.startswith(b"data:") else ""


def _event(text: str, what: str) -> Any:
    event = _parsed(text.encode(), f"an event of {what}")
    if isinstance(event, dict) and event.get("error"):
        raise ServerError(f"{what} failed while it was answered: {_words(text.encode())}")
    return event


def _parsed(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Garbled(f"{what} is no JSON: {_words(data)}") from None


def _what(path: str, body: Any) -> str:
    return f"{'GET' if body is None else 'POST'} {path}"


def _words(data: bytes) -> str:
    """What a server said, of an error in JSON its message, in one line."""
    text = data[:10_000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    while isinstance(found, dict) and any(name in found for name in ("error", "message", "detail")):
        found = next(found[name] for name in ("error", "message", "detail") if name in found)
    words = found if isinstance(found, str) else text
    return " ".join(words.split())[:SAID]


def _broken(what: str, error: Exception) -> ServerError:
    if isinstance(error, asyncio.IncompleteReadError):
        return Unreachable(f"{what}: the connection ended before the answer was whole")
    # A certificate that does not hold is an OSError and a ValueError.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return Garbled(f"{what} was answered with what is no HTTP: {error}")
    return Unreachable(f"{what}: {error.strerror if isinstance(error, OSError) and error.strerror else error}")
